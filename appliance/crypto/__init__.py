"""Key exchange, ciphers, keys and key files: pure functions of their arguments."""
