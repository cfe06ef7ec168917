"""Serves the disks of virtual machines over NBD and resizes them while they are in use."""

__version__ = "0.1.0"
