"""Culvert with real devices: tun and tap in network namespaces. Needs root."""
