"""Very many short connections to one running server, and then a look at what is left of them.

    python -m tests.soak [--seconds 600] [--at-once 8] [--seed 1]

Threads pick one *act* after another at random until the time is over. An act is a connection that
must work, one that must be refused, or one that is disturbed on purpose: cut at any byte, its
client killed, its monitor or worker killed. Afterwards the listener must be the process that it
was: no children, its descriptors, its memory; and neither files nor devices nor programs of any
connection are left. As root all of it happens in a network namespace of its own, with tunnels.
"""

import argparse
import contextlib
import os
import pwd
import random
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tests.netns import Namespace, wait_until
from tests.peers import (
    CLIENTS,
    SERVERS,
    Account,
    Keyring,
    Login,
    Missing,
    Server,
    ServerSettings,
    dropbear_key,
    end,
    environment,
    find_program,
    mistake_in,
    private_folder,
    start,
    temporary_account,
)
from tests.processes import descriptors, hide_shell_files

AT_ONCE = 8
WARM_UP = 3  # times each act, before the first look at the listener
QUIET = 15  # seconds that the last connections may take to go
CLIENT_TIMEOUT = 30  # seconds; a client that takes longer hangs
CUT_AFTER = 6000  # bytes: a login and a command have 4200 to 5400, both directions together
KILL_AFTER = 0.6  # seconds: a login takes about 0.2 here, more when eight are at it
CLIENTS_AT_WORK = ("openssh", "dbclient", "culvert")
MEMORY_BOUND = 1 << 20  # bytes that the listener may have more than after the warm-up

SERVER = """
max_startups = [100, 30, 200]   # who is cut counts until its monitor has noticed
per_source_max_startups = 200
per_source_penalty_exempt_list = ["127.0.0.0/8"]
"""


T = TypeVar("T")


class Failed(Exception):
    """An act did not go as it had to; the text says what there was instead."""


@dataclass(slots=True)
class State:
    """What can be seen of the listener and of what its connections made, at one moment."""

    children: set[int]
    descriptors: Counter[str]
    private: int  # bytes, what no other process has
    resident: int  # bytes
    files: set[str]  # below the server's folders for sockets and locks
    devices: set[str]
    programs: set[str]  # of the user who logs in


@dataclass(slots=True)
class Report:
    """How a soak went."""

    seed: int
    seconds: float = 0
    done: Counter[str] = field(default_factory=Counter)
    took: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # at most
    failures: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    before: State | None = None
    after: State | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def clean(self) -> bool:
        """Tell whether everything worked and nothing is left."""
        return not self.failures and not self.left

    def __str__(self) -> str:
        total = sum(self.done.values())
        lines = [f"{total} connections in {self.seconds:.0f} s (seed {self.seed})"]
        for name, count in sorted(self.done.items()):
            lines.append(f"  {count:6d}  {name} (slowest {self.took[name]:.1f} s)")
        if self.before is not None and self.after is not None:
            for name in ("private", "resident"):
                now, then = getattr(self.after, name), getattr(self.before, name)
                lines.append(
                    f"{name} memory of the listener: {now / 1024:.0f} KiB,"
                    f" {(now - then) / 1024:+.0f} since the warm-up"
                )
            lines.append(f"descriptors of the listener: {self.after.descriptors.total()}")
        lines += [f"FAILED: {text}" for text in self.failures[:20]]
        lines += [f"LEFT: {text}" for text in self.left]
        return "\n".join(lines)


# Ends that a connection can lead to


