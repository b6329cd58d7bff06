"""Where a client may come from: the pattern list of a ``from`` option (sshd(8)) and of Match."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .patterns import matches

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network


def sources(patterns: str) -> Iterator[tuple[bool, str, IPv4Network | IPv6Network | None]]:
    """Yields negation, pattern and network (if it is one) of each; raises ValueError(pattern)."""
    from ipaddress import ip_network

    for pattern in patterns.split(","):
        negated = pattern.startswith("!")
        pattern = pattern.removeprefix("!")
        base, slash, length = pattern.partition("/")
        if not base or (slash and not (length.isascii() and length.isdigit())):
            raise ValueError(pattern)
        try:
            yield negated, pattern, ip_network(pattern)
        except ValueError as error:
            if slash:  # a network with host bits, or no address at all
                raise ValueError(pattern) from error
            yield negated, pattern, None


def from_matches(patterns: str, address: str, hostname: str | None) -> bool:
    """Whether a ``from`` option with ``patterns`` lets in a client from ``address``.

    ``patterns`` is a comma list of addresses, networks (192.0.2.0/24) and wildcards, each
    perhaps behind '!', which outweighs the others; ``hostname`` is the client's name if it was
    looked up and verified. A list with a mistake in it, such as a network with host bits,
    matches nobody: parse() has refused its line already.
    """
    from ipaddress import ip_address

    try:
        peer = ip_address(address.partition("%")[0])
        peer = getattr(peer, "ipv4_mapped", None) or peer
        address = str(peer)
    except ValueError:  # 'UNKNOWN', of a client that comes through a pipe
        peer = None
    names = {address.lower(), (hostname or address).lower()}
    found = False
    try:
        for negated, pattern, network in sources(patterns):
            if network is not None and peer is not None and peer in network:
                matched = True
            else:
                matched = any(matches(name, pattern.lower()) for name in names)
            if matched and negated:
                return False
            found = found or matched
    except ValueError:
        return False
    return found
