"""QEMU: its monitor, its block graph, and how a disk of a running machine grows there."""
