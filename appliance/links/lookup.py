"""Looks a name up in a child without privileges, as the user whom a kill switch lets ask.

What a name server answers is read by the system's library, in which holes have been found before:
no process of root's runs it. What comes back is checked here, and proves nothing yet: a resolver
may lie.
"""

import contextlib
import os
import pwd
import select
import signal
import socket
import time
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from .. import log
from ..process import sandbox
from ..services.tunnel.resolver import RESOLVED

_RESOLVERS: Final = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")

# Our own choices
SECONDS: Final = 30.0  # that it may take; the system's resolver asks each server for 5, twice
ADDRESSES_LIMIT: Final = 16  # of one name
_ANSWER: Final = 4096  # bytes


def look_up(host: str, port: int, identity: sandbox.SandboxUser | None) -> list[str]:
    """The addresses of a name, none if it has none that can be found out. It blocks."""
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0):
        try:
            pid = os.fork()
        except OSError:
            os.close(writer)
            return []
        if pid == 0:
            _answer(host, port, identity, writer)
        os.close(writer)
        try:
            text = _read(reader)
        finally:
            os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
    return _checked(text)


def _read(pipe: int) -> bytes:
    """All that comes within SECONDS."""
    data = b""
    deadline = time.monotonic() + SECONDS
    while len(data) < _ANSWER:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            return b""
        if not (piece := os.read(pipe, _ANSWER)):
            break
        data += piece
    return data


def _checked(text: bytes) -> list[str]:
    try:
        return [str(ip_address(line)) for line in text.decode("ascii").split()]
    except ValueError:
        return []


def _answer(host: str, port: int, identity: sandbox.SandboxUser | None, writer: int) -> None:
    """The child: never returns."""
    try:
        sandbox.close_all_but({writer, *log.descriptors()})
        name = host.encode("idna")  # whose module that user may not be able to read
        sandbox.become(identity)
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        addresses = dict.fromkeys(str(address[0]).partition("%")[0] for *_, address in found)
        os.write(writer, "\n".join([*addresses][:ADDRESSES_LIMIT]).encode())
    except (OSError, UnicodeError):
        pass  # dialling says so
    finally:
        os._exit(0)


def name_servers() -> list[str]:
    """Those of the machine, behind a stub of systemd-resolved's as well; none of this machine."""
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


def stub_users() -> list[int]:
    """Who asks those name servers for everybody on this machine: systemd-resolved, if it runs."""
    if not RESOLVED.exists():
        return []
    try:
        return [pwd.getpwnam("systemd-resolve").pw_uid]
    except KeyError:
        return []
