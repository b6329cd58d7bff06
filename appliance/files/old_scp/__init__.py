"""The old protocol of scp (-O), at both ends: protocol.py has its records, peer.py the wire."""
