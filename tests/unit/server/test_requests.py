"""How a worker asks its monitor: one datagram, one answer, descriptors beside it."""

import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from appliance.errors import MalformedMessage, PeerError
from appliance.server.requests import (
    DATAGRAM,
    GRANTED,
    REFUSED,
    Begin,
    Denied,
    MonitorGone,
    OpenPty,
    Sign,
    Spawn,
    ask,
)
from appliance.server.worker import MonitorClient
from appliance.services.base import Refused
from appliance.services.session import ENVIRONMENT_LIMIT, VARIABLE_LIMIT
from appliance.wire.codec import write_uint32

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """The worker's and the monitor's."""
    worker, monitor = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with worker, monitor:
        yield worker, monitor


def answering(monitor: socket.socket, answer: bytes, fds: list[int]) -> Callable[[], bytes]:
    """Answer one request; the result joins, and returns what was asked."""
    asked: list[bytes] = []

    def serve() -> None:
        asked.append(monitor.recv(DATAGRAM))
        socket.send_fds(monitor, [answer], fds)

    thread = threading.Thread(target=serve)
    thread.start()

    def joined() -> bytes:
        thread.join()
        return asked[0]

    return joined


def test_a_granted_request_brings_its_record_and_its_descriptors(ends: Ends) -> None:
    worker, monitor = ends
    read, write = os.pipe()
    asked = answering(monitor, GRANTED + b"record", [read])
    answer, fds = ask(worker, OpenPty(), 1)
    assert (answer, asked()) == (b"record", OpenPty().encode())
    os.write(write, b"x")
    assert os.read(fds[0], 1) == b"x"
    for fd in (read, write, *fds):
        os.close(fd)


def test_a_refusal_is_an_error_of_the_peers_before_authentication(ends: Ends) -> None:
    worker, monitor = ends
    asked = answering(monitor, REFUSED + b"no \xff", [])
    with pytest.raises(Denied, match="no") as caught:
        MonitorClient(worker).sign("ssh-ed25519", bytes(32))
    assert isinstance(caught.value, PeerError)
    assert asked() == Sign("ssh-ed25519", bytes(32)).encode()


def test_a_refusal_after_authentication_fails_one_request(ends: Ends) -> None:
    worker, monitor = ends
    asked = answering(monitor, REFUSED + b"no terminal", [])
    with pytest.raises(Refused, match="no terminal"):
        MonitorClient(worker).open_pty()
    asked()


def test_a_monitor_that_is_gone_is_no_answer(ends: Ends) -> None:
    worker, monitor = ends
    monitor.shutdown(socket.SHUT_WR)
    with pytest.raises(MonitorGone):
        ask(worker, Begin("somebody"))


def test_an_answer_without_its_descriptors_is_malformed(ends: Ends) -> None:
    worker, monitor = ends
    asked = answering(monitor, GRANTED, [])
    with pytest.raises(MalformedMessage):
        ask(worker, OpenPty(), 1)
    asked()


def test_a_command_and_environment_that_do_not_fit_are_refused_and_never_sent(ends: Ends) -> None:
    """All that a client may set is more than fits into one datagram."""
    worker, monitor = ends
    client = MonitorClient(worker)
    environment = ((b"LC_X", b"x" * (VARIABLE_LIMIT - 100)),) * ENVIRONMENT_LIMIT
    for command, variables in ((b"true", environment), (b"x" * DATAGRAM, ())):
        with pytest.raises(Refused, match="too long"):
            client.spawn("exec", command, variables, None)
    monitor.setblocking(False)
    with pytest.raises(BlockingIOError):
        monitor.recv(10)


def test_the_longest_request_fits_through_the_socket(ends: Ends) -> None:
    worker, monitor = ends
    asked = answering(monitor, GRANTED + write_uint32(7), [0, 1, 2, 0])
    command = b"x" * (DATAGRAM - 100)
    process = MonitorClient(worker).spawn("exec", command, (), None)
    assert process.number == 7
    assert Spawn.decode(asked()).command == command
    for fd in (process.stdin, process.stdout, process.stderr, process.status):
        assert fd is not None
        os.close(fd)
