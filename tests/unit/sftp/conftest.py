"""A client in memory: requests as records go in, and replies as records come out."""

import struct
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from appliance.sftp.journal import VERBOSE, Journal
from appliance.sftp.server import Server
from appliance.sftp.session import Session, Settings
from appliance.wire import sftp
from appliance.wire.codec import Message, Record, write_string
from appliance.wire.sftp_report import FileChange

R = TypeVar("R", bound=Record)
REPLIES: dict[int, type[Message]] = {
    each.number: each
    for each in (
        sftp.Version,
        sftp.Status,
        sftp.Handle,
        sftp.Data,
        sftp.Names,
        sftp.AttrsReply,
        sftp.ExtendedReply,
    )
}


class Client:
    """A server, and what it has answered, logged and reported so far."""

    def __init__(self, **settings: object) -> None:
        self.sent = bytearray()
        self.writes = 0
        self.lines: list[str] = []
        self.reports: list[FileChange] = []
        journal = Journal(
            VERBOSE,
            lambda level, text: self.lines.append(text),
            lambda data: self.reports.append(FileChange.decode(data)),
        )
        self.session = Session(Settings(**settings), journal, self._write)  # type: ignore[arg-type]
        self.server = Server(self.session)

    def _write(self, view: memoryview) -> None:
        self.writes += 1
        self.sent += view

    def raw(self, data: bytes) -> list[Message]:
        """The replies to bytes."""
        self.server.receive(memoryview(data))
        return self.replies()

    def replies(self) -> list[Message]:
        """The replies that were not taken yet."""
        found = []
        while self.sent:
            (length,) = struct.unpack_from(">I", self.sent)
            packet = bytes(self.sent[4 : 4 + length])
            assert len(packet) == length
            del self.sent[: 4 + length]
            found.append(REPLIES[packet[0]].decode(packet))
        return found

    def ask(self, request: Message) -> Message:
        """The only reply to a request."""
        (reply,) = self.raw(write_string(request.encode()))
        return reply

    def start(self) -> "Client":
        reply = self.ask(sftp.Init(3))
        assert isinstance(reply, sftp.Version)
        return self

    def extended(self, name: str, data: Record | None = None) -> Message:
        """The reply to an extension."""
        return self.ask(sftp.Extended(7, name, b"" if data is None else data.encode()))

    def reply(self, kind: type[R], name: str, data: Record | None = None) -> R:
        """The record that an extension is answered with."""
        reply = self.extended(name, data)
        assert isinstance(reply, sftp.ExtendedReply), reply
        return kind.decode(reply.data)

    def code(self, request: Message) -> int:
        """The code of the STATUS that answers a request."""
        reply = self.ask(request)
        assert isinstance(reply, sftp.Status), reply
        return reply.code

    def refusal(self, name: str, data: Record | None = None) -> str:
        """The message of the STATUS that answers an extension."""
        reply = self.extended(name, data)
        assert isinstance(reply, sftp.Status), reply
        assert reply.code != sftp.OK
        return reply.message

    def open(self, path: bytes, pflags: int = sftp.READ) -> bytes:
        """The handle of a file."""
        return self.handle(sftp.Open(1, path, pflags, sftp.Attributes()))

    def handle(self, request: Message) -> bytes:
        """The handle that answers a request."""
        reply = self.ask(request)
        assert isinstance(reply, sftp.Handle), reply
        return reply.handle

    def names(self, request: Message) -> list[bytes]:
        """The names that answer a request."""
        reply = self.ask(request)
        assert isinstance(reply, sftp.Names), reply
        return [entry.filename for entry in reply.entries]

    def attributes(self, request: Message) -> sftp.Attributes:
        """The attributes that answer a request."""
        reply = self.ask(request)
        assert isinstance(reply, sftp.AttrsReply), reply
        return reply.attrs


Make = Callable[..., Client]


@pytest.fixture
def make() -> Iterator[Make]:
    """A function that makes a client with these settings of the server; INIT was answered."""
    made: list[Client] = []

    def run(**settings: object) -> Client:
        made.append(Client(**settings).start())
        return made[-1]

    yield run
    for each in made:
        each.server.close()


@pytest.fixture
def client(make: Make) -> Client:
    """A client of a server without options."""
    return make()
