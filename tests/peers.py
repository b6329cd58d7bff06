"""The SSH programs that Culvert meets, real ones and Culvert itself, behind one interface.

A *server kind* turns `ServerSettings` into a command line, and `start` runs it until `Server.stop`.
A *client kind* turns a server, a `Login`, a remote command and `Algorithms` into a command line
and an environment; `Client.run` runs it to its end. Tests, benchmark and demonstration take the
kind as a parameter, so each of their steps can be tried with OpenSSH at both ends.

Nothing here reads or writes the files of the user who runs it: every program gets an environment
of its own, with a temporary home.
"""

import contextlib
import fcntl
import functools
import os
import pwd
import random
import secrets
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from appliance.crypto.key_exchange import METHODS
from tests.netns import Namespace, wait_until

ROOT = Path(__file__).resolve().parent.parent
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

START_TIMEOUT = 20  # seconds until a server must listen
RUN_TIMEOUT = 60  # seconds that a client may take unless its test says more

_script = Path(sys.executable).with_name("culvert")
CULVERT = [str(_script)] if _script.exists() else [sys.executable, "-m", "appliance"]


SFTP_SERVER = "/usr/lib/openssh/sftp-server"  # OpenSSH's, as Debian has it


class Missing(Exception):
    """A program that a peer needs is not installed; the text names it."""


def find_program(name: str) -> str:
    """Return the path of a program, also where only root's PATH leads. Raises Missing."""
    path = shutil.which(name, path=PATH)
    if path is None:
        raise Missing(f"{name} is not installed")
    return path


def environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the whole environment for a program whose home directory is `home`."""
    own = {"PATH": PATH, "HOME": str(home), "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT)}
    own |= {"RUNTIME_DIRECTORY": str(home / "run"), "STATE_DIRECTORY": str(home / "state")}
    return own | dict(extra or {})


@contextlib.contextmanager
def private_folder(name: str) -> Iterator[Path]:
    """Make a folder for keys, and remove it afterwards.

    Servers refuse keys below a folder that others may write, as /tmp is; so it is made in /run, or
    wherever else this user has a place of their own.
    """
    own = [os.environ.get("XDG_RUNTIME_DIR", ""), str(Path.home())]
    places = ["/run", *filter(None, own)]
    place = next(place for place in places if os.access(place, os.W_OK | os.X_OK))
    with tempfile.TemporaryDirectory(prefix=f"culvert-{name}-", dir=place) as folder:
        yield Path(folder)


# Accounts and keys


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine who can log in; `password` is empty where it is not known."""

    name: str
    home: Path
    password: str = ""

    @classmethod
    def current(cls) -> Self:
        """Return the account that runs this process."""
        entry = pwd.getpwuid(os.geteuid())
        return cls(entry.pw_name, Path(entry.pw_dir))

    def authorize(self, lines: Sequence[str]) -> None:
        """Make `lines` this account's authorized_keys. Only for accounts made by `temporary`."""
        folder = self.home / ".ssh"
        path = folder / "authorized_keys"
        entry = pwd.getpwnam(self.name)
        folder.mkdir(mode=0o700, exist_ok=True)
        path.write_text("".join(f"{line.strip()}\n" for line in lines))
        for item in (folder, path):
            os.chown(item, entry.pw_uid, entry.pw_gid)

    def change(self, *argv: str) -> None:
        """Run chage or usermod on this account. Only for accounts made by `temporary`."""
        with _user_database():
            _call(*argv, self.name)


