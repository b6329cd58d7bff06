"""Looks a name up in a child process without privileges.

The child runs as the user whose DNS queries a kill switch permits. The system's library reads the
answers of name servers, and had security holes before, so no process of root runs it. The
addresses are checked here; they are not yet trusted, since a resolver may lie.
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
SECONDS: Final = 30.0  # for one look-up; the system's resolver waits 5 s for each server, twice
ADDRESSES_LIMIT: Final = 16  # of one name
_ANSWER: Final = 4096  # bytes


def look_up(host: str, port: int, identity: sandbox.SandboxUser | None) -> list[str]:
    """Returns the addresses of a name; none if the look-up fails. Blocks for up to SECONDS."""
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
    """Returns all bytes up to the end of the pipe; none if the end takes longer than SECONDS."""
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
    """Runs the child process; never returns."""
    try:
        sandbox.close_all_but({writer, *log.descriptors()})
        name = host.encode("idna")  # before become(): that user may be unable to read the module
        sandbox.become(identity)
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        addresses = dict.fromkeys(str(address[0]).partition("%")[0] for *_, address in found)
        os.write(writer, "\n".join([*addresses][:ADDRESSES_LIMIT]).encode())
    except (OSError, UnicodeError):
        pass  # the error of dialling reports it
    finally:
        os._exit(0)


def name_servers() -> list[str]:
    """Returns the machine's name servers, including those behind the stub of systemd-resolved.

    Loopback addresses are left out.
    """
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
    """Returns the user of systemd-resolved, which sends the machine's DNS queries, if it runs."""
    if not RESOLVED.exists():
        return []
    try:
        return [pwd.getpwnam("systemd-resolve").pw_uid]
    except KeyError:
        return []
