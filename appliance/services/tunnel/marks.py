"""The numbers and names that mark what we made, so that it is known even without a record.

None of these numbers has a name in /etc/iproute2 or in linux/rtnetlink.h.
"""

import hashlib
from typing import Final

DEVICE_GROUP: Final = 197  # of the devices that we made: `ip link show group 197`
ROUTE_PROTOCOL: Final = 197  # of the routes into tunnels: `ip route show proto 197`
PIN_PROTOCOL: Final = 198  # of the routes around tunnels, to their servers
MARK: Final = 197  # of the packets of links' own connections (SO_MARK): `ip rule show fwmark 197`
PIN_TABLE: Final = 198  # of those routes, which only MARK uses: `ip route show table 198`
TABLE_PREFIX: Final = "culvert-"  # of the names of our nftables tables


def digest_of(body: str) -> str:
    """Returns the comment of a table by which one version of its rules is told from another."""
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def table_script(name: str, body: str) -> str:
    """Returns a script of nft that replaces a table of the family inet in one transaction."""
    table = f"table inet {name}"
    comment = f'\tcomment "{digest_of(body)}"\n'
    return f"{table}\ndelete {table}\n{table} {{\n{comment}{body}}}\n"
