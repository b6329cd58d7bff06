"""Sites behind a router, each with Culvert's own folders, for tests of links between them."""

import contextlib
import hashlib
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from tests.netns import Namespace, wait_until
from tests.peers import CULVERT, Keyring, end, environment, mistake_in

PORT = 2222
OUTER = "outer"


class LinkedSite:
    """A machine of its own network behind the router: where `culvert` runs, with its folders."""

    def __init__(self, name: str, number: int, folder: Path, space: Namespace) -> None:
        self.name = name
        self.space = space
        self.folder = folder / name
        self.folder.mkdir()
        self.outer = f"192.0.{number}.2"
        self.gateway = f"192.0.{number}.1"
        self.inner = f"10.{number}.0.1"  # on a device of its own: the site's network
        self.network = f"10.{number}.0.0/24"
        self.env = environment(self.folder)
        self.links = self.folder / "links.toml"
        self.log = self.folder / "log"

    def culvert(self, *words: str, status: int | None = 0) -> str:
        """Run an applet inside and return all that it wrote; `status` is the one expected."""
        done = subprocess.run(
            self.space.command([*CULVERT, *words]),
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        text = done.stdout + done.stderr
        assert not mistake_in(text)
        assert status is None or done.returncode == status, f"{words}: {text}\n{self.said()}"
        return text

    def start_with(self, files: Mapping[str, Path], *words: str) -> subprocess.Popen[bytes]:
        """Start an applet inside that finds others of the system's files: those of `files`."""
        mounts = "".join(f"mount --bind {path} {place} && " for place, path in files.items())
        argv = ["unshare", "-m", "sh", "-c", f"{mounts}exec {shlex.join([*CULVERT, *words])}"]
        with self.log.open("ab") as log:
            return self.space.popen(
                argv, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start an applet inside that stays; its messages go to the site's log."""
        with self.log.open("ab") as log:
            return self.space.popen(
                [*CULVERT, *words], env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def said(self) -> str:
        """What the site's programs that stay have said."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def snapshot(self) -> str:
        """Everything of the machine's network that a link may change."""
        return "\n".join(
            self.space.run(*words)
            for words in (
                ("ip", "address"),
                ("ip", "route", "show", "table", "all"),
                ("ip", "-6", "route", "show", "table", "all"),
                ("ip", "rule"),
                ("nft", "list", "ruleset"),
                ("sysctl", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"),
            )
        ).replace(" dynamic ", " ")

    def keepers(self) -> list[int]:
        """The processes that hold copies of kill switches."""
        return [pid for pid in self.space.processes() if "links.keeper" in _command_line(pid)]

    def is_quiet(self) -> bool:
        """Whether nothing runs here, but perhaps a keeper of kill switches."""
        return self.space.processes() == self.keepers()

    def reaches(self, address: str) -> bool:
        """Whether a ping is answered."""
        return self.space.ping(address)


def _command_line(pid: int) -> str:
    """What a process was called with; '' if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


class Routed:
    """Sites in namespaces of their own, one router between all of them."""

    def __init__(self, folder: Path, names: Sequence[str] = ("west", "east")) -> None:
        self.folder = folder
        self.host_keys = Keyring(folder / "host-keys")
        self.user_keys = Keyring(folder / "user-keys")
        self.sites: dict[str, LinkedSite] = {}
        self._programs: list[subprocess.Popen[bytes]] = []
        with ExitStack() as undo:
            self.router = Namespace("router")
            undo.callback(self.router.close)
            self.router.forward()
            for number, name in enumerate(names, 1):
                space = Namespace(name)
                undo.callback(space.close)
                site = self.sites[name] = LinkedSite(name, number, folder, space)
                # connect() gives both ends one name, and the router has many
                space.ip("link", "add", OUTER, "type", "veth", "peer", "name", name, "netns",
                         self.router.path)  # fmt: skip
                for where, device, address in (
                    (space, OUTER, site.outer),
                    (self.router, name, site.gateway),
                ):
                    where.ip("address", "add", f"{address}/24", "dev", device)
                    where.ip("link", "set", device, "up")
                space.ip("route", "add", "default", "via", site.gateway)
                space.ip("link", "add", "inner", "type", "bridge")
                space.ip("address", "add", f"{site.inner}/24", "dev", "inner")
                space.ip("link", "set", "inner", "up")
            self._undo = undo.pop_all()

    def __getitem__(self, name: str) -> LinkedSite:
        return self.sites[name]

    def serve(self, name: str, more: str = "") -> subprocess.Popen[bytes]:
        """Start `culvert sshd` at a site, for root with the user key; `more` is of its file."""
        site = self[name]
        authorized = site.folder / "authorized"
        authorized.mkdir(mode=0o700, exist_ok=True)
        (authorized / "authorized_keys").write_text(f"{self.user_keys.public()}\n")
        (authorized / "authorized_keys").chmod(0o600)
        config = site.folder / "sshd.toml"
        config.write_text(
            f'listen = ["{PORT}"]\nhost_keys = ["{self.host_keys.key()}"]\n'
            f'authorized_keys_directory = "{authorized}"\npid_file = ""\n'
            f"per_source_penalties = false\n{more}\n"
        )
        program = site.start("sshd", "-F", "-E", "--config", str(config))
        self._programs.append(program)
        listening = f"listening on 0.0.0.0 port {PORT}"
        before = site.said().count(listening)
        assert wait_until(lambda: site.said().count(listening) > before or bool(program.poll()))
        assert program.poll() is None, site.said()
        return program

    def declare(self, name: str, *links: str) -> None:
        """Write links.toml of a site; each of `links` is the text of one."""
        self[name].links.write_text("\n".join(f"[[link]]\n{link}" for link in links))

    def link(self, to: str, more: str = "", name: str = "") -> str:
        """The text of a link to a site's server."""
        key = " ".join(self.host_keys.public().split()[:2])
        return (
            f'name = "{name or to}"\nhost = "{self[to].outer}"\nport = {PORT}\nuser = "root"\n'
            f'identity_file = "{self.user_keys.key()}"\nhost_key = "{key}"\n{more}\n'
        )

    def kill_all(self, name: str) -> None:
        """SIGKILL every process at a site, before any of them can see another one's end."""
        pids = self[name].space.processes()
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def close(self) -> list[str]:
        """End everything; returns the names of processes that should have ended before."""
        if self.router.descriptor < 0:
            return []
        for program in self._programs:
            end(program)
        left = []
        spaces = [site.space for site in self.sites.values()]
        wait_until(lambda: not any(space.processes() for space in spaces), 3)
        for space in spaces:
            for pid in space.processes():
                left.append(_command_line(pid))
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        self._undo.close()
        return left

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class Transfer:
    """Bytes that go from one site to another, slowly enough for something to happen meanwhile."""

    PIECE = 16 << 10

    def __init__(self, source: LinkedSite, target: LinkedSite, address: str, size: int) -> None:
        self._size = size
        self._digests: dict[str, str] = {}
        self._error: OSError | None = None
        self._hurry = threading.Event()
        self._listening = target.space.inside(lambda: socket.create_server((address, 0)))
        self._address = self._listening.getsockname()
        self.sent = 0
        self._socket = source.space.inside(
            lambda: socket.create_connection(self._address, timeout=10)
        )
        self._socket.settimeout(None)
        self._threads = [threading.Thread(target=work) for work in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        digest = hashlib.sha256()
        try:
            with self._socket:
                while self.sent < self._size:
                    piece = os.urandom(self.PIECE)
                    self._socket.sendall(piece)
                    digest.update(piece)
                    self.sent += len(piece)
                    self._hurry.wait(0.005)
        except OSError as error:
            self._error = error
        self._digests["sent"] = digest.hexdigest()

    def _receive(self) -> None:
        digest = hashlib.sha256()
        with self._listening:
            sock, _ = self._listening.accept()
        try:
            with sock:
                while data := sock.recv(1 << 16):
                    digest.update(data)
        except OSError as error:
            self._error = error
        self._digests["received"] = digest.hexdigest()

    def finish(self, timeout: float = 60) -> None:
        """Let the rest go at full speed; the checksums of both ends must agree."""
        began = self.sent
        self._hurry.set()
        for thread in self._threads:
            thread.join(timeout)
        alive = any(thread.is_alive() for thread in self._threads)
        if alive:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        assert not alive, f"the transfer stands at {self.sent} of {self._size}, after {began}"
        assert self._error is None, self._error
        assert self._digests["sent"] == self._digests["received"]
        assert self.sent == self._size


@contextlib.contextmanager
def transfer(
    source: LinkedSite, target: LinkedSite, address: str, size: int = 64 << 20
) -> Iterator[Transfer]:
    """A transfer that has begun, and ends with the context."""
    going = Transfer(source, target, address, size)
    try:
        assert wait_until(lambda: going.sent > Transfer.PIECE * 20)
        yield going
        going.finish()
    finally:
        going._hurry.set()


def pause(seconds: float) -> None:
    """Let time pass in which something is broken."""
    time.sleep(seconds)
