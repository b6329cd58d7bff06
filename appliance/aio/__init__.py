"""The shell around the pure core: sockets, and the loop that serves them."""
