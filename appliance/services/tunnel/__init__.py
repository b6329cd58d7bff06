"""Tunnels over tun and tap devices (tun@openssh.com)."""
