"""Running a front: its processes, sockets, readiness and end."""