class Echo:
    """A port that says back what it hears, for forwards to lead to."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._listening = socket.create_server(address, backlog=200)
        self.port: int = self._listening.getsockname()[1]

    def serve(self) -> None:
        """Answer until `close`."""
        peers: set[socket.socket] = set()
        with contextlib.suppress(OSError):  # closed
            while True:
                for ready in select.select([self._listening, *peers], [], [])[0]:
                    if ready is self._listening:
                        peers.add(ready.accept()[0])
                        continue
                    try:
                        data = ready.recv(65536)
                        ready.sendall(data)
                    except OSError:
                        data = b""
                    if not data:
                        peers.discard(ready)
                        ready.close()
        for peer in peers:
            peer.close()

    def close(self) -> None:
        """End `serve`."""
        self._listening.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Close the port, once `serve` has ended."""
        self._listening.close()


def relay(listening: socket.socket, target: int, limit: int, reset: bool) -> None:
    """Carry one connection to a port of the loopback, and cut it after `limit` bytes.

    With `reset` both ends see a reset and not an end of file.
    """
    listening.settimeout(CLIENT_TIMEOUT)
    near = listening.accept()[0]
    with near, socket.socket() as far:
        far.connect(("127.0.0.1", target))
        other = {near: far, far: near}
        while limit > 0:
            for ready in select.select(list(other), [], [], CLIENT_TIMEOUT)[0]:
                try:
                    data = ready.recv(min(limit, 65536))
                    other[ready].sendall(data)
                except OSError:
                    data = b""
                limit = limit - len(data) if data else 0
        if reset:
            for end_ in (near, far):
                end_.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# Acts

Call = tuple[list[str], dict[str, str]]  # a command line, and its environment


