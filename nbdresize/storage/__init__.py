"""Bytes at rest: pools and volumes, one module per kind, behind one small interface."""
