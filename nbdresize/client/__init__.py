"""NBD as a client: asking a server for a disk's size, and for another."""
