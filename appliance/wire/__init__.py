"""Bytes to messages and back: pure, strict, without state."""