@contextlib.contextmanager
def _user_database() -> Iterator[None]:
    """Keep useradd and userdel of parallel test processes from meeting each other's lock."""
    with open(Path(tempfile.gettempdir()) / "culvert-user-database.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _call(*argv: str, text: str = "") -> str:
    done = subprocess.run(
        [find_program(argv[0]), *argv[1:]], input=text, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr or done.stdout}")
    return done.stdout


@contextlib.contextmanager
def temporary_account(name: str) -> Iterator[Account]:
    """Make a user with a home and a random password (as root), and remove it afterwards."""
    with _user_database():
        with contextlib.suppress(RuntimeError):  # one left by a run that was killed
            _call("userdel", "--remove", name)
        _call("useradd", "--create-home", "--shell", "/bin/sh", name)
    try:
        password = secrets.token_hex(8)
        with _user_database():
            _call("chpasswd", text=f"{name}:{password}\n")
        yield Account(name, Path(pwd.getpwnam(name).pw_dir), password)
    finally:
        with _user_database(), contextlib.suppress(RuntimeError):
            _call("userdel", "--force", "--remove", name)


# What ssh-keygen is told for each type; the file of a type is `Keyring.key(type)`.
KEY_TYPES: dict[str, tuple[str, ...]] = {
    "ssh-ed25519": ("-t", "ed25519"),
    "ecdsa-sha2-nistp256": ("-t", "ecdsa", "-b", "256"),
    "ecdsa-sha2-nistp384": ("-t", "ecdsa", "-b", "384"),
    "ecdsa-sha2-nistp521": ("-t", "ecdsa", "-b", "521"),
    "ssh-rsa": ("-t", "rsa", "-b", "3072"),
}


class Keyring:
    """A folder of private keys, one of each type asked for, made when first asked for.

    ssh-keygen makes them (`keygen` exchanges it); Dropbear's and PuTTY's formats are made from
    those.
    """

    def __init__(self, folder: Path, keygen: Sequence[str] = ("ssh-keygen",)) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._keygen = list(keygen)

    def _run(self, *argv: str) -> None:
        done = subprocess.run(
            argv, env=environment(self.folder), capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(argv)}: {done.stderr or done.stdout}")

    def key(self, key_type: str = "ssh-ed25519") -> Path:
        """Return the private key file of a type, in OpenSSH's format; its public half is .pub."""
        path = self.folder / key_type
        if not path.exists():
            options = KEY_TYPES[key_type]
            self._run(*self._keygen, "-q", *options, "-N", "", "-C", key_type, "-f", str(path))
        return path

    def keys(self, key_types: Iterable[str] = KEY_TYPES) -> list[Path]:
        """Return a private key file of each type."""
        return [self.key(key_type) for key_type in key_types]

    def public(self, key_type: str = "ssh-ed25519") -> str:
        """Return the public key of a type as a line of authorized_keys."""
        self.key(key_type)
        return (self.folder / f"{key_type}.pub").read_text().strip()

    def fingerprint(self, key_type: str) -> str:
        """Return the fingerprint of a type's key, as SHA256:..."""
        return _call("ssh-keygen", "-lf", str(self.key(key_type))).split()[1]


def dropbear_key(key: Path) -> Path:
    """Return a copy of an OpenSSH private key in Dropbear's format."""
    path = key.with_name(f"{key.name}.dropbear")
    if not path.exists():
        _call("dropbearconvert", "openssh", "dropbear", str(key), str(path))
    return path


def putty_key(key: Path) -> Path:
    """Return a copy of an OpenSSH private key in PuTTY's format."""
    path = key.with_name(f"{key.name}.ppk")
    if not path.exists():
        _call("puttygen", str(key), "-O", "private", "-o", str(path))
    return path


# Servers


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a test may ask of any server."""

    host_keys: Sequence[Path]
    address: str = "127.0.0.1"
    authorized_keys: Path | None = None  # None: the accounts' own
    passwords: bool = False
    keyboard_interactive: bool = False
    permit_tunnel: str = "no"
    namespace: Namespace | None = None
    accounts: Sequence[Account] = ()  # AsyncSSH has to be told the passwords
    options: Sequence[str] = ()  # more words for the command line


class ServerKind(ABC):
    """How one SSH server is started."""

    name: str
    program: str

    def require(self) -> None:
        """Raise Missing when this server cannot run here."""
        find_program(self.program)

    @abstractmethod
    def command(self, settings: ServerSettings, port: int, folder: Path) -> list[str]:
        """Return the command line that serves in the foreground and logs to standard error."""

    def __repr__(self) -> str:
        return self.name


class OpenSshServer(ServerKind):
    """sshd of OpenSSH, with a configuration of its own."""

    name = "openssh"
    program = "sshd"

    def command(self, settings: ServerSettings, port: int, folder: Path) -> list[str]:
        keys = settings.authorized_keys or ".ssh/authorized_keys"
        pam = settings.keyboard_interactive
        lines = [
            f"ListenAddress {settings.address}",
            f"Port {port}",
            *(f"HostKey {key}" for key in settings.host_keys),
            f"AuthorizedKeysFile {keys}",
            f"PidFile {folder / 'sshd.pid'}",
            f"PasswordAuthentication {_yes(settings.passwords)}",
            f"KbdInteractiveAuthentication {_yes(pam)}",
            f"UsePAM {_yes(pam)}",
            f"PermitTunnel {settings.permit_tunnel}",
            "PermitRootLogin yes",
            "StrictModes no",
            "AcceptEnv LANG LC_* CULVERT_*",
            "MaxStartups 100",
            "PrintMotd no",
            # Asked for by tests; since OpenSSH 10 the server does not offer them by itself.
            "KexAlgorithms +diffie-hellman-group16-sha512,diffie-hellman-group14-sha256",
            "LogLevel VERBOSE",
            "Subsystem echo /bin/cat",
        ]
        if not any("Subsystem" in option for option in settings.options):
            lines.append(f"Subsystem sftp {SFTP_SERVER}")
        if _openssh_version() >= (9, 8):
            lines.append("PerSourcePenalties no")  # tests fail to log in on purpose
        config = folder / "sshd_config"
        config.write_text("".join(f"{line}\n" for line in lines))
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's privilege separation
        return [find_program("sshd"), "-D", "-e", "-f", str(config), *settings.options]


@functools.cache
def _openssh_version() -> tuple[int, ...]:
    done = subprocess.run([find_program("ssh"), "-V"], capture_output=True, text=True, check=True)
    version = done.stderr.partition("_")[2].partition("p")[0]
    return tuple(int(part) for part in version.split("."))


class DropbearServer(ServerKind):
    """dropbear of Debian. It reads each account's own authorized_keys only, and takes 4 keys."""

    name = "dropbear"
    program = "dropbear"

    def command(self, settings: ServerSettings, port: int, folder: Path) -> list[str]:
        argv = [find_program("dropbear"), "-F", "-E", "-p", _listen(settings.address, port)]
        for key in settings.host_keys:
            argv += ["-r", str(dropbear_key(key))]
        if not settings.passwords:
            argv.append("-s")
        return [*argv, "-P", str(folder / "dropbear.pid"), *settings.options]


class CulvertServer(ServerKind):
    """culvert sshd."""

    name = "culvert"
    program = CULVERT[0]

    def command(self, settings: ServerSettings, port: int, folder: Path) -> list[str]:
        argv = [*CULVERT, "sshd", "-F", "-E", "-p", _listen(settings.address, port)]
        for key in settings.host_keys:
            argv += ["-r", str(key)]
        if not (settings.passwords or settings.keyboard_interactive):
            argv.append("-s")
        if settings.authorized_keys is not None:
            argv += ["-D", str(settings.authorized_keys.parent)]
        if settings.permit_tunnel != "no":
            argv += ["--permit-tunnel", settings.permit_tunnel]
        if not {"--config", "--profile"} & {*settings.options}:
            # for the matrix of peers: finite fields are not among those that it offers by itself
            config = folder / "sshd.toml"
            config.write_text(f"kex_algorithms = {[*METHODS]}\n")
            argv += ["--config", str(config)]
        return [*argv, "-P", str(folder / "culvert.pid"), *settings.options]


class AsyncSshServer(ServerKind):
    """A server written with AsyncSSH: tests/interop/asyncssh_server.py."""

    name = "asyncssh"
    program = sys.executable

    def command(self, settings: ServerSettings, port: int, folder: Path) -> list[str]:
        argv = [sys.executable, "-m", "tests.interop.asyncssh_server"]
        argv += ["--address", settings.address, "--port", str(port)]
        for key in settings.host_keys:
            argv += ["--host-key", str(key)]
        for account in settings.accounts:
            keys = settings.authorized_keys or account.home / ".ssh/authorized_keys"
            argv += ["--account", account.name, account.password, str(keys)]
        return [*argv, *settings.options]


SERVERS = {
    kind.name: kind
    for kind in (OpenSshServer(), DropbearServer(), CulvertServer(), AsyncSshServer())
}


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _listen(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@dataclass(slots=True)
class Server:
    """A running server; `stop` ends it."""

    kind: ServerKind
    settings: ServerSettings
    port: int
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        """The address to connect to."""
        return self.settings.address

    @property
    def log(self) -> str:
        """What the server has written so far."""
        return (self.folder / "log").read_text(errors="replace")

    @property
    def known_hosts(self) -> Path:
        """A known_hosts file with this server's keys, under the name and under [name]:port."""
        path = self.folder / ".ssh/known_hosts"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            names = f"[{self.address}]:{self.port}", self.address
            keys = [Path(f"{key}.pub").read_text().split()[:2] for key in self.settings.host_keys]
            path.write_text(
                "".join(f"{name} {kind} {key}\n" for name in names for kind, key in keys)
            )
        return path

    def stop(self) -> None:
        """End the server and wait for it, and fail where ours says that it made a mistake."""
        end(self.process)
        if self.kind.program == CULVERT[0]:
            assert not mistake_in(self.log)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def mistake_in(text: str) -> str:
    """What a program of ours never writes, with the lines around it; '' if it did not."""
    for word in ("Traceback", "the worker failed", "the monitor failed"):
        if (place := text.find(word)) >= 0:
            return text[max(0, place - 200) : place + 1500]
    return ""


def end(process: subprocess.Popen[bytes], patience: float = 5) -> None:
    """End a process and wait for it; kill it when it takes longer than `patience` seconds."""
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """Return a port of the loopback that nobody uses, below those the kernel hands out itself."""
    while True:
        port = random.randrange(15000, 32000)
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def start(kind: ServerKind, settings: ServerSettings, folder: Path, port: int = 0) -> Server:
    """Start a server and wait until it listens. Raises Missing, or RuntimeError with its log."""
    kind.require()
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    argv = kind.command(settings, port, folder)
    if settings.namespace is not None:
        argv = settings.namespace.command(argv)
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(folder),
            cwd=folder,
        )
    server = Server(kind, settings, port, folder, process)

    def settled() -> bool:
        return process.poll() is not None or _listens(process.pid, port)

    if not wait_until(settled, START_TIMEOUT) or process.poll() is not None:
        server.stop()
        raise RuntimeError(f"{kind.name} did not start: {' '.join(argv)}\n{server.log}")
    return server


def _listens(pid: int, port: int) -> bool:
    """Tell whether something listens on `port` in the network namespace of `pid`.

    Asking the kernel, and not connecting, keeps the server's log and its limits untouched.
    """
    wanted = f":{port:04X}"
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                words = line.split()
                if words[1].endswith(wanted) and words[3] == "0A":
                    return True
    return False


@contextlib.contextmanager
def ssh_agent(path: Path) -> Iterator[Path]:
    """Run OpenSSH's agent at `path`, without keys, until the end."""

    def answers() -> bool:
        """Whether it listens, too: its file is there before."""
        with socket.socket(socket.AF_UNIX) as sock:
            return sock.connect_ex(str(path)) == 0

    argv = [find_program("ssh-agent"), "-D", "-a", str(path)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    try:
        assert wait_until(answers, 10)
        yield path
    finally:
        end(process)


# Clients


@dataclass(frozen=True, slots=True)
class Algorithms:
    """What a client offers; None leaves the program's own list."""

    kex: str | None = None
    host_key: str | None = None
    cipher: str | None = None
    mac: str | None = None
    compression: bool = False
    rekey_bytes: int | None = None


DEFAULT = Algorithms()


@dataclass(frozen=True, slots=True)
class Login:
    """Who logs in, and how."""

    account: Account
    key: Path | None = None  # a private key in OpenSSH's format
    method: str = "publickey"
    passphrase: str = ""  # of the key

    @property
    def user(self) -> str:
        """The user's name."""
        return self.account.name


def write_ssh_config(folder: Path, server: Server, login: Login, port: int = 0) -> Path:
    """Write an ssh_config in which 'there' is the server, or a relay's port that leads to it."""
    config, known = folder / "config", folder / "known"
    config.write_text(
        f"Host there\n HostName {server.address}\n Port {port or server.port}\n"
        f" User {login.user}\n IdentityFile {login.key}\n IdentitiesOnly yes\n BatchMode yes\n"
        f" HostKeyAlias there\n UserKnownHostsFile {known}\n GlobalKnownHostsFile /dev/null\n"
    )
    key = " ".join(server.known_hosts.read_text().split()[1:3])
    known.write_text(f"there {key}\n")
    return config


@dataclass(frozen=True, slots=True)
class Invocation:
    """A client's command line with its whole environment."""

    argv: list[str]
    env: dict[str, str]


@dataclass(frozen=True, slots=True)
class Result:
    """How a client's run ended; a negative status is the signal that killed it."""

    status: int
    stdout: bytes
    stderr: str


class ClientKind(ABC):
    """How one SSH client is told what to do."""

    name: str
    program: str

    def require(self) -> None:
        """Raise Missing when this client cannot run here."""
        find_program(self.program)

    @abstractmethod
    def invocation(
        self,
        server: Server,
        login: Login,
        command: str | None,
        algorithms: Algorithms = DEFAULT,
        options: Sequence[str] = (),
    ) -> Invocation:
        """Return how to run `command` on the server; `options` are the program's own words."""

    def run(
        self,
        server: Server,
        login: Login,
        command: str | None,
        algorithms: Algorithms = DEFAULT,
        options: Sequence[str] = (),
        *,
        data: bytes = b"",
        timeout: float = RUN_TIMEOUT,
    ) -> Result:
        """Run `command` on the server with `data` as its standard input, to the end."""
        self.require()
        call = self.invocation(server, login, command, algorithms, options)
        done = subprocess.run(
            call.argv,
            input=data,
            env=call.env,
            capture_output=True,
            timeout=timeout,
            check=False,
            start_new_session=True,  # nobody finds a terminal to ask
        )
        stderr = done.stderr.decode(errors="replace")
        if self.program == CULVERT[0]:
            assert not mistake_in(stderr)
        return Result(done.returncode, done.stdout, stderr)

    def __repr__(self) -> str:
        return self.name


def _askpass(server: Server, password: str) -> dict[str, str]:
    """Return the variables that make ssh take the password from a program of ours."""
    script = server.folder / "askpass"
    if not script.exists():
        script.write_text('#!/bin/sh\nprintf "%s\\n" "$TEST_PASSWORD"\n')
        script.chmod(0o700)
    return {
        "SSH_ASKPASS": str(script),
        "SSH_ASKPASS_REQUIRE": "force",
        "DISPLAY": ":none",
        "TEST_PASSWORD": password,
    }


class OpenSshClient(ClientKind):
    """ssh of OpenSSH, or a program that takes its options."""

    def __init__(self, name: str = "openssh", words: Sequence[str] = ("ssh",)) -> None:
        self.name = name
        self.words = list(words)
        self.program = self.words[0]

    def invocation(
        self,
        server: Server,
        login: Login,
        command: str | None,
        algorithms: Algorithms = DEFAULT,
        options: Sequence[str] = (),
    ) -> Invocation:
        named = {
            "UserKnownHostsFile": str(server.known_hosts),
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "PreferredAuthentications": login.method,
            "NumberOfPasswordPrompts": "1",
            "IdentitiesOnly": "yes",
            "Compression": _yes(algorithms.compression),
        }
        chosen = {
            "KexAlgorithms": algorithms.kex,
            "HostKeyAlgorithms": algorithms.host_key,
            "Ciphers": algorithms.cipher,
            "MACs": algorithms.mac,
            "RekeyLimit": algorithms.rekey_bytes,
        }
        named |= {name: str(value) for name, value in chosen.items() if value is not None}
        env = environment(server.folder)
        argv = [find_program(self.program), *self.words[1:], "-F", "none"]
        argv += [f"-o{name}={value}" for name, value in named.items()]
        argv += ["-p", str(server.port), "-l", login.user]
        secret = login.passphrase or login.account.password
        if login.method == "publickey":
            argv += ["-i", str(login.key)]
        if login.method == "publickey" and not login.passphrase:
            argv.append("-oBatchMode=yes")
        else:
            env |= _askpass(server, secret)
        argv += [*options, server.address]
        return Invocation(argv if command is None else [*argv, command], env)


class DropbearClient(ClientKind):
    """dbclient of Dropbear, or a program that takes its options.

    It has no option for the key exchange or the host key: both are the server's choice. Nor does
    it compress, or exchange keys again before a gigabyte.
    """

    def __init__(self, name: str = "dbclient", words: Sequence[str] = ("dbclient",)) -> None:
        self.name = name
        self.words = list(words)
        self.program = self.words[0]

    def invocation(
        self,
        server: Server,
        login: Login,
        command: str | None,
        algorithms: Algorithms = DEFAULT,
        options: Sequence[str] = (),
    ) -> Invocation:
        server.known_hosts.touch()  # it stands in the home that dbclient sees
        env = environment(server.folder)
        argv = [find_program(self.program), *self.words[1:]]
        argv += ["-p", str(server.port), "-l", login.user]
        if algorithms.cipher is not None:
            argv += ["-c", algorithms.cipher]
        if algorithms.mac is not None:
            argv += ["-m", algorithms.mac]
        if login.method == "publickey":
            assert login.key is not None
            argv += ["-i", str(dropbear_key(login.key))]
        else:
            env["DROPBEAR_PASSWORD"] = login.account.password
        argv += [*options, server.address]
        return Invocation(argv if command is None else [*argv, command], env)


class PlinkClient(ClientKind):
    """plink of PuTTY. Its algorithms are families (`ecdh`, `aesgcm`, `rsa`) in a saved session."""

    name = "plink"
    program = "plink"

    # Every family must be in the list; those after WARN would ask, and -batch refuses.
    KEX = ("ntru-curve25519", "ecdh", "dh-group16-sha512", "dh-group14-sha1")
    CIPHERS = ("aesgcm", "aes", "chacha20")
    HOST_KEYS = ("ed25519", "ecdsa", "rsa")

    @staticmethod
    def _only(chosen: str | None, families: Sequence[str]) -> str:
        if chosen is None:
            return ",".join(families)
        others = (family for family in families if family != chosen)
        return ",".join([chosen, "WARN", *others])

    def invocation(
        self,
        server: Server,
        login: Login,
        command: str | None,
        algorithms: Algorithms = DEFAULT,
        options: Sequence[str] = (),
    ) -> Invocation:
        folder = server.folder / "putty"
        session = folder / "sessions" / secrets.token_hex(8)
        session.parent.mkdir(parents=True, exist_ok=True)
        lines = {
            "Protocol": "ssh",
            "HostName": server.address,
            "PortNumber": str(server.port),
            "KEX": self._only(algorithms.kex, self.KEX),
            "Cipher": self._only(algorithms.cipher, self.CIPHERS),
            "HostKey": self._only(algorithms.host_key, self.HOST_KEYS),
            "Compression": "1" if algorithms.compression else "0",
            "PreferKnownHostKeys": "0",
            "RekeyBytes": str(algorithms.rekey_bytes or "1G"),
            "AuthKI": "1" if login.method == "keyboard-interactive" else "0",
        }
        session.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
        argv = [find_program("plink"), "-batch", "-load", session.name, "-l", login.user]
        for key in server.settings.host_keys:
            argv += ["-hostkey", _fingerprint(key)]
        if login.method == "publickey":
            assert login.key is not None
            argv += ["-noagent", "-i", str(putty_key(login.key))]
        else:
            argv += ["-noagent", "-pw", login.account.password]
        argv += list(options)
        env = environment(server.folder, {"PUTTYDIR": str(folder)})
        return Invocation(argv if command is None else [*argv, command], env)


@functools.cache
def _fingerprint(key: Path) -> str:
    return _call("ssh-keygen", "-lf", f"{key}.pub").split()[1]


class LibraryClient(ClientKind):
    """A client written with a Python library: tests/interop/NAME_client.py."""

    program = sys.executable

    def __init__(self, name: str) -> None:
        self.name = name

    def invocation(
        self,
        server: Server,
        login: Login,
        command: str | None,
        algorithms: Algorithms = DEFAULT,
        options: Sequence[str] = (),
    ) -> Invocation:
        argv = [sys.executable, "-m", f"tests.interop.{self.name}_client"]
        argv += ["--address", server.address, "--port", str(server.port)]
        argv += ["--known-hosts", str(server.known_hosts), "--user", login.user]
        argv += ["--method", login.method]
        if login.key is not None:
            argv += ["--key", str(login.key)]
        for option in ("kex", "host_key", "cipher", "mac"):
            value = getattr(algorithms, option)
            if value is not None:
                argv += [f"--{option.replace('_', '-')}", value]
        if algorithms.compression:
            argv.append("--compression")
        if algorithms.rekey_bytes is not None:
            argv += ["--rekey-bytes", str(algorithms.rekey_bytes)]
        argv += options
        env = environment(server.folder, {"TEST_PASSWORD": login.account.password})
        return Invocation(argv if command is None else [*argv, command], env)


CLIENTS: dict[str, ClientKind] = {
    kind.name: kind
    for kind in (
        OpenSshClient(),
        DropbearClient(),
        PlinkClient(),
        LibraryClient("asyncssh"),
        LibraryClient("paramiko"),
        OpenSshClient("culvert", [*CULVERT, "ssh"]),
        DropbearClient("culvert-dbclient", [*CULVERT, "dbclient"]),
    )
}


# Terminals


class Terminal:
    """A program on a terminal of its own, which the test reads, writes and resizes."""

    def __init__(self, call: Invocation, rows: int = 24, columns: int = 80) -> None:
        self.output = b""
        self._status = 0
        pid, self._descriptor = os.forkpty()
        if pid == 0:
            try:
                # The parent's first resize may come too late for the program's first look.
                fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
                os.execve(call.argv[0], call.argv, call.env)
            finally:
                os._exit(127)
        self.pid = pid

    def resize(self, rows: int, columns: int) -> None:
        """Change the window's size; the kernel tells the program."""
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self._descriptor, termios.TIOCSWINSZ, size)

    def write(self, data: bytes) -> None:
        """Type `data`."""
        os.write(self._descriptor, data)

    def read_until(self, wanted: bytes, timeout: float = 20) -> bytes:
        """Return the output up to and with `wanted`, and forget it.

        Raises AssertionError with the output when it does not come.
        """
        end = time.monotonic() + timeout
        while wanted not in self.output:
            rest = end - time.monotonic()
            ready = rest > 0 and select.select([self._descriptor], [], [], rest)[0]
            assert ready and self._read(), f"{wanted!r} did not come; there was {self.output!r}"
        place = self.output.index(wanted) + len(wanted)
        seen, self.output = self.output[:place], self.output[place:]
        return seen

    def _read(self) -> bool:
        try:
            data = os.read(self._descriptor, 65536)
        except OSError:  # EIO: the last program on the terminal has ended
            data = b""
        self.output += data
        return bool(data)

    def wait(self, timeout: float = 20) -> int:
        """Read until the program ends and return its status, negative for a signal."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if select.select([self._descriptor], [], [], 0.05)[0] and not self._read():
                break
        assert wait_until(self._ended, max(end - time.monotonic(), 0.1)), (
            f"it runs on; there was {self.output!r}"
        )
        return self._status

    def _ended(self) -> bool:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.pid = 0
            self._status = os.waitstatus_to_exitcode(status)
        return bool(pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._descriptor)
