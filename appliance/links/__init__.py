"""Links and mounts: declared in a file, opened, and kept open."""
