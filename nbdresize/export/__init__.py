"""A disk as NBD clients see it: volume, live size, lease and access mode."""
