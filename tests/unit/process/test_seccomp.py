"""A worker that was taken over asks the kernel for what it has no business with."""

import ctypes
import logging
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.config.server import ServerConfig
from appliance.errors import UsageError
from appliance.process import seccomp
from appliance.server import listener
from tests.peers import Keyring, environment, mistake_in
from tests.processes import status
from tests.unit.server.conftest import Dial, Serve, worker_of

ROOT = Path(__file__).resolve().parents[3]

# A server for one connection whose workers, in place of the protocol, do what they are told.
TAKEN_OVER = """
import errno, json, os, socket, sys
from appliance.config.server import ServerConfig
from appliance.process import sandbox
from appliance.server import worker
from appliance.server.listener import Listener
import ctypes, fcntl, mmap, pty, signal, termios, threading
libc = ctypes.CDLL(None, use_errno=True)
mine, theirs = socket.socketpair()
listening = socket.create_server(("127.0.0.1", 0))
datagrams = socket.socket(type=socket.SOCK_DGRAM)
FASTOPEN = 0x20000000
keep = sandbox.keep_descriptors
sandbox.keep_descriptors = lambda kept: keep(
    {*kept, 1, 2, listening.fileno(), datagrams.fileno()}
)
def told(job, sock, to_monitor):
    try:
        exec(sys.argv[2])
        os.write(1, b"done")
    except OSError as error:
        os.write(1, errno.errorcode[error.errno].encode())
worker.serve = told
settings = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
server = Listener(ServerConfig(host_keys=(sys.argv[1],), **settings), ServerConfig)
os.write(1, b"%d " % server._monitor(theirs, 1, None))
"""
CRASH = "1 "  # of the monitor's, after a worker that was killed


