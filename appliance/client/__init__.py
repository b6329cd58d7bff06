"""What an SSH client is: its settings, whom it trusts, the login, and what comes after it."""
