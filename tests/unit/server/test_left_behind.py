"""What a real server keeps of peers that went away at any moment: nothing."""

import contextlib
import socket
import time

import pytest

from appliance.ssh.order import Phase
from tests.netns import wait_until
from tests.processes import descriptors, family
from tests.unit.server.conftest import Dial, Serve, connect, is_alone

VERSION = b"SSH-2.0-test\r\n"


def test_the_login_grace_time_ends_a_thousand_silent_peers_and_leaves_nothing(
    our_server: Serve, dial: Dial
) -> None:
    server = our_server(
        "login_grace_time = 1\nmax_startups = [300, 30, 400]\nper_source_max_startups = 400\n"
    )
    ours = dial(server).log_in()
    opened = descriptors(server.process.pid)
    for _ in range(4):
        started = time.monotonic()
        half = connect(server)
        half.sendall(VERSION + b"\0\0\4\4\5")  # of a packet of 0x404 bytes
        silent = [half, *(connect(server) for _ in range(249))]
        for sock in silent:
            # a worker that is killed with bytes unread resets its connection
            with sock, contextlib.suppress(ConnectionResetError):
                while sock.recv(65536):
                    pass
        assert 0.5 < time.monotonic() - started < 30
        assert wait_until(lambda: len(family(server.process.pid)) == 3), server.log
    assert wait_until(lambda: descriptors(server.process.pid) == opened)
    assert server.log.count("no login from 127.0.0.1 within 1 s") == 1000
    assert ours.answers()
    assert ours.connection.transport.phase is Phase.OPEN


@pytest.mark.parametrize(
    "said", [b"", b"SSH", VERSION, VERSION + b"\0\0", VERSION + b"\xff" * 100, b"x" * 100_000],
    ids=["nothing", "half a version", "a version", "half a packet", "nonsense", "a flood"],
)  # fmt: skip
def test_a_peer_that_goes_away_leaves_nothing_behind(our_server: Serve, said: bytes) -> None:
    server = our_server()
    opened = descriptors(server.process.pid)
    for abruptly in (False, True):
        with connect(server) as sock:
            with contextlib.suppress(OSError):
                sock.sendall(said)
            if abruptly:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert is_alone(server), server.log
    assert wait_until(lambda: descriptors(server.process.pid) == opened)


def test_a_client_that_goes_away_at_any_point_of_a_login_disturbs_nobody(
    our_server: Serve, dial: Dial
) -> None:
    server = our_server("max_startups = [200, 30, 300]\nper_source_max_startups = 300\n")
    other = dial(server).log_in()
    opened = descriptors(server.process.pid)
    whole = dial(server)
    total = 0
    while whole.connection.transport.phase is not Phase.OPEN:
        while whole.connection.transport.unsent:
            count = whole.socket.send(whole.connection.transport.data_to_send())
            whole.connection.transport.sent(count)
            total += count
        count = whole.socket.recv_into(whole.connection.transport.receive_buffer())
        whole.connection.transport.received(count, 0.0)
    whole.close()
    for cut in range(0, total, max(1, total // 40)):
        client = dial(server)
        left = cut
        connection = client.connection
        while left:
            while connection.transport.unsent and left:
                count = client.socket.send(connection.transport.data_to_send()[:left])
                connection.transport.sent(count)
                left -= count
            if not left:
                break
            count = client.socket.recv_into(connection.transport.receive_buffer())
            if not count:
                break
            connection.transport.received(count, 0.0)
        client.close()
    assert wait_until(lambda: len(family(server.process.pid)) == 3, 15), server.log
    assert wait_until(lambda: descriptors(server.process.pid) == opened)
    assert other.answers()