def take_over(code: str, host_keys: Keyring, folder: Path) -> tuple[str, str]:
    """What a worker says that runs this code, and the server's log."""
    words = [sys.executable, "-c", TAKEN_OVER, str(host_keys.key()), code]
    done = subprocess.run(
        words, cwd=ROOT, env=environment(folder), capture_output=True, text=True, timeout=60
    )
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("code", "said"),
    [
        # what is refused
        ("socket.socket()", "EPERM"),
        ("socket.socket(socket.AF_UNIX)", "EPERM"),
        ("socket.socketpair()", "EPERM"),
        ("listening.connect(('127.0.0.1', 22))", "EPERM"),
        ("sock.bind('/tmp/x')", "EPERM"),
        ("listening.listen()", "EPERM"),
        ("os.open('/etc/passwd', os.O_RDONLY)", "ENOENT"),
        ("os.open('/dev/net/tun', os.O_RDWR)", "ENOENT"),
        ("os.open('/tmp/x', os.O_RDWR | os.O_CREAT)", "ENOENT"),
        ("os.stat('/')", "ENOENT"),
        ("os.listdir('/')", "ENOENT"),
        ("os.readlink('/proc/self/exe')", "ENOENT"),
        ("os.mkdir('/tmp/x')", "EPERM"),
        ("os.unlink('/tmp/x')", "EPERM"),
        ("os.chdir('/')", "EPERM"),
        ("os.memfd_create('x')", "EPERM"),
        ("os.pipe()", "EPERM"),
        ("os.setuid(0)", "EPERM"),
        ("os.setgroups([])", "EPERM"),
        ("fcntl.ioctl(0, termios.TIOCSTI, b'x')", "EPERM"),
        ("fcntl.ioctl(0, 0x400454CA, bytes(40))", "EPERM"),  # TUNSETIFF
        ("mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)", "EPERM"),
        ("if libc.prctl(4, 1, 0, 0, 0): raise OSError(ctypes.get_errno(), '')", "EPERM"),
        ("if libc.prctl(67, 1, 0, 0, 0): raise OSError(ctypes.get_errno(), '')", "EPERM"),
        ("listening.shutdown(2); listening.sendto(b'', FASTOPEN, ('127.0.0.1', 22))", "EPERM"),
        ("sock.send(b'x', FASTOPEN)", "EPERM"),
        ("sock.sendmsg([b'x'], [], FASTOPEN)", "EPERM"),
        ("sock.sendmsg([b'x'])", "EPERM"),
        ("socket.send_fds(to_monitor, [b'x'], [0])", "EPERM"),
        ("datagrams.sendto(b'x', ('127.0.0.1', 22))", "EPERM"),
        ("datagrams.sendto(b'x', 0, ('127.0.0.1', 22))", "EPERM"),
        ("listening.setsockopt(socket.IPPROTO_TCP, 30, 1)", "EPERM"),  # TCP_FASTOPEN_CONNECT
        ("datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)", "EPERM"),
        ("fcntl.fcntl(sock, fcntl.F_SETOWN, os.getpid())", "EPERM"),
        ("fcntl.fcntl(sock, 10, signal.SIGKILL)", "EPERM"),  # F_SETSIG
        ("fcntl.fcntl(sock, 15, bytes(8))", "EPERM"),  # F_SETOWN_EX
        ("fcntl.fcntl(sock, fcntl.F_SETFL, os.O_ASYNC)", "EPERM"),
        ("fcntl.fcntl(sock, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)", "EPERM"),
        ("fcntl.fcntl(sock, fcntl.F_NOTIFY, 1)", "EPERM"),
        ("fcntl.ioctl(sock, 0x5452, b'\\1\\0\\0\\0')", "EPERM"),  # FIOASYNC
        ("fcntl.ioctl(sock, 0x8901, b'\\1\\0\\0\\0')", "EPERM"),  # FIOSETOWN
        # what the worker does not survive
        ("os.execve('/bin/sh', ['sh'], {})", CRASH),
        ("os.fork()", CRASH),
        ("os.posix_spawn('/bin/sh', ['sh'], {})", CRASH),
        ("threading.Thread(target=print).start()", CRASH),
        ("os.kill(os.getppid(), 0)", CRASH),
        ("os.kill(os.getppid(), signal.SIGKILL)", CRASH),
        ("os.kill(-1, signal.SIGTERM)", CRASH),
        ("libc.ptrace(16, os.getppid(), 0, 0)", CRASH),  # PTRACE_ATTACH
        ("libc.process_vm_readv(os.getppid(), 0, 0, 0, 0, 0)", CRASH),
        ("os.pidfd_open(os.getppid())", CRASH),
        ("libc.unshare(0x10000000)", CRASH),  # CLONE_NEWUSER
        ("libc.mount(b'a', b'/', b'tmpfs', 0, 0)", CRASH),
        ("os.chroot('.')", CRASH),
        # what it needs, so that the others are not refused for another reason
        ("os.urandom(16), sock.getsockname(), os.fstat(sock.fileno()), bytearray(9 << 20)", "done"),
        ("listening.settimeout(0.1)\ntry: listening.accept()\nexcept TimeoutError: pass", "done"),
        ("os.close(os.dup(sock.fileno())), mmap.mmap(-1, 4096)", "done"),
        ("sock.sendall(b'x'), to_monitor.send(b''), os.write(sock.fileno(), b'x')", "done"),
        ("listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)", "done"),
        (
            "sock.setblocking(False), os.set_blocking(sock.fileno(), True), sock.settimeout(1)",
            "done",
        ),
        ("fcntl.fcntl(sock, fcntl.F_SETFL, fcntl.fcntl(sock, fcntl.F_GETFL) | 0o4000)", "done"),
        ("fcntl.fcntl(sock, fcntl.F_SETFD, fcntl.fcntl(sock, fcntl.F_GETFD))", "done"),
        ("os.close(fcntl.fcntl(sock, fcntl.F_DUPFD, 3))", "done"),
    ],
)
def test_a_worker_that_was_taken_over_gets_nothing_from_the_kernel(
    host_keys: Keyring, tmp_path: Path, code: str, said: str
) -> None:
    output, errors = take_over(code, host_keys, tmp_path)
    assert output.startswith(said), errors
    if said == CRASH:
        assert not mistake_in(errors)
    else:
        assert output != CRASH


