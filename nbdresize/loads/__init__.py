"""Loads against any NBD server, ours or not: what they are, and running them."""
