"""The settings for a user and an address: [[match]] tables, and lists of users and groups.

Patterns are those of ssh_config(5). The name of a client's host is never looked up, so a host is
given as an address, a pattern of addresses, or a network.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..config.server import CRITERIA, ConnectionConfig, Match, ServerConfig
from ..crypto.patterns import matches, matches_list
from ..crypto.sources import from_matches
from .peer import Peer

Groups = Callable[[], Sequence[str]]  # gives the names of a user's groups; may be slow


def effective(config: ServerConfig, user: str, groups: Groups, peer: Peer) -> ServerConfig:
    """The settings for this connection: ``config``, changed by the tables that cover it.

    If two tables set the same key, the first one counts, as in sshd_config(5). The user need not
    exist.
    """
    changes: dict[str, Any] = {}
    for match in config.match:
        if _covers(match, user, groups, peer):
            changes = _settings_of(match) | changes
    return replace(config, **changes)


def with_match(config: ServerConfig, match: Match) -> ServerConfig:
    """The settings as if only this table covered the connection."""
    return replace(config, **_settings_of(match))


def _settings_of(match: Match) -> dict[str, Any]:
    return {key: getattr(match, key) for key in match.given.difference(CRITERIA)}


def _covers(match: Match, user: str, groups: Groups, peer: Peer) -> bool:
    return (
        (not match.user or matches_list(user, match.user) is True)
        and (not match.address or from_matches(match.address, peer.address, None))
        and (not match.local_address or from_matches(match.local_address, peer.local_address, None))
        and (not match.local_port or matches_list(str(peer.local_port), match.local_port) is True)
        and (not match.group or _covers_groups(match.group, groups()))
    )


def _covers_groups(patterns: str, groups: Sequence[str]) -> bool:
    """Whether one of the groups matches, and none matches a pattern behind '!'."""
    found = [matches_list(group, patterns) for group in groups]
    return True in found and False not in found


def refusal(config: ConnectionConfig, user: str, groups: Groups, address: str) -> str:
    """The reason why this user may not log in from ``address``, '' if they may.

    The checks have the order of sshd_config(5).
    """
    if any(_is_user(user, address, pattern) for pattern in config.deny_users):
        return "denied by deny_users"
    if config.allow_users and not any(
        _is_user(user, address, pattern) for pattern in config.allow_users
    ):
        return "not in allow_users"
    if _any_group(config.deny_groups, groups):
        return "denied by deny_groups"
    if config.allow_groups and not _any_group(config.allow_groups, groups):
        return "not in allow_groups"
    return ""


def _is_user(user: str, address: str, pattern: str) -> bool:
    name, at, place = pattern.rpartition("@")
    if not at:
        return matches(user, pattern)
    return matches(user, name) and from_matches(place, address, None)


def _any_group(patterns: Sequence[str], groups: Groups) -> bool:
    return bool(patterns) and any(matches(group, each) for group in groups() for each in patterns)