def test_the_log_tells_where_a_worker_failed(host_keys: Keyring, tmp_path: Path) -> None:
    output, errors = take_over("raise ValueError('its mistake')", host_keys, tmp_path)
    assert output == CRASH
    assert "the worker failed\nTraceback" in errors
    assert "in told" in errors and errors.endswith("ValueError: its mistake\n")


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_a_worker_reaches_the_systems_log(
    host_keys: Keyring, tmp_path: Path, kind: socket.SocketKind
) -> None:
    path = tmp_path / "log"
    with socket.socket(socket.AF_UNIX, kind) as log:
        log.bind(str(path))
        if kind is socket.SOCK_STREAM:
            log.listen()
        code = (
            "import logging.handlers, sys\n"
            f"handler = logging.handlers.SysLogHandler({str(path)!r})\n"
            "logging.getLogger().addHandler(handler)\n"
        )
        job = "logging.error('from the worker: %d', os.getpid())"
        words = [sys.executable, "-c", code + TAKEN_OVER, str(host_keys.key()), job]
        done = subprocess.run(
            words, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=60
        )
        assert done.stdout.startswith("done"), done.stderr
        if kind is socket.SOCK_STREAM:
            with log.accept()[0] as accepted:
                said = accepted.makefile("rb").read()
        else:
            said = log.recv(4096)
    assert b"from the worker" in said


def test_a_real_worker_is_held_to_the_filter_before_its_first_byte(
    our_server: Serve, dial: Dial
) -> None:
    server = our_server()
    client = dial(server)
    assert client.until(lambda connection: connection.transport.peer_version)
    (worker,) = worker_of(server)
    fields = status(worker)
    assert fields["Seccomp"] == ["2"]
    assert fields["NoNewPrivs"] == ["1"]


def test_a_worker_that_the_filter_kills_is_a_crash_of_its_source(
    host_keys: Keyring, tmp_path: Path
) -> None:
    code = "logging = None; os.fork()"
    words = [sys.executable, "-c", "import logging; logging.basicConfig(level=20)\n" + TAKEN_OVER]
    done = subprocess.run(
        [*words, str(host_keys.key()), code],
        cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert f"crash ({signal.strsignal(signal.SIGSYS)})" in done.stderr


@pytest.mark.parametrize(
    "token", [0xC000003E, 0xC00000B7, 0x40000028], ids=["x86-64", "arm64", "arm"]
)
def test_the_list_is_one_for_each_architecture(monkeypatch: pytest.MonkeyPatch, token: int) -> None:
    """libseccomp knows the numbers of those that we cannot try here."""
    usual = seccomp._add
    added: list[str] = []
    is_ours = True

    def add(library: ctypes.CDLL, context: ctypes.c_void_p, *rest: object) -> None:
        nonlocal is_ours
        if not added:
            is_ours = library.seccomp_arch_exist(context, ctypes.c_uint32(token)) == 0
            if not is_ours:
                assert library.seccomp_arch_add(context, ctypes.c_uint32(token)) == 0
                assert library.seccomp_arch_remove(context, ctypes.c_uint32(0)) == 0
        added.append(str(rest[1]))
        usual(library, context, *rest)  # type: ignore[arg-type]

    native = seccomp.program(False)
    monkeypatch.setattr(seccomp, "_add", add)
    program = seccomp.program(False)
    assert program and (program == native) == is_ours
    assert len(set(added)) > 100


def test_no_call_stands_in_two_lists() -> None:
    conditional = {row[0] for row in seccomp.CONDITIONS} | {name for name, _ in seccomp.EITHER}
    lists = seccomp.ALLOWED, seccomp.MISSING, seccomp.FATAL, tuple(conditional)
    names = [name for each in lists for name in each]
    assert len(names) == len(set(names))


def test_a_system_without_the_library_is_told_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(name: str) -> None:
        raise OSError(2, name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    caplog.set_level(logging.WARNING)
    assert listener._permitted_calls(ServerConfig()) is None
    (line,) = caplog.messages
    assert line.startswith("workers may make every system call: libseccomp.so.2 is missing")
    with pytest.raises(UsageError, match="Debian's package libseccomp2"):
        listener._permitted_calls(ServerConfig(sandbox="required"))


def test_a_kernel_without_filters_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def prctl(*_: object) -> int:
        ctypes.set_errno(22)
        return -1

    monkeypatch.setattr(seccomp, "_libc", type("Kernel", (), {"prctl": staticmethod(prctl)}))
    with pytest.raises(seccomp.Unsupported, match="the kernel has no seccomp filters"):
        seccomp.program(False)


def test_a_program_that_the_kernel_refuses_ends_the_worker() -> None:
    code = (
        "from appliance.process import sandbox\n"
        "try: sandbox.enter(None, bytes(8))\n"
        "except OSError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=30
    )
    assert "seccomp: Invalid argument" in done.stdout, done.stderr
