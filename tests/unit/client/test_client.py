"""A client with a connection of its own, against a server that a test plays."""

from appliance.client.client import Client
from appliance.client.host_options import HostOptions
from appliance.wire.messages import ChannelOpen, ChannelOpenFailure, UserauthSuccess
from tests.protocol.harness import Script, make_client


def test_a_channel_right_behind_the_login_is_refused() -> None:
    """Nothing was asked for yet, and no session is there to take it."""
    script = Script(make_client(Client(HostOptions(), "true", False))).serve()
    script.queue(UserauthSuccess())
    script.send(ChannelOpen("session", 3, 1 << 20, 1 << 15))
    failure = ChannelOpenFailure.decode(script.expect(92))
    assert failure.recipient_channel == 3
    assert script.peer.transport.error is None
