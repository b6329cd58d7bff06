"""What a link knows from its last connection, for when there is none.

A server's name may be in a zone that is reached through the tunnel alone, and a kill switch
must know at the start of the machine what it guards and whom it lets through. A file
keeps the addresses of what is dialled first, and what the server handed out.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from ..config.directories import state_directory
from ..config.links import Link, with_handed_out
from ..errors import UsageError
from ..services.tunnel.record import write_atomically

_log = logging.getLogger(__name__)

# Our own choice
ADDRESSES_LIMIT: Final = 16  # of one name

_RESOLVERS: Final = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")


class Remembered:
    """One link's file; what cannot be read or written is not remembered, and no more."""

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

    def learn_addresses(self, addresses: Sequence[str]) -> None:
        """The name has these now; raises ValueError for what is no address, or too many."""
        plain = _checked([address.partition("%")[0] for address in addresses])
        if plain and set(plain) != set(self.addresses):
            self.addresses = plain
            self._save()

    def learn_handed_out(self, table: Mapping[str, object]) -> None:
        """What the server handed out, as keys of TunnelNetwork."""
        if table != self.handed_out:
            self.handed_out = table
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

    def let_through(self) -> list[str]:
        """Whom a kill switch lets us reach: before the first answer, the name servers."""
        return self.addresses or _name_servers()


def _checked(addresses: Sequence[str]) -> list[str]:
    if len(addresses) > ADDRESSES_LIMIT:
        raise ValueError("too many addresses")
    return [str(ip_address(address)) for address in addresses]


def _name_servers() -> list[str]:
    found = []
    for path in _RESOLVERS:
        try:
            lines = Path(path).read_text(errors="replace").splitlines()
        except OSError:
            continue
        for words in map(str.split, lines):
            if len(words) > 1 and words[0] == "nameserver":
                try:
                    found.append(str(ip_address(words[1].partition("%")[0])))
                except ValueError:
                    continue
    return [address for address in dict.fromkeys(found) if not ip_address(address).is_loopback]
