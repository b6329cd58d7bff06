"""Replies that are packed by hand equal the declared records, and share their writes."""

import os

import pytest

from appliance.sftp.failures import Refused
from appliance.sftp.file_attributes import pack
from appliance.sftp.replies import SIZE, Replies
from appliance.wire import sftp
from appliance.wire.codec import Message, write_string

ATTRS = sftp.Attributes(5, (1, 2), 0o100644, (3, 4))


def packed(fill: str, *arguments: object) -> bytes:
    sent = bytearray()
    replies = Replies(sent.extend)
    getattr(replies, fill)(*arguments)
    replies.flush()
    return bytes(sent)


def read_data(room: memoryview) -> int:
    room[:3] = b"abc"
    return 3


@pytest.mark.parametrize(
    ("fill", "arguments", "record"),
    [
        ("ok", (7,), sftp.Status(7, sftp.OK, "Success")),
        ("eof", (7,), sftp.Status(7, sftp.EOF, "End of file")),
        ("refuse", (7, Refused(4, "é", 5)), sftp.Status(7, 4, "é")),
        ("handle", (7, 0x01020304), sftp.Handle(7, b"\1\2\3\4")),
        ("data", (7, read_data, 100), sftp.Data(7, b"abc")),
        ("data", (7, lambda room: 0, 100), sftp.Status(7, sftp.EOF, "End of file")),
        ("name", (7, b"p"), sftp.Names(7, (sftp.NamedFile(b"p", b"p", sftp.Attributes()),))),
        (
            "names",
            (7, 1, sftp.NamedFile(b"p", b"long", ATTRS).encode()),
            sftp.Names(7, (sftp.NamedFile(b"p", b"long", ATTRS),)),
        ),
        ("attributes", (7, sftp.write_attributes(ATTRS)), sftp.AttrsReply(7, ATTRS)),
        ("extended", (7, b"data"), sftp.ExtendedReply(7, b"data")),
    ],
)
def test_a_reply_equals_the_record(
    fill: str, arguments: tuple[object, ...], record: Message
) -> None:
    assert packed(fill, *arguments) == write_string(record.encode())


def test_read_and_write_equal_the_records() -> None:
    read = sftp.Read(7, b"\0\0\0\1", 1 << 40, 5)
    assert sftp.READ_REQUEST.pack(5, 7, 4, 1, 1 << 40, 5) == read.encode()
    write = sftp.Write(7, b"\0\0\0\1", 1 << 40, b"abc")
    assert sftp.WRITE_REQUEST.pack(6, 7, 4, 1, 1 << 40, 3) + b"abc" == write.encode()


def test_a_status_ends_with_the_errno_once_that_was_asked_for() -> None:
    sent = bytearray()
    replies = Replies(sent.extend)
    replies.tells_errno = True
    replies.refuse(7, Refused(4, "No", 28))
    replies.flush()
    assert sent == write_string(sftp.Status(7, 4, "No", b"\0\0\0\0\0\0\0\x1c").encode())


def test_replies_leave_together_or_when_the_buffer_is_full() -> None:
    writes: list[int] = []
    replies = Replies(lambda view: writes.append(len(view)))
    for number in range(3):
        replies.ok(number)
    assert not writes
    replies.flush()
    replies.flush()
    assert len(writes) == 1
    for _ in range(3):
        replies.data(1, len, sftp.DATA_LIMIT)
    assert len(writes) == 2
    assert max(writes) <= SIZE


def test_a_reply_that_cannot_be_read_leaves_nothing_behind() -> None:
    sent = bytearray()
    replies = Replies(sent.extend)

    def fail(room: memoryview) -> int:
        room[0] = 1
        raise OSError(5, "bad disk")

    with pytest.raises(OSError):
        replies.data(1, fail, 10)
    replies.ok(2)
    replies.flush()
    assert sent == write_string(sftp.Status(2, sftp.OK, "Success").encode())


def test_attributes_of_a_file_from_other_centuries_stop_at_the_ends() -> None:
    def status(seconds: int) -> os.stat_result:
        return os.stat_result((0o100644, 1, 2, 1, 3, 4, 5, seconds, seconds, seconds))

    for seconds, told in ((-5, 0), (1 << 33, 0xFFFFFFFF), (7, 7)):
        assert pack(status(seconds)) == sftp.write_attributes(
            sftp.Attributes(5, (3, 4), 0o100644, (told, told))
        )
