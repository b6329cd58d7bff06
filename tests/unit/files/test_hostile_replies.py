"""Replies of a hostile server to the SFTP client: each ends in a failure that is told."""

import pytest

from appliance.errors import MalformedMessage
from appliance.files.copying import MOST_IN_FLIGHT, InFlight
from appliance.files.sftp_client import SftpClient, StatusError
from appliance.wire import sftp
from appliance.wire.codec import Buffer, write_string, write_uint32


class Stream:
    unsent = 0

    def write(self, data: Buffer) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def client() -> SftpClient:
    return SftpClient(Stream())


def test_a_status_without_its_code_breaks_the_protocol(client: SftpClient) -> None:
    client.close_file(b"h")
    with pytest.raises(MalformedMessage):
        client.received(memoryview(write_string(sftp.Status(0, 4).encode()[:5])))
    client.read(b"h", 0, 1, lambda data, error: None)
    with pytest.raises(MalformedMessage):
        client.received(memoryview(write_string(sftp.Status(1, 1).encode()[:5])))


def test_a_reason_is_one_line_and_an_errno_one_of_the_system_s(client: SftpClient) -> None:
    client.extensions = {sftp.ERRNO: b"1"}
    reply = client.close_file(b"h")
    status = sftp.Status(0, sftp.FAILURE, "no\nscp: all is well\n\x1b[2J").encode()
    client.received(memoryview(write_string(status + write_uint32(0xFFFFFFFF))))
    with pytest.raises(StatusError, match=r"no scp: all is well \\x1b\[2J"):
        reply.result()


def test_requests_of_single_bytes_are_not_without_number() -> None:
    window = InFlight(1, 0)
    while window.has_room:
        window.count += 1
    assert window.count == MOST_IN_FLIGHT
