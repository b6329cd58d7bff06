"""Remembers facts of a link's last good connection, for the time when there is no connection.

The DNS zone of a server's name may be reachable through the tunnel only, and a kill switch must
know at boot which networks it guards. So a file keeps the first hop's address and what the server
handed out. They are taken only from a connection whose server proved to have the right key, and
still answered after its hand-out was applied. A resolver's answers are not kept.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from ipaddress import ip_address

from ..config.directories import state_directory
from ..config.links import Link, with_handed_out
from ..errors import UsageError
from ..services.tunnel.record import write_atomically

_log = logging.getLogger(__name__)


class Remembered:
    """One link's file; a failure to read or write it is only logged."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._path = state_directory() / "links" / f"{link.name}.json"
        self.addresses: list[str] = []
        self.handed_out: Mapping[str, object] | None = None
        try:
            data = json.loads(self._path.read_bytes())
            if data["host"] == link.host:
                self.addresses = _checked(data["addresses"])
                if link.from_server and data["handed_out"] is not None:
                    with_handed_out(link, data["handed_out"])
                    self.handed_out = data["handed_out"]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, UsageError) as error:
            _log.debug("%s is not used: %s", self._path, error)

    def learn(self, address: str, table: Mapping[str, object] | None) -> None:
        """Saves the facts of a tunnel that works.

        ``address`` is the first hop's, '' if it has none. ``table`` is what the server handed out,
        as keys of TunnelNetwork; None for nothing.
        """
        addresses = _checked([address]) if address else []
        if (addresses, table) != (self.addresses, self.handed_out):
            self.addresses, self.handed_out = addresses, table
            self._save()

    def _save(self) -> None:
        data = {
            "host": self._link.host,
            "addresses": self.addresses,
            "handed_out": self.handed_out,
        }
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(data).encode(), 0o600)
        except OSError as error:
            _log.warning("%s: %s", self._path, error.strerror)


def _checked(addresses: Sequence[str]) -> list[str]:
    return [str(ip_address(address)) for address in addresses]
