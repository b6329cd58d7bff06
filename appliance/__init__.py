"""Culvert: an SSH server and client for small boards, with VPN tunnels at its heart."""

__version__ = "0.1.0"
