"""The shell around the pure core: sockets, and asyncio once a connection is up."""
