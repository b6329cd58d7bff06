"""Any user of the machine may ask for metrics; none keeps others from them, or gets further."""

import contextlib
import errno
import os
import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from appliance import log
from appliance.links import metrics
from appliance.links.control import Answer
from appliance.process import seccomp
from appliance.process.sandbox import Confinement

REQUEST = b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n"


def serve() -> tuple[int, int, socket.socket]:
    """A process that is held to its system calls: its id, its port, and the supervisor's end."""
    with metrics.listen(0) as sock:
        pid, asked = metrics.start(sock, Confinement(None, seccomp.program(False), None))
        return pid, sock.getsockname()[1], asked


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Where metrics are served; this process is the supervisor."""
    monkeypatch.setattr(log, "descriptors", set)
    pid, place, asked = serve()
    answering = threading.Thread(target=answer, args=(asked,))
    answering.start()
    yield place
    asked.shutdown(socket.SHUT_RDWR)
    answering.join()
    asked.close()
    with contextlib.suppress(OSError), connect(place) as last:  # by which it learns of the end
        last.sendall(REQUEST)
        last.recv(100)
    assert os.waitpid(pid, 0) == (pid, 0)


def answer(asked: socket.socket) -> None:
    while asked.recv(10):
        asked.send(b"culvert_link_up 1\n" * 10_000 + b"# EOF\n")


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def get(port: int, request: bytes = REQUEST) -> bytes:
    with connect(port) as sock:
        sock.sendall(request)
        data = b""
        while more := sock.recv(65536):
            data += more
        return data


def test_metrics_are_there_for_who_asks_and_nothing_else_is(port: int) -> None:
    for version in (b"1.0", b"1.1"):
        said = get(port, REQUEST.replace(b"1.1", version))
        assert said.startswith(b"HTTP/1.0 200 OK\r\nContent-Type: application/openmetrics-text")
        assert said.endswith(b"culvert_link_up 1\n# EOF\n")
    for request in (b"GET / HTTP/1.1", b"POST /metrics HTTP/1.1", b"GET /metrics/up HTTP/1.1"):
        assert get(port, request + b"\r\n\r\n").startswith(b"HTTP/1.0 404 ")
    for request in (b"GET /metrics", b"", b"\xff", b"SSH-2.0-x y z"):
        assert get(port, request + b"\r\n\r\n").startswith(b"HTTP/1.0 400 ")


def test_a_client_that_says_a_byte_now_and_then_keeps_nobody_waiting(port: int) -> None:
    with connect(port) as slow:
        stop = threading.Event()

        def say() -> None:
            with contextlib.suppress(OSError):
                while not stop.wait(0.2):
                    slow.sendall(b"G")

        saying = threading.Thread(target=say)
        saying.start()
        try:
            assert b" 200 OK" in get(port)
            assert slow.recv(1) == b""  # nor does it stay for ever
        except ConnectionResetError:
            pass
        finally:
            stop.set()
            saying.join()


def test_clients_that_say_nothing_or_read_nothing_keep_nobody_out(port: int) -> None:
    with contextlib.ExitStack() as undo:
        for _ in range(metrics.CLIENTS_LIMIT):
            undo.enter_context(connect(port))
            undo.enter_context(connect(port)).sendall(REQUEST)
        assert b" 200 OK" in get(port)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("socket.socket()", errno.EPERM),
        ("self._supervisor.connect('/run/x')", errno.EPERM),
        ("open('/etc/passwd')", errno.ENOENT),
        ("os.setuid(1)", errno.EPERM),
        ("os.fork()", None),
        ("os.execv('/bin/sh', ['sh'])", None),
        ("os.kill(os.getppid(), 0)", None),
    ],
)
def test_one_that_was_taken_over_gets_nowhere(
    monkeypatch: pytest.MonkeyPatch, code: str, said: int | None
) -> None:
    """What it does not survive is None."""

    def taken_over(self: object, words: list[str]) -> Answer:
        try:
            exec(code, globals() | {"self": self})
        except OSError as error:
            return Answer(200, f"{error.errno}", metrics.PLAIN)
        return Answer(200, "done", metrics.PLAIN)

    monkeypatch.setattr(log, "descriptors", set)
    monkeypatch.setattr(metrics._Server, "answer", taken_over)
    pid, place, asked = serve()
    with asked:
        try:
            answer = get(place)
        except ConnectionError:
            answer = b""
        os.kill(pid, signal.SIGKILL)  # which who is dead already does not notice
        _, status = os.waitpid(pid, 0)
    assert answer.rpartition(b"\r\n")[2].decode() == (str(said) if said else "")
    assert os.waitstatus_to_exitcode(status) == -(signal.SIGKILL if said else signal.SIGSYS)


def test_a_request_without_end_is_broken_off(port: int) -> None:
    with connect(port) as sock, contextlib.suppress(ConnectionError):
        for _ in range(1000):
            sock.sendall(b"x" * 1000)
        assert sock.recv(1) == b""
