"""What other programs load to serve our disks."""
