"""What a channel can be: a session, a tunnel."""
