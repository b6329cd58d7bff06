"""The process of one link, against a server that means ill; no socket is opened."""

import socket

from appliance.config.links import Link
from appliance.links.carrier import HANDED_OUT_LIMIT, Carrier
from appliance.wire.tun import HandedOut
from tests.protocol.harness import Recorder, make_client


class Stopped:
    """A loop that is only told to stop."""

    is_stopped = False

    def stop(self) -> None:
        self.is_stopped = True


def test_a_server_that_hands_out_too_much_is_told_so() -> None:
    reports, supervisor = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with reports, supervisor:
        carrier = Carrier(Link(name="office", host="192.0.2.1", device="tun9"), -1, reports)
        carrier._connection = make_client(Recorder())
        carrier._address = "192.0.2.1"
        loop = carrier._loop = Stopped()  # type: ignore[assignment]
        carrier._opened(HandedOut((b"x" * 250,) * 999, (), (), 0, (), ()))
        assert loop.is_stopped
        assert str(carrier._failure) == f"the server hands out more than {HANDED_OUT_LIMIT} bytes"
