"""X11 as state machines and tables: what is forwarded, without input or output of its own."""
