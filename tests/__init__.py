"""Culvert's tests, with the demonstration and the benchmark that share their tools."""
