"""The SSH client: its settings, its trust in hosts, the login, and what comes after it."""
