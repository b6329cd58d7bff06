"""The server's processes: a listener, and for each connection a monitor and a worker."""
