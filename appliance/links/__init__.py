"""Links: tunnels that are declared in a file, opened, and kept open."""
