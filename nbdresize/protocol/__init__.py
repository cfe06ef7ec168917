"""The NBD wire format and its state machine: bytes in, values out, and back. No sockets, no files, no threads."""
