"""Notices when another program changes our nftables tables, as the kernel reports each change.

A firewall's script may remove them at any time (`nft flush ruleset`). Only names of our own tables
are reported.
"""

import socket
import struct
from collections.abc import Iterator
from typing import Final

from .marks import TABLE_PREFIX

# linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
_NETLINK_NETFILTER: Final = 12
_GROUP: Final = 1 << (7 - 1)  # NFNLGRP_NFTABLES
_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr
_FAMILY_HEADER: Final = 4  # bytes: nfgenmsg
_ATTRIBUTE: Final = struct.Struct("=HH")  # length and type
_TABLE_NAME: Final = 1  # NFTA_TABLE_NAME, NFTA_CHAIN_TABLE and NFTA_RULE_TABLE alike
_NEWRULE: Final = 10 << 8 | 6
_GONE: Final = {10 << 8 | number for number in (2, 5, 8)}  # DELTABLE, DELCHAIN, DELRULE

# Our own choice
_BUFFER: Final = 1 << 20  # bytes: a flush of a large ruleset is many messages


class RulesWatch:
    """Receives the kernel's messages about nftables changes in this network namespace."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self._sock.bind((0, _GROUP))
        self._sock.setblocking(False)

    def fileno(self) -> int:
        """Returns the descriptor, which is readable when ``take`` has something to return."""
        return self._sock.fileno()

    def take(self) -> set[str] | None:
        """Returns the names of our changed tables; None if the kernel's messages were lost.

        An added rule counts as well: in front of the others it can prevent their effect.
        """
        found: set[str] = set()
        while True:
            try:
                data = self._sock.recv(65536)
            except BlockingIOError:
                return found
            except OSError:  # ENOBUFS: some messages are lost
                return None
            found |= {name for name in _tables(data) if name.startswith(TABLE_PREFIX)}

    def close(self) -> None:
        """Closes the socket."""
        self._sock.close()


def _tables(data: bytes) -> Iterator[str]:
    """Yields the names of the tables in one datagram from the kernel."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        if kind in _GONE or kind == _NEWRULE:
            yield _name(data[offset + _HEADER.size + _FAMILY_HEADER : offset + length])
        offset += (length + 3) & ~3


def _name(attributes: bytes) -> str:
    offset = 0
    while offset + _ATTRIBUTE.size <= len(attributes):
        length, kind = _ATTRIBUTE.unpack_from(attributes, offset)
        if kind & 0x3FFF == _TABLE_NAME:
            value = attributes[offset + _ATTRIBUTE.size : offset + length]
            return value.rstrip(b"\0").decode(errors="replace")
        if length < _ATTRIBUTE.size:
            break
        offset += (length + 3) & ~3
    return ""
