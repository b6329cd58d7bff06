"""What a worker makes of its monitor's answers, and what it never asks for."""

import os

import pytest

from appliance.errors import PeerError
from appliance.server.monitor_client import MonitorClient
from appliance.server.requests import DATAGRAM, GRANTED, REFUSED, Denied, Sign, Spawn
from appliance.services.base import Refused
from appliance.services.session import ENVIRONMENT_LIMIT, VARIABLE_LIMIT
from appliance.wire.codec import write_uint32
from tests.unit.server.conftest import Ends, answering


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


def test_a_command_and_environment_that_do_not_fit_are_refused_and_never_sent(ends: Ends) -> None:
    """All that a client may set is more than fits into one datagram."""
    worker, monitor = ends
    client = MonitorClient(worker)
    environment = ((b"LC_X", b"x" * (VARIABLE_LIMIT - 100)),) * ENVIRONMENT_LIMIT
    for command, variables in ((b"true", environment), (b"x" * DATAGRAM, ())):
        with pytest.raises(Refused, match="too long"):
            client.spawn("exec", command, variables, None, 0)
    monitor.setblocking(False)
    with pytest.raises(BlockingIOError):
        monitor.recv(10)


def test_the_longest_request_fits_through_the_socket(ends: Ends) -> None:
    worker, monitor = ends
    asked = answering(monitor, GRANTED + write_uint32(7), [0, 1, 2, 0])
    command = b"x" * (DATAGRAM - 100)
    process = MonitorClient(worker).spawn("exec", command, (), None, 0)
    assert process.number == 7
    assert Spawn.decode(asked()).command == command
    for fd in (process.stdin, process.stdout, process.stderr, process.status):
        assert fd is not None
        os.close(fd)
