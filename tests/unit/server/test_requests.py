"""How a worker asks its monitor: one datagram, one answer, descriptors beside it."""

import os
import socket

import pytest

from appliance.errors import MalformedMessage
from appliance.server.requests import GRANTED, Begin, MonitorGone, OpenPty, ask
from tests.unit.server.conftest import Ends, answering


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
