"""A process that reads from the network: what it gives up, what it shares, and whom it tells."""
