"""What the holder of a key may do, as options of authorized_keys and certificates restrict it.

Both kinds of options have names of their own, and become ``Permissions``. If several apply (a line
and a certificate, or two required keys), only what all of them grant is permitted.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from .sources import from_matches

TUNNEL_ANY: Final = 0x7FFFFFFF  # misc.h of OpenSSH, SSH_TUNID_ANY


class Permissions(NamedTuple):
    """What the holder of a key may do; the defaults are those of a line without options."""

    pty: bool = True
    command: str | None = None  # runs instead of the requested program
    environment: tuple[tuple[str, str], ...] = ()
    port_forwarding: bool = True
    agent_forwarding: bool = True
    x11_forwarding: bool = True
    user_rc: bool = True
    tunnel_allowed: bool = True  # any tunnel at all
    tunnel: int | None = None  # the only unit allowed; TUNNEL_ANY: only an open for 'any'
    from_patterns: tuple[str, ...] = ()  # each must match, see from_matches
    expires: int | None = None  # seconds since 1970; from then on the key is not accepted
    touch_required: bool = True  # of a security key
    verify_required: bool = False
    # Host and port pairs; port 0 and host '*' stand for any. None: everything is permitted.
    permit_open: tuple[tuple[str, int], ...] | None = None  # what direct-tcpip may reach
    permit_listen: tuple[tuple[str, int], ...] | None = None  # where tcpip-forward may listen

    def restricted_by(self, other: Permissions) -> Permissions | None:
        """The permissions that both grant: a line and a certificate, or two required keys.

        None if they force different commands: to run one would break the other's restriction.
        The environment is that of the first which has one.
        """
        if None not in (self.command, other.command) and self.command != other.command:
            return None
        tunnels = {self.tunnel, other.tunnel} - {None}
        return Permissions(
            pty=self.pty and other.pty,
            command=other.command if self.command is None else self.command,
            environment=self.environment or other.environment,
            port_forwarding=self.port_forwarding and other.port_forwarding,
            agent_forwarding=self.agent_forwarding and other.agent_forwarding,
            x11_forwarding=self.x11_forwarding and other.x11_forwarding,
            user_rc=self.user_rc and other.user_rc,
            tunnel_allowed=self.tunnel_allowed and other.tunnel_allowed and len(tunnels) < 2,
            tunnel=self.tunnel if other.tunnel is None else other.tunnel,
            from_patterns=self.from_patterns + other.from_patterns,
            expires=min(filter(None, (self.expires, other.expires)), default=None),
            touch_required=self.touch_required or other.touch_required,
            verify_required=self.verify_required or other.verify_required,
            permit_open=_in_both(self.permit_open, other.permit_open),
            permit_listen=_in_both(self.permit_listen, other.permit_listen),
        )

    def refusal(self, address: str, now: float) -> str:
        """Why a client at ``address`` is refused at ``now`` (seconds since 1970), or ''."""
        for patterns in self.from_patterns:
            if not from_matches(patterns, address, None):
                return f"not from {address}"
        return "expired" if self.expires is not None and now >= self.expires else ""


# Restricts nothing, not even by requiring a touch: a certificate then decides about that itself.
UNRESTRICTED: Final = Permissions(touch_required=False)

Pairs = tuple[tuple[str, int], ...] | None


def _in_both(first: Pairs, second: Pairs) -> Pairs:
    """The hosts and ports that both lists permit."""
    if first is None or second is None:
        return second if first is None else first
    both = (_narrower(one, other) for one in first for other in second)
    return tuple(dict.fromkeys(pair for pair in both if pair is not None))


def _narrower(one: tuple[str, int], other: tuple[str, int]) -> tuple[str, int] | None:
    (host, port), (other_host, other_port) = one, other
    if (host != other_host and "*" not in (host, other_host)) or (
        port != other_port and 0 not in (port, other_port)
    ):
        return None
    return other_host if host == "*" else host, port or other_port
