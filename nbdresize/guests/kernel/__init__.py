"""The client in the Linux kernel: its devices /dev/nbdN, kept at the size of their export.

Needs Python's standard library and the folders below only, so that it runs where nothing else is installed:
`python3 -m nbdresize.guests.kernel`, which is `nbdresize follow`.
"""
