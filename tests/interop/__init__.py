"""Culvert against the real programs: who speaks with whom, and with which algorithms."""
