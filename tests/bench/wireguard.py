"""wireguard-go between the gateways of two sites: the other VPN whose packets a program carries.

Debian 12 has one of 2022, from before it moved packets in batches, so Debian 13's is taken on
both. It is fetched once from the machine's own mirror into the tree's `build`; the machine's
package lists and sources stay as they are.
"""

import functools
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from tests.netns import Sites, wait_until
from tests.peers import ROOT, Missing, end, environment, find_program
from tests.tunnels import NoTunnel

SUITE = "trixie"
PROGRAM = ROOT / "build/wireguard-go"
VERSION = ROOT / "build/wireguard-go.version"  # the package's: the program tells an older one
SOURCES = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
SOCKETS = Path("/var/run/wireguard")  # where `wg` looks for a program that is not the kernel

PORT = 51820
MTU = 1420  # bytes, as wg-quick sets it over an outer link of 1500
DEVICES = ("bench-west", "bench-east")  # the sockets of both stand in one folder
FETCH_TIMEOUT = 120  # seconds for each step


@functools.cache
def program() -> Path:
    """Return the program, fetched unless it is there. Raises Missing with the reason."""
    if not PROGRAM.exists():
        PROGRAM.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="apt-", dir=PROGRAM.parent) as folder:
            try:
                _fetch(Path(folder))
            except subprocess.CalledProcessError as error:
                raise Missing(f"wireguard-go: {error.stderr.strip().splitlines()[-1]}") from error
            except (OSError, subprocess.TimeoutExpired) as error:
                raise Missing(f"wireguard-go: {error}") from error
    return PROGRAM


def _fetch(folder: Path) -> None:
    """Take the package out of the Debian archive, with a state of apt's own in `folder`."""
    for name in ("lists/partial", "cache/archives/partial", "package"):
        (folder / name).mkdir(parents=True)
    sources = next((path for path in SOURCES if path.exists()), None)
    if sources is None:
        raise Missing("wireguard-go: apt has no source of Debian packages")
    own = folder / f"debian{sources.suffix}"  # apt tells the two formats by it
    own.write_text(_of_suite(sources.read_text()))
    config = folder / "apt.conf"
    config.write_text(
        f'Dir::State::lists "{folder}/lists";\n'
        f'Dir::Cache "{folder}/cache";\n'
        f'Dir::Etc::sourcelist "{own}";\n'
        'Dir::Etc::sourceparts "-";\n'
        'APT::Update::Error-Mode "any";\n'
        'APT::Sandbox::User "root";\n'  # apt's own user need not reach a tree in somebody's home
    )
    env = os.environ | {"APT_CONFIG": str(config)}
    for argv in (
        ("apt-get", "update", "-qq"),
        ("apt-get", "download", "-qq", "wireguard-go"),
        ("sh", "-c", "dpkg-deb -x *.deb . && dpkg-deb -f *.deb Version >version"),
    ):
        subprocess.run(
            argv,
            env=env,
            cwd=folder / "package",
            capture_output=True,
            text=True,
            timeout=FETCH_TIMEOUT,
            check=True,
        )
    (folder / "package/version").replace(VERSION)
    (folder / "package/usr/bin/wireguard-go").replace(PROGRAM)


def _of_suite(sources: str) -> str:
    """Return the entries of the machine's own release, of either format, for SUITE instead."""
    release = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.M)
    if release is None:
        raise Missing("wireguard-go: this is no release of Debian")
    name = release[1]
    if "Suites:" in sources:
        stanzas = re.split(r"\n\s*\n", sources)
        mine = [
            stanza for stanza in stanzas if re.search(rf"^Suites:.*\b{name}(\s|$)", stanza, re.M)
        ]
        return "\n\n".join(
            re.sub(r"^Suites:.*", f"Suites: {SUITE}", each, flags=re.M) for each in mine
        )
    entries = re.findall(rf"^(deb\s+(?:\[.*?\]\s+)?\S+)\s+{name}\s+(.*)", sources, re.M)
    return "".join(f"{start} {SUITE} {components}\n" for start, components in entries)


def version() -> str:
    """Return the program's name and version. Raises Missing."""
    program()
    return f"wireguard-go {VERSION.read_text().strip()}"


@contextmanager
def wireguard(sites: Sites, folder: Path) -> Iterator[list[int]]:
    """Connect the gateways, with addresses and routes; yield the ids of the two processes.

    Raises Missing, or NoTunnel with what the program said.
    """
    argv, wg = [str(program()), "--foreground"], find_program("wg")
    env = environment(folder, {"LOG_LEVEL": "error"})
    gateways = dict(zip(DEVICES, (sites.west, sites.east), strict=True))
    processes = []
    with ExitStack() as undo:
        for device, site in gateways.items():
            log = undo.enter_context((folder / device).open("wb"))
            process = site.gateway.popen(
                [*argv, device], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            undo.callback(end, process)
            processes.append(process.pid)
            if not wait_until(partial((SOCKETS / f"{device}.sock").exists)):
                raise NoTunnel((folder / device).read_text(errors="replace"))
        keys = {device: folder / f"{device}.key" for device in DEVICES}
        for key in keys.values():
            key.write_text(sites.west.gateway.run(wg, "genkey"))
        for device, site in gateways.items():
            (other,) = (name for name in DEVICES if name != device)
            public = sites.west.gateway.run("sh", "-c", f"{wg} pubkey <{keys[other]}").strip()
            own = ("listen-port", str(PORT), "private-key", str(keys[device]))
            endpoint = ("endpoint", f"{gateways[other].outer}:{PORT}")
            everything = ("allowed-ips", "0.0.0.0/0,::/0")
            site.gateway.run(wg, "set", device, *own, "peer", public, *endpoint, *everything)
            site.gateway.ip("link", "set", device, "mtu", str(MTU))
        sites.configure_tunnel(*DEVICES)
        yield processes
