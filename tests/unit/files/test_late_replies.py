"""Replies that come after the copy that asked was cancelled, as by ^C in sftp."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.aio.loop import Loop
from appliance.aio.tasks import Cancelled, Task
from appliance.files.copying import CopySettings
from appliance.files.downloads import Download
from appliance.files.progress import Lines
from appliance.files.sftp_client import SftpClient
from appliance.files.uploads import Upload
from appliance.wire import sftp
from appliance.wire.codec import Buffer, Message, write_string
from appliance.wire.sftp import Attributes


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


class Server:
    """The far end of a client: takes requests, and answers when it is told to."""

    unsent = 0

    def __init__(self) -> None:
        self.client = SftpClient(self)
        self.numbers: dict[int, list[int]] = {}  # by type of request

    def write(self, data: Buffer) -> None:
        packet = bytes(data)
        self.numbers.setdefault(packet[4], []).append(int.from_bytes(packet[5:9], "big"))

    def close(self) -> None:
        pass

    def answer(self, reply: Message) -> None:
        self.client.received(memoryview(write_string(reply.encode())))

    def open(self) -> None:
        (number,) = self.numbers[sftp.Open.number]
        self.answer(sftp.Handle(number, b"h"))


def cancel(task: Task[None]) -> None:
    task.cancel()
    with pytest.raises(Cancelled):
        task.result()


def test_data_that_comes_late_goes_nowhere(loop: Loop, tmp_path: Path) -> None:
    server, lines = Server(), Lines("", lambda text: None)
    download = Download(loop, server.client, CopySettings(), lines)
    target = tmp_path / "target"
    download.add(b"/source", os.fsencode(target), Attributes(size=1 << 20, permissions=0o100644))
    task = Task(loop, download.run())
    server.open()
    cancel(task)
    with open(tmp_path / "other", "w+b"):  # which has the descriptor now
        for number in server.numbers[sftp.Read.number]:
            server.answer(sftp.Data(number, b"stale"))
    assert (tmp_path / "other").read_bytes() == b""
    assert target.read_bytes() == b""


def test_writes_that_are_answered_late_are_not_counted(loop: Loop, tmp_path: Path) -> None:
    server, lines = Server(), Lines("", lambda text: None)
    upload = Upload(loop, server.client, CopySettings(), lines)
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 4096)
    upload.add(os.fsencode(source), b"/target")
    task = Task(loop, upload.run())
    server.open()
    cancel(task)
    for number in server.numbers[sftp.Write.number]:
        server.answer(sftp.Status(number, sftp.OK))
