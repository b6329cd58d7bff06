"""Ports that wait for connections, when there is nothing left to serve one with."""

import errno
import os
import socket

import pytest

from appliance.aio import listening
from appliance.aio.listening import ListeningSocket
from appliance.aio.loop import Loop


class Poor(socket.socket):
    """A socket of a process that has no descriptor left, until it has."""

    tries = 0
    error = errno.EMFILE

    def accept(self) -> tuple[socket.socket, object]:
        self.tries += 1
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        return super().accept()


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_connection_without_a_descriptor_waits_and_nobody_spins(
    error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "PAUSE", 0.05)
    loop = Loop()
    accepted: list[socket.socket] = []
    with Poor(socket.AF_INET) as sock, socket.socket() as client:
        sock.error = error
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        listener = ListeningSocket(loop, [sock], accepted.append)
        client.connect(sock.getsockname())
        for _ in range(5):
            loop.call_later(0.001, lambda: None)
            loop._turn()
        assert sock.tries == 1
        sock.error = 0
        loop.call_later(10, pytest.fail)
        while not accepted:
            loop._turn()
        accepted.pop().close()
        listener.close()
    loop.close()
