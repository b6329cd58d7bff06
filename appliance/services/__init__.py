"""The services that a channel can carry: sessions, forwarded connections, tunnels."""