class Soak:
    """One server, who logs in to it, and everything that can happen to a connection."""

    def __init__(
        self,
        server: Server,
        login: Login,
        stranger: Path,
        echo: Echo,
        folder: Path,
        root: Login | None,
        agent: Path,
        namespace: Namespace | None,
    ) -> None:
        """`folder` belongs to the user who logs in, `stranger` is a key that opens nothing, `root`
        may have tunnels, and `agent` is the socket of one."""
        self._server = server
        self._login = login
        self._stranger = stranger
        self._echo = echo
        self._folder = folder
        self._root = root
        self._namespace = namespace
        self._agent = agent
        self.acts: dict[str, Callable[[random.Random], None]] = {
            "command": self.command,
            "much data": self.much_data,
            "forward to a port": self.forward_out,
            "forward from a port": self.forward_in,
            "forward from a path": self.forward_path,
            "terminal": self.terminal,
            "wrong key": self.wrong_key,
            "unknown user": self.unknown_user,
            "cut at any byte": self.cut,
            "nonsense": self.nonsense,
            "client killed": self.client_killed,
            "monitor or worker killed": self.process_killed,
        }
        if root is not None:
            self.acts["tunnel"] = self.tunnel

    def _words(
        self,
        chance: random.Random,
        command: str | None,
        *options: str,
        client: str = "",
        login: Login | None = None,
    ) -> Call:
        kind = CLIENTS[client or chance.choice(CLIENTS_AT_WORK)]
        call = kind.invocation(self._server, login or self._login, command, options=options)
        argv = call.argv if self._namespace is None else self._namespace.command(call.argv)
        return argv, call.env | {"SSH_AUTH_SOCK": str(self._agent)}

    def _run(self, call: Call, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        argv, env = call
        try:
            return subprocess.run(
                argv, env=env, input=data, capture_output=True, timeout=CLIENT_TIMEOUT,
                check=False, start_new_session=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise Failed(f"hangs: {' '.join(argv)}") from error

    @contextlib.contextmanager
    def _running(self, call: Call) -> Iterator[subprocess.Popen[bytes]]:
        argv, env = call
        with subprocess.Popen(
            argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, start_new_session=True, bufsize=0,
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                process.kill()

    @staticmethod
    def _expect(done: subprocess.CompletedProcess[bytes], output: bytes, status: int = 0) -> None:
        if (done.returncode, done.stdout) != (status, output):
            said = done.stderr.decode(errors="replace").strip()
            raise Failed(
                f"status {done.returncode}, not {status}; output {done.stdout[:80]!r},"
                f" not {output[:80]!r}; {said[-600:]}; {' '.join(done.args)}"
            )

    def run(self, seconds: float, at_once: int, seed: int) -> Report:
        """Warm up, work, and compare what there is before and after."""
        dropbear_key(self._login.key or self._stranger)  # files that all clients share
        assert self._server.known_hosts.exists()
        report = Report(seed=seed)
        with ThreadPoolExecutor(at_once) as pool:
            chance = random.Random(seed)
            warming = [
                pool.submit(self._act, name, chance.randrange(2**32), report)
                for name in [*self.acts] * WARM_UP
            ]
        for future in warming:
            future.result()
        report.before = self.settle()
        report.done.clear()
        report.took.clear()
        began = time.monotonic()

        def work(number: int) -> None:
            chance = random.Random(f"{seed} {number}")
            while time.monotonic() < began + seconds:
                self._act(chance.choice([*self.acts]), chance.randrange(2**32), report)

        with ThreadPoolExecutor(at_once) as pool:
            working = [pool.submit(work, number) for number in range(at_once)]
        for future in working:
            future.result()
        report.seconds = time.monotonic() - began
        if self._server.process.poll() is not None:
            report.left.append(f"the server has ended:\n{self._server.log[-2000:]}")
            return report
        report.after = self.settle()
        report.left += left_of(report.before, report.after)
        for program in report.after.programs - report.before.programs:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(program.split()[0]), signal.SIGKILL)
        self._act("command", seed, report)
        if mistake := mistake_in(self._server.log):
            report.left.append(f"in the log: {mistake}")
        return report

    def _act(self, name: str, seed: int, report: Report) -> None:
        began = time.monotonic()
        try:
            self.acts[name](random.Random(seed))
        except (Failed, OSError, ValueError) as error:
            report.failures.append(f"{name}: {error!r}")
        with report.lock:
            report.done[name] += 1
            report.took[name] = max(report.took[name], time.monotonic() - began)

    # Those that must work

    def command(self, chance: random.Random) -> None:
        """A command's output and status."""
        number, status = chance.randrange(10**9), chance.randrange(100)
        done = self._run(self._words(chance, f"echo {number}; exit {status}"))
        self._expect(done, b"%d\n" % number, status)

    def much_data(self, chance: random.Random) -> None:
        """A megabyte there and back.

        Not by dbclient (2022.83), which at one time in a hundred does not notice the end of its
        input while much comes back, and then waits for ever; at OpenSSH's and Dropbear's servers
        as well.
        """
        data = chance.randbytes(1 << 20)
        self._expect(self._run(self._words(chance, "cat", client=self._sharp(chance)), data), data)

    def forward_out(self, chance: random.Random) -> None:
        """Standard input and output to a port of the server's."""
        data = chance.randbytes(10000)
        with self._running(
            self._words(
                chance, None, "-W", f"127.0.0.1:{self._echo.port}", client=self._sharp(chance)
            )
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(data)
            heard = self._read(process, len(data))
            if heard != data:
                raise Failed(f"{len(heard)} of {len(data)} bytes came back")

    @staticmethod
    def _read(process: subprocess.Popen[bytes], size: int) -> bytes:
        assert process.stdout is not None
        heard = b""
        until = time.monotonic() + CLIENT_TIMEOUT
        while len(heard) < size and (rest := until - time.monotonic()) > 0:
            if not select.select([process.stdout], [], [], rest)[0]:
                break
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                break
            heard += data
        return heard

    @staticmethod
    def _sharp(chance: random.Random) -> str:
        """A client that knows OpenSSH's options."""
        return chance.choice(("openssh", "culvert"))

    def forward_in(self, chance: random.Random) -> None:
        """A port of the server's leads to the echo here."""
        word = secrets.token_hex(8)
        for _ in range(5):
            port = chance.randrange(15000, 32000)
            options = ("-R", f"{port}:127.0.0.1:{self._echo.port}", "-oExitOnForwardFailure=yes")
            look = f"exec 3<>/dev/tcp/127.0.0.1/{port}; echo {word} >&3; head -n 1 <&3"
            done = self._run(
                self._words(chance, f"bash -c '{look}'", *options, client=self._sharp(chance))
            )
            if done.returncode != 255:  # or somebody has the port
                break
        self._expect(done, f"{word}\n".encode())

    def forward_path(self, chance: random.Random) -> None:
        """A path of the server's leads to the echo here, and is gone afterwards."""
        path = self._folder / f"r{secrets.token_hex(8)}"
        options = ("-R", f"{path}:127.0.0.1:{self._echo.port}", "-oExitOnForwardFailure=yes")
        done = self._run(
            self._words(chance, f"test -S {path} && echo in", *options, client=self._sharp(chance))
        )
        self._expect(done, b"in\n")
        if not wait_until(lambda: not path.exists(), 5):
            raise Failed(f"{path} is left of a connection that ended")

    def terminal(self, chance: random.Random) -> None:
        """A terminal, asked for by who has none."""
        client = self._sharp(chance)
        done = self._run(self._words(chance, "tty | cut -c 1-9; exit 3", "-tt", client=client))
        self._expect(done, b"/dev/pts/\r\n", 3)

    def tunnel(self, chance: random.Random) -> None:
        """A device at both ends, until the client is ended: ssh goes on for the tunnel's sake."""
        words = self._words(
            chance,
            "ip -o link show type tun | grep -q . && echo in; exec cat",
            "-w",
            "any:any",
            "-oExitOnForwardFailure=yes",
            client=self._sharp(chance),
            login=self._root,
        )
        with self._running(words) as process:
            if (line := self._read_line(process)) != b"in\n":
                raise Failed(f"no device, but {line!r}")
            process.terminate()
            try:
                process.wait(CLIENT_TIMEOUT)
            except subprocess.TimeoutExpired as error:
                raise Failed("a client with a tunnel does not end on SIGTERM") from error

    # Those that must be refused

    def wrong_key(self, chance: random.Random) -> None:
        """Nobody comes in with a key that nobody has authorized."""
        login = Login(self._login.account, self._stranger)
        done = self._run(self._words(chance, "echo in", client=self._sharp(chance), login=login))
        self._expect(done, b"", 255)

    def unknown_user(self, chance: random.Random) -> None:
        """Nor who has no account."""
        login = Login(Account(f"no-{secrets.token_hex(4)}", Path("/")), self._login.key)
        done = self._run(self._words(chance, "echo in", client=self._sharp(chance), login=login))
        self._expect(done, b"", 255)

    # Those that are disturbed

    def _inside(self, work: Callable[[], T]) -> T:
        return work() if self._namespace is None else self._namespace.inside(work)

    def cut(self, chance: random.Random) -> None:
        """A login that ends at some byte, of either direction."""
        limit, reset = chance.randrange(CUT_AFTER), chance.random() < 0.5
        with self._inside(lambda: socket.create_server(("127.0.0.1", 0))) as listening:
            alias = f"-oHostKeyAlias={self._server.address}"
            argv, env = self._words(chance, "echo in", alias, client=self._sharp(chance))
            argv[argv.index("-p") + 1] = str(listening.getsockname()[1])
            with self._running((argv, env)):
                self._inside(lambda: relay(listening, self._server.port, limit, reset))

    def nonsense(self, chance: random.Random) -> None:
        """Bytes that are no SSH, or begin like it."""
        start_ = chance.choice((b"", b"SSH-2.0-soak\r\n", b"GET / HTTP/1.1\r\n\r\n"))
        with (
            self._inside(
                lambda: socket.create_connection(("127.0.0.1", self._server.port), CLIENT_TIMEOUT)
            ) as sock,
            contextlib.suppress(ConnectionError),
        ):
            sock.sendall(start_ + chance.randbytes(chance.randrange(3000)))
            if chance.random() < 0.5:
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass

    def client_killed(self, chance: random.Random) -> None:
        """A client that is killed at some moment, with whatever it has there."""
        path = self._folder / f"k{secrets.token_hex(8)}"
        services: list[tuple[str, ...]] = [
            ("exec sleep 3600", "-tt"),  # without a terminal it would go on, as from OpenSSH
            ("cat /dev/zero",),
            ("exec cat", "-R", f"{path}:127.0.0.1:{self._echo.port}"),
            ("exec cat", "-A"),
            ("exec cat", "-tt"),
        ]
        command, *options = chance.choice(services)
        login = None
        if self._root is not None and chance.random() < 0.2:
            command, options, login = "exec cat", ["-w", "any:any"], self._root
        words = self._words(chance, command, *options, client=self._sharp(chance), login=login)
        with self._running(words) as process:
            if command == "cat /dev/zero":
                self._read(process, chance.randrange(1 << 20))
            else:
                time.sleep(chance.random() * KILL_AFTER)

    def process_killed(self, chance: random.Random) -> None:
        """A process of the server's for one connection; its client must notice."""
        options: list[str] = []
        if worker := chance.random() < 0.5:  # the monitor then takes the path away
            path = self._folder / f"p{secrets.token_hex(8)}"
            options = ["-R", f"{path}:127.0.0.1:{self._echo.port}"]
        words = self._words(chance, "echo $PPID; exec cat", *options, client=self._sharp(chance))
        with self._running(words) as process:
            assert process.stdout is not None
            monitor = int(self._read_line(process))
            if monitor not in children(self._server.process.pid):
                raise Failed(f"the parent of a program is process {monitor}, no monitor")
            victim = children(monitor)[0] if worker else monitor
            os.kill(victim, chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)))
            try:
                process.wait(CLIENT_TIMEOUT)
            except subprocess.TimeoutExpired as error:
                who = "worker" if worker else "monitor"
                raise Failed(f"the client of a killed {who} waits for ever") from error

    def _read_line(self, process: subprocess.Popen[bytes]) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            data = self._read(process, 1)
            if not data:
                raise Failed(f"no line from the server, but {line!r}")
            line += data
        return line

    # The look at the server

    def look(self) -> State:
        """Return what there is to see now."""
        pid = self._server.process.pid
        memory = Path(f"/proc/{pid}/smaps_rollup").read_text()
        figures = {line.split()[0]: line.split()[1] for line in memory.splitlines()[1:]}
        folders = [self._server.folder / "run", self._server.folder / "state", self._folder]
        files = {str(path) for folder in folders for path in folder.rglob("*")}
        # The lock of a device's number stays for the next who has that number.
        files = {path for path in files if "/run/tunnels/" not in path}
        uid = self._folder.stat().st_uid
        if uid != os.geteuid():
            files |= {str(path) for path in Path("/tmp").glob("ssh-*") if _owner(path) == uid}
        return State(
            children=set(children(pid)),
            # for sockets and pipes, that it is one
            descriptors=Counter(to.partition(":[")[0] for to in descriptors(pid).values()),
            private=1024 * (int(figures["Private_Clean:"]) + int(figures["Private_Dirty:"])),
            resident=1024 * int(figures["Rss:"]),
            files=files,
            devices=set() if self._namespace is None else self._namespace.devices(),
            programs=set(_programs(uid)) if uid != os.geteuid() else set(),
        )

    def settle(self) -> State:
        """Wait until no connection is left, or as long as one may take, and look."""
        wait_until(lambda: not (state := self.look()).children and not state.programs, QUIET)
        return self.look()


def children(pid: int) -> list[int]:
    """Return the process ids of a process's children, the oldest first."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _owner(path: Path) -> int:
    try:
        return path.stat().st_uid
    except FileNotFoundError:
        return -1


def _programs(uid: int) -> Iterator[str]:
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if entry.stat().st_uid == uid:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if words:  # which a process that has ended has not
                    yield f"{entry.name} {words}"


def left_of(before: State, after: State) -> Iterator[str]:
    """Name what there is after a run that was not there before."""
    for what in ("children", "files", "devices", "programs"):
        for item in sorted(map(str, getattr(after, what) - getattr(before, what))):
            yield f"{what}: {item}"
    if after.descriptors != before.descriptors:
        yield f"descriptors: {after.descriptors} after {before.descriptors}"
    for what in ("private", "resident"):
        now, then = getattr(after, what), getattr(before, what)
        if now - then > MEMORY_BOUND:
            yield f"{what} memory: {now} bytes after {then}"


# A run


def run(seconds: float, at_once: int = AT_ONCE, seed: int | None = None) -> Report:
    """Serve and disturb for so many seconds. Raises Missing for a program that is not here."""
    seed = random.randrange(2**32) if seed is None else seed
    for name in ("openssh", "dbclient"):
        CLIENTS[name].require()
    is_root = os.geteuid() == 0
    with ExitStack() as undo:
        folder = undo.enter_context(private_folder("soak"))
        folder.chmod(0o755)
        account = Account.current()
        namespace = root = None
        if is_root:
            account = undo.enter_context(temporary_account(f"culvert-soak-{os.getpid()}"))
            if os.access("/dev/net/tun", os.R_OK | os.W_OK):
                namespace = undo.enter_context(contextlib.closing(Namespace("soak")))
        keys, host_keys = Keyring(folder / "keys"), Keyring(folder / "host-keys")
        stranger = Keyring(folder / "stranger").key()
        authorized = folder / "authorized" / "authorized_keys"
        authorized.parent.mkdir(mode=0o755)
        authorized.write_text(f"{keys.public()}\n")
        authorized.chmod(0o644)
        config = folder / "sshd.toml"
        config.write_text(SERVER)
        login = Login(account, keys.key())
        if namespace is not None:
            root = Login(Account.current(), keys.key())
        place = folder / "there"
        place.mkdir()
        entry = pwd.getpwnam(account.name)
        os.chown(place, entry.pw_uid, entry.pw_gid)

        agent = folder / "agent"
        agent_process = subprocess.Popen(
            [find_program("ssh-agent"), "-D", "-a", str(agent)],
            env=environment(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        undo.callback(end, agent_process)

        settings = ServerSettings(
            host_keys=[host_keys.key()],
            authorized_keys=authorized,
            permit_tunnel="point-to-point" if root else "no",
            namespace=namespace,
            options=("--config", str(config)),
        )
        server = undo.enter_context(start(SERVERS["culvert"], settings, folder / "server"))

        def listen() -> Echo:
            return Echo(("127.0.0.1", 0))

        echo = listen() if namespace is None else namespace.inside(listen)
        undo.callback(echo.release)
        answering = undo.enter_context(ThreadPoolExecutor(1))
        undo.callback(echo.close)
        answering.submit(echo.serve)
        soak = Soak(server, login, stranger, echo, place, root, agent, namespace)
        report = soak.run(seconds, at_once, seed)
        server.stop()
        if namespace is not None and not wait_until(lambda: not namespace.processes(), QUIET):
            report.left.append(f"processes outlive the server: {namespace.processes()}")
        return report


def main() -> int:
    """Run as long as the command line says, and print what there was."""
    hide_shell_files()
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--at-once", type=int, default=AT_ONCE)
    parser.add_argument("--seed", type=int, help="for the same choices once more")
    chosen = parser.parse_args()
    try:
        report = run(chosen.seconds, chosen.at_once, chosen.seed)
    except Missing as error:
        print(error, file=sys.stderr)
        return 2
    print(report)
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
