"""A tunnel between the gateways of two sites, by any client and any server that has tun devices."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.netns import CommandFailed, Namespace, Sites, wait_until
from tests.peers import (
    CULVERT,
    DEFAULT,
    Account,
    Algorithms,
    ClientKind,
    Invocation,
    Keyring,
    Login,
    Server,
    ServerKind,
    ServerSettings,
    end,
    start,
)

PORT = 2222
DEVICES = {"point-to-point": "tun0", "ethernet": "tap0"}


class NoTunnel(Exception):
    """The tunnel did not come up or broke; the text holds the end of both logs."""


@dataclass(slots=True)
class Tunnel:
    """The two ends of a tunnel while it is up."""

    server: Server
    client: subprocess.Popen[bytes]
    client_log: Path
    device: str

    def logs(self) -> str:
        """Return the end of what the two programs said."""
        client = self.client_log.read_text(errors="replace")
        text = f"client: {client}\nserver: {self.server.log}"
        return "\n".join(f"        {line}" for line in text.splitlines()[-30:])


def serve_tunnels(
    sites: Sites,
    folder: Path,
    kind: ServerKind,
    permit: str,
    keygen: Sequence[str] = ("ssh-keygen",),
    options: Sequence[str] = (),
) -> tuple[Server, Login]:
    """Start a server on the eastern gateway, with fresh keys; return it and who may log in.

    The caller stops the server.
    """
    host, user = (Keyring(folder / name, keygen) for name in ("host", "user"))
    authorized = folder / "authorized" / "authorized_keys"
    authorized.parent.mkdir(mode=0o700)
    authorized.write_text(f"{user.public()}\n")
    authorized.chmod(0o600)
    settings = ServerSettings(
        host_keys=[host.key()],
        address=sites.east.outer,
        authorized_keys=authorized,
        permit_tunnel=permit,
        namespace=sites.east.gateway,
        options=options,
    )
    server = start(kind, settings, folder / "server", PORT)
    return server, Login(Account.current(), user.key())


def _settled(client: subprocess.Popen[bytes], where: Namespace, device: str) -> bool:
    return client.poll() is not None or where.has_device(device)


@contextmanager
def _connection(
    sites: Sites, server: Server, call: Invocation, log: Path, device: str
) -> Iterator[Tunnel]:
    """Run a client that brings `device` to both gateways, for as long as the context lasts.

    Raises NoTunnel when a device does not come, and in place of a CommandFailed from inside.
    """
    with log.open("wb") as output:
        client = sites.west.gateway.popen(
            call.argv, env=call.env, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    made = Tunnel(server, client, log, device)
    try:
        for site in (sites.west, sites.east):
            wait_until(partial(_settled, client, site.gateway, device), 15)
            if not site.gateway.has_device(device):
                raise NoTunnel(f"no {device} at the {site.gateway.name}\n{made.logs()}")
        yield made
    except CommandFailed as error:
        raise NoTunnel(f"{error}\n{made.logs()}") from error
    finally:
        end(client)


def _keygen(server_kind: ServerKind) -> Sequence[str]:
    """Nothing but Culvert is needed to show what Culvert does."""
    return [*CULVERT, "keygen"] if server_kind.name == "culvert" else ["ssh-keygen"]


@contextmanager
def tunnel(
    sites: Sites,
    folder: Path,
    client_kind: ClientKind,
    server_kind: ServerKind,
    *,
    mode: str = "point-to-point",
    algorithms: Algorithms = DEFAULT,
    client_options: Sequence[str] = (),
    server_options: Sequence[str] = (),
) -> Iterator[Tunnel]:
    """Connect the gateways, with addresses and routes, for as long as the context lasts.

    Raises NoTunnel when a device does not come, and in place of a CommandFailed from inside.
    """
    server, login = serve_tunnels(
        sites, folder, server_kind, mode, _keygen(server_kind), server_options
    )
    with server:
        device = DEVICES[mode]
        options = [f"-oTunnel={mode}", "-w", "0:0", "-N", *client_options]
        call = client_kind.invocation(server, login, None, algorithms, options)
        with _connection(sites, server, call, folder / "client.log", device) as made:
            sites.configure_tunnel(device, device)
            yield made


@contextmanager
def tunnels(
    sites: Sites, folder: Path, client_kind: ClientKind, server_kind: ServerKind, count: int
) -> Iterator[list[tuple[str, str]]]:
    """Connect the gateways `count` times, to one server, with a client and a device for each.

    Yields for each the two inner addresses whose packets take it, the western first. Raises
    NoTunnel as `tunnel` does.
    """
    server, login = serve_tunnels(
        sites, folder, server_kind, "point-to-point", _keygen(server_kind)
    )
    with server, ExitStack() as up:
        pairs = []
        for number in range(count):
            options = ["-oTunnel=point-to-point", "-w", f"{number}:{number}", "-N"]
            call = client_kind.invocation(server, login, None, DEFAULT, options)
            log = folder / f"client{number}.log"
            up.enter_context(_connection(sites, server, call, log, f"tun{number}"))
            pairs.append(sites.configure_link(number))
        yield pairs
