"""Replies of a hostile server to the SFTP client: each ends in a failure that is told."""

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.aio.loop import Loop
from appliance.aio.tasks import Task, run, sleep
from appliance.errors import MalformedMessage, ProtocolError
from appliance.files.copying import FILES_AHEAD, MOST_IN_FLIGHT, CopySettings, InFlight
from appliance.files.downloads import Download
from appliance.files.progress import Silent
from appliance.files.sftp_client import SftpClient, StatusError
from appliance.wire import sftp
from appliance.wire.codec import Buffer, Message, write_string, write_uint32


class Stream:
    unsent = 0

    def __init__(self) -> None:
        self.requests: deque[tuple[int, int]] = deque()  # type and number

    def write(self, data: Buffer) -> None:
        packet = bytes(data)
        self.requests.append((packet[4], int.from_bytes(packet[5:9], "big")))

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


HOLLOW = sftp.FileIdentity(
    device=1,
    inode=1,
    links=1,
    blocks=0,
    access_nanoseconds=0,
    modification_nanoseconds=0,
    changed=(0, 0),
)


@pytest.mark.parametrize(
    ("size", "runs", "failure"),
    [
        ((1 << 64) - 1, (), OSError),
        (1 << 20, ((1 << 63, 1),), ProtocolError),
        (1 << 20, ((4096, 4096), (0, 4096)), ProtocolError),
        (1 << 20, ((0, 0),), ProtocolError),
    ],
)
def test_a_size_or_an_extent_that_no_file_has_is_refused(
    loop: Loop,
    tmp_path: Path,
    size: int,
    runs: tuple[tuple[int, int], ...],
    failure: type[Exception],
) -> None:
    stream = Stream()
    client = SftpClient(stream)
    client.extensions = {sftp.EXTENTS: b"1"}
    attributes = sftp.Attributes(size=size, permissions=0o100644, identity=HOLLOW)
    download = Download(loop, client, CopySettings(), Silent(""))
    task = Task(loop, download._file(b"/source", os.fsencode(tmp_path / "target"), attributes))
    while stream.requests and not task.done:
        kind, number = stream.requests.popleft()
        reply: Message = sftp.Handle(number, b"h")
        if kind == sftp.Extended.number:
            reply = sftp.ExtendedReply(number, sftp.Extents(False, runs).encode())
        client.received(memoryview(write_string(reply.encode())))
    with pytest.raises(failure):
        task.result()


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def test_a_listing_without_an_end_waits_for_its_files(loop: Loop, tmp_path: Path) -> None:
    stream = Stream()
    client = SftpClient(stream)
    download = Download(loop, client, CopySettings(recursive=True), Silent(""))
    target = os.fsencode(tmp_path / "target")
    download.add(b"/source", target, sftp.Attributes(permissions=0o40755))
    task = Task(loop, download.run())
    file = sftp.NamedFile(b"name", b"", sftp.Attributes(size=3, permissions=0o100644))
    listed = 0
    while stream.requests and listed < 100 * FILES_AHEAD:
        kind, number = stream.requests.popleft()
        reply: Message
        if kind == sftp.OpenDir.number:
            reply = sftp.Handle(number, b"h")
        elif kind == sftp.ReadDir.number:
            reply = sftp.Names(number, (file,) * 1000)
            listed += 1000
        else:  # the OPEN of a file stays without an answer
            continue
        client.received(memoryview(write_string(reply.encode())))
        run(loop, _turn(loop))
    assert FILES_AHEAD <= listed < 20 * FILES_AHEAD
    task.cancel()
    task.when_done(lambda: None)


async def _turn(loop: Loop) -> None:
    await sleep(loop, 0)
