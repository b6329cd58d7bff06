"""What a forwarding's channel says when it is opened."""

from appliance.services.forward_client import DirectTcpip


def test_the_opening_is_that_of_rfc_4254() -> None:
    opening = DirectTcpip("host", 22, "127.0.0.1", 65535)
    assert opening.encode() == (b"\0\0\0\x04host\0\0\0\x16\0\0\0\x09127.0.0.1\0\0\xff\xff")
    assert DirectTcpip.decode(opening.encode()) == opening
