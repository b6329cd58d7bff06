"""Packets, good and bad: what is answered, and what ends the server."""

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.process import ourselves
from appliance.sftp.server import Unanswerable
from appliance.wire import sftp
from appliance.wire.codec import Message, write_string
from tests.unit.sftp.conftest import REPLIES, Client, Make


def packet(*parts: bytes) -> bytes:
    return write_string(b"".join(parts))


@pytest.mark.parametrize("version", [3, 4, 5, 6, 99])
def test_every_version_is_answered_with_3_and_all_extensions(version: int) -> None:
    reply = Client().ask(sftp.Init(version, b"newline\0" if version > 3 else b""))
    assert reply == sftp.Version(3, tuple(sftp.EXTENSIONS.items()))


def test_a_transcript_means_the_same_byte_by_byte(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    requests = [
        sftp.Init(3),
        sftp.Open(1, bytes(tmp_path / "file"), sftp.READ, sftp.Attributes()),
        sftp.Read(2, b"\0\0\0\0", 2, 100),
        sftp.Read(3, b"\0\0\0\0", 7, 100),
        sftp.Close(4, b"\0\0\0\0"),
        sftp.Close(5, b"\0\0\0\0"),
    ]
    data = b"".join(write_string(request.encode()) for request in requests)
    whole, piecemeal = Client(), Client()
    replies = whole.raw(data)
    assert whole.writes == 1
    left = b""
    for byte in data:
        left += bytes((byte,))
        left = left[piecemeal.server.receive(memoryview(left)) :]
    assert piecemeal.replies() == replies
    assert replies[2:4] == [sftp.Data(2, b"ntent"), sftp.Status(3, sftp.EOF, "End of file")]
    assert [reply.code for reply in replies[4:] if isinstance(reply, sftp.Status)] == [
        sftp.OK,
        sftp.FAILURE,
    ]


def test_a_request_before_init_is_refused_and_init_still_counts(tmp_path: Path) -> None:
    client = Client()
    assert client.code(sftp.Remove(5, bytes(tmp_path))) == sftp.BAD_MESSAGE
    assert tmp_path.exists()
    assert client.start().code(sftp.RmDir(6, bytes(tmp_path))) == sftp.OK


@pytest.mark.parametrize(
    "data",
    [
        packet(b"\1\0\0\0\3"),  # a second INIT
        packet(b"\1"),
        packet(b""),
        packet(b"\3\0\0\0"),
        b"\xff\xff\xff\xff\1\0\0\0\3",
    ],
)
def test_what_has_no_request_number_ends_the_server(client: Client, data: bytes) -> None:
    with pytest.raises(Unanswerable):
        client.raw(data)
    assert not client.sent


@pytest.mark.parametrize("length", [sftp.PACKET_LIMIT + 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_packet_too_long_is_refused_by_its_number_and_ends_the_server(
    client: Client, length: int
) -> None:
    head = length.to_bytes(4, "big")
    assert client.raw(head + b"\6\0\0") == []  # the number may still come
    with pytest.raises(Unanswerable):
        client.raw(head + b"\6\0\0\0\7more")
    (reply,) = client.replies()
    assert isinstance(reply, sftp.Status)
    assert (reply.id, reply.code) == (7, sftp.BAD_MESSAGE)


@pytest.mark.parametrize(
    "body",
    [
        b"\3\0\0\0\7",
        b"\3\0\0\0\7\xff\xff\xff\xff",
        b"\3\0\0\0\7\0\0\0\4/tmp\0\0\0\1\x40\0\0\0",  # flags that version 3 does not have
        b"\4\0\0\0\7\0\0\0\4\0\0\0\0more",
        b"\4\0\0\0\7\xff\xff\xff\xff\0\0\0\0",
        b"\5\0\0\0\7\0\0\0\4\0\0\0\0",
        b"\6\0\0\0\7\0\0\0\4\0\0\0\0\0\0\0\0\0\0\0\0\xff\xff\xff\xffdata",
        b"\6\0\0\0\7\0\0\0\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\5data",
        b"\6\0\0\0\7\0\0\1\0",
        b"\x0b\0\0\0\7\0\0\0\5/tm\0p",
        b"\x12\0\0\0\7\0\0\0\1a\0\0\0\2\0b",
        b"\xc8\0\0\0\7\0\0\0\2\xff\xff",
        b"\xc8\0\0\0\7\0\0\0\x09copy-datashort",
    ],
)
def test_a_request_that_cannot_be_read_is_a_bad_message(client: Client, body: bytes) -> None:
    (reply,) = client.raw(packet(body))
    assert isinstance(reply, sftp.Status)
    assert (reply.id, reply.code) == (7, sftp.BAD_MESSAGE), reply
    assert client.names(sftp.RealPath(8, b"/")) == [b"/"]


@pytest.mark.parametrize("body", [b"\0", b"\2", b"\x15", b"\x65", b"\xc9", b"\xff"])
def test_an_unknown_request_is_unsupported(client: Client, body: bytes) -> None:
    (reply,) = client.raw(packet(body, b"\0\0\0\7whatever"))
    assert isinstance(reply, sftp.Status)
    assert (reply.id, reply.code) == (7, sftp.OP_UNSUPPORTED)
    assert "nsupported" in client.refusal("fork@example.org")


@pytest.mark.parametrize(
    "handle", [b"", b"\0", b"\0\0\0\1", b"\xff" * 4, b"\0" * 5, b"x" * 256, b"x" * 200_000]
)
def test_a_wrong_handle_is_a_failure(client: Client, tmp_path: Path, handle: bytes) -> None:
    (tmp_path / "file").touch()
    assert client.open(bytes(tmp_path / "file")) == b"\0\0\0\0"
    for request in (
        sftp.Close(7, handle),
        sftp.Read(7, handle, 0, 1),
        sftp.Write(7, handle, 0, b"x"),
        sftp.FStat(7, handle),
        sftp.FSetStat(7, handle, sftp.Attributes(size=0)),
        sftp.ReadDir(7, handle),
    ):
        reply = client.ask(request)
        assert reply == sftp.Status(7, sftp.FAILURE, "Invalid handle")
    for name in (sftp.FSTATVFS, sftp.FSYNC):
        assert client.refusal(name, sftp.OneHandle(handle)) == "Invalid handle"


def test_the_options_refuse_requests_and_what_stands_for_them(make: Make, tmp_path: Path) -> None:
    path = bytes(tmp_path / "file")
    (tmp_path / "file").write_text("text")
    denying = make(denied={"open", "remove"})
    assert denying.code(sftp.Remove(1, path)) == sftp.PERMISSION_DENIED
    for name, data in (
        (sftp.READ_FILE, sftp.ReadFile(path, 10)),
        (
            sftp.WRITE_FILE,
            sftp.WriteFile(path, sftp.WRITE, sftp.Attributes(), b"", sftp.Attributes()),
        ),
    ):
        assert denying.refusal(name, data) == "Permission denied"
    allowing = make(allowed={"open", "read", "close", "realpath"})
    assert allowing.code(sftp.Stat(1, path)) == sftp.PERMISSION_DENIED
    assert allowing.refusal(sftp.STATVFS, sftp.OnePath(path)) == "Permission denied"
    assert allowing.reply(sftp.FileContent, sftp.READ_FILE, sftp.ReadFile(path, 10)).data == b"text"
    assert allowing.names(sftp.RealPath(1, path)) == [path]
    told = Client(allowed={"open"}).ask(sftp.Init(3))
    assert told == sftp.Version(3, ((sftp.NANOSECONDS, b"1"), (sftp.LOCK, b"1")))


def test_read_only_refuses_every_change(make: Make, tmp_path: Path) -> None:
    path, new = bytes(tmp_path / "file"), bytes(tmp_path / "new")
    (tmp_path / "file").write_text("text")
    client = make(read_only=True)
    nothing = sftp.Attributes()
    handle = client.open(path)
    for request in (
        sftp.Open(1, path, sftp.WRITE, nothing),
        sftp.Open(1, new, sftp.READ | sftp.CREATE, nothing),
        sftp.Open(1, path, sftp.READ | sftp.TRUNCATE, nothing),
        sftp.Write(1, handle, 0, b"x"),
        sftp.SetStat(1, path, sftp.Attributes(size=0)),
        sftp.FSetStat(1, handle, sftp.Attributes(size=0)),
        sftp.Remove(1, path),
        sftp.MkDir(1, new, nothing),
        sftp.RmDir(1, bytes(tmp_path)),
        sftp.Rename(1, path, new),
        sftp.SymLink(1, path, new),
    ):
        assert client.code(request) == sftp.PERMISSION_DENIED, request
    for name, data in (
        (sftp.POSIX_RENAME, sftp.TwoPaths(path, new)),
        (sftp.HARDLINK, sftp.TwoPaths(path, new)),
        (sftp.LSETSTAT, sftp.PathAttributes(path, sftp.Attributes(times=(1, 1)))),
        (sftp.COPY_DATA, sftp.CopyData(handle, 0, 0, handle, 9)),
        (sftp.FSYNC, sftp.OneHandle(handle)),
        (sftp.WRITE_FILE, sftp.WriteFile(path, sftp.WRITE, nothing, b"", nothing)),
        (sftp.SET_XATTR, sftp.SetXattr(path, b"user.x", b"", 0)),
        (sftp.REMOVE_XATTR, sftp.NamedXattr(path, b"user.x")),
    ):
        assert client.refusal(name, data) == "Permission denied", name
    assert client.ask(sftp.Read(1, handle, 0, 9)) == sftp.Data(1, b"text")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_journal_tells_in_openssh_s_words_and_reports_changes(
    client: Client, tmp_path: Path
) -> None:
    path = bytes(tmp_path / 'a "b"\n')
    shown = f'"{tmp_path}/a \\"b\\"\\x0a"'
    handle = client.open(path, sftp.WRITE | sftp.CREATE)
    client.ask(sftp.Write(1, handle, 0, b"abc"))
    client.ask(sftp.Close(1, handle))
    client.ask(sftp.SetStat(1, path, sftp.Attributes(size=1, permissions=0o100640)))
    client.ask(sftp.Rename(1, path, path + b"x"))
    client.ask(sftp.Remove(1, path))
    assert client.lines[1:] == [
        f"open {shown} flags WRITE,CREATE mode 0666",
        f"close {shown} bytes read 0 written 3",
        f"set {shown} size 1",
        f"set {shown} mode 100640",
        f'rename old {shown} new {shown[:-1]}x"',
        f"remove name {shown}",
        "sent status No such file or directory",
    ]
    assert [(each.operation, each.path, each.target, each.error) for each in client.reports] == [
        ("write", path, b"", 0),
        ("setstat", path, b"", 0),
        ("rename", path, path + b"x", 0),
        ("remove", path, b"", 2),
    ]


# The program


def run(data: bytes, *options: str) -> subprocess.CompletedProcess[bytes]:
    code = "import sys; from appliance.cli.sftp_server import main; "
    code += "raise SystemExit(main(sys.argv[1:], 'sftp-server'))"
    return subprocess.run(
        [sys.executable, "-c", code, *options],
        input=data, capture_output=True, timeout=30, check=False,
        cwd=Path(__file__).resolve().parents[3],
    )  # fmt: skip


INIT = write_string(sftp.Init(3).encode())


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (INIT + INIT, "a second INIT"),
        (b"\xff\xff\xff\xffxxxxx", "a packet of 4294967295 bytes"),
        (b"\0\0\0\1\3", "a packet without a request"),
    ],
)
def test_the_program_ends_with_one_line(data: bytes, told: str) -> None:
    done = run(data)
    assert (done.returncode, done.stderr.decode()) == (1, f"sftp-server: {told}\n")


def test_the_program_ends_with_its_input_in_the_middle_of_a_packet() -> None:
    done = run(INIT + INIT[:6], "-e", "-l", "INFO")
    assert done.returncode == 0
    assert done.stdout == write_string(sftp.Version(3, tuple(sftp.EXTENSIONS.items())).encode())
    lines = done.stderr.decode().splitlines()
    assert [line.partition(" for")[0] for line in lines] == ["session opened", "session closed"]


def test_the_options_are_those_of_openssh(tmp_path: Path) -> None:
    known = run(b"", "-Q", "requests")
    assert known.returncode == 0
    names = known.stdout.decode().split()
    assert names[:3] == ["open", "close", "read"]
    assert {"posix-rename", "users-groups-by-id", "lookup-tree"} < set(names)
    helped = run(b"", "-h")
    assert helped.returncode == 1
    assert helped.stderr.startswith(b"usage: sftp-server [-ehR]")
    made = write_string(sftp.MkDir(1, b"folder", sftp.Attributes(permissions=0o777)).encode())
    assert run(INIT + made, "-d", str(tmp_path), "-u", "027").returncode == 0
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750
    assert run(INIT + made, "-Rd", str(tmp_path)).returncode == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["-x"], "unknown option -x"),
        (["--chroot=/"], "unknown option --chroot=/"),
        (["--ignore"], "unknown option --ignore"),
        (["-d"], "-d needs a word"),
        (["word"], "unexpected argument 'word'"),
        (["-l", "LOUD"], "-l LOUD: expected one of QUIET"),
        (["-f", "X"], "-f X: expected one of DAEMON"),
        (["-u", "8"], "-u 8: expected an octal number"),
        (["-u", "1777"], "-u 1777: expected an octal number"),
        (["-P", "open,frob"], "there is no request 'frob'"),
        (["-Q", "x"], "-Q x: expected 'requests'"),
        (["-d", "%h"], "-d %h: expected no tokens"),
    ],
)
def test_a_mistake_in_the_command_line_is_one_line(options: list[str], told: str) -> None:
    done = run(INIT, *options)
    assert done.returncode == 1
    assert done.stderr.decode().startswith(f"sftp-server: {told}")
    assert done.stderr.count(b"\n") == 1


def test_a_reader_that_is_gone_ends_the_program_quietly() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    code = "from appliance.cli.sftp_server import main; raise SystemExit(main([], 'sftp-server'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=INIT, stdout=theirs, stderr=subprocess.PIPE, timeout=30, check=False,
        cwd=Path(__file__).resolve().parents[3],
    )  # fmt: skip
    os.close(theirs)
    assert (done.returncode, done.stderr) == (1, b"")


def test_the_program_has_little_memory_of_its_own_whatever_is_asked(tmp_path: Path) -> None:
    """12 MiB, idle and with large requests in both directions."""
    command = ourselves.bare_command(
        "from appliance.cli.sftp_server import main; raise SystemExit(main(sys.argv[1:], 'x'))"
    )
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(*requests: Message) -> None:
            for request in requests:
                process.stdin.write(write_string(request.encode()))  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            for _ in requests:
                length = int.from_bytes(process.stdout.read(4), "big")  # type: ignore[union-attr]
                process.stdout.read(length)  # type: ignore[union-attr]

        def private() -> int:
            """KiB."""
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
            return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))

        ask(sftp.Init(3))
        assert private() < 12 << 10
        ask(sftp.Open(1, bytes(tmp_path / "f"), 0x1B, sftp.Attributes()))
        data = bytes(sftp.DATA_LIMIT)
        for number in range(40):
            ask(sftp.Write(1, bytes(4), number * len(data), data))
        ask(*(sftp.Read(1, bytes(4), number << 10, 0xFFFFFFFF) for number in range(40)))
        ask(*(sftp.Stat(1, b"x" * 200_000) for _ in range(20)))
        assert private() < 12 << 10


class Program:
    """A running server, which is asked over pipes."""

    def __init__(self) -> None:
        code = "from appliance.cli.sftp_server import main; "
        code += "raise SystemExit(main(sys.argv[1:], 'sftp-server'))"
        self.process = subprocess.Popen(
            ourselves.bare_command(code), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.send(sftp.Init(3))
        self.read()

    def send(self, request: Message) -> None:
        self.stdin.write(write_string(request.encode()))
        self.stdin.flush()

    def read(self) -> Message:
        """The next reply, which has to come within some seconds."""
        assert select.select([self.stdout], [], [], 10)[0], "no reply"
        length = int.from_bytes(self.stdout.read(4), "big")
        packet = self.stdout.read(length)
        return REPLIES[packet[0]].decode(packet)

    def is_silent(self, seconds: float = 0.2) -> bool:
        return not select.select([self.stdout], [], [], seconds)[0]

    def close(self) -> None:
        self.stdin.close()
        assert self.process.wait(10) == 0
        self.stdout.close()


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    """Two running servers."""
    running = [Program(), Program()]
    yield running
    for each in running:
        each.close()


def test_changes_come_while_the_program_waits_for_requests(
    programs: list[Program], tmp_path: Path
) -> None:
    program = programs[0]
    program.send(sftp.Extended(1, sftp.WATCH, sftp.OnePath(bytes(tmp_path)).encode()))
    assert isinstance(program.read(), sftp.ExtendedReply)
    program.send(sftp.Extended(2, sftp.CHANGES))
    assert program.is_silent()
    program.send(sftp.RealPath(3, b"/"))
    assert isinstance(program.read(), sftp.Names)
    (tmp_path / "new").touch()
    reply = program.read()
    assert isinstance(reply, sftp.ExtendedReply)
    assert reply.id == 2
    assert sftp.ChangesReply.decode(reply.data).changes == (sftp.Change(1, b"new"),)
    program.send(sftp.Extended(4, sftp.CHANGES))  # the end does not wait for it


def test_a_lock_that_another_session_gives_up_is_passed_on(
    programs: list[Program], tmp_path: Path
) -> None:
    first, second = programs
    request = sftp.Lock(bytes(4), sftp.LOCK_EXCLUSIVE, 0, 0, True)
    for program in programs:
        program.send(sftp.Open(1, bytes(tmp_path / "file"), 0x0B, sftp.Attributes()))
        assert isinstance(program.read(), sftp.Handle)
    first.send(sftp.Extended(2, sftp.LOCK, request.encode()))
    assert first.read() == sftp.Status(2, sftp.OK, "Success")
    second.send(sftp.Extended(2, sftp.LOCK, request.encode()))
    assert second.is_silent()
    second.send(sftp.Read(3, bytes(4), 0, 1))
    assert second.read() == sftp.Status(3, sftp.EOF, "End of file")
    first.send(sftp.Close(4, bytes(4)))
    assert first.read() == sftp.Status(4, sftp.OK, "Success")
    assert second.read() == sftp.Status(2, sftp.OK, "Success")


def test_a_session_begins_in_the_home_also_where_the_server_is_not_root(tmp_path: Path) -> None:
    code = "from appliance.cli.sftp_server import session; raise SystemExit(session(sys.argv))"
    for home, wanted in ((tmp_path, bytes(tmp_path)), (tmp_path / "none", b"/")):
        done = subprocess.run(
            ourselves.bare_command(code, "", "", ""),
            input=INIT + write_string(sftp.RealPath(1, b".").encode()),
            env={"HOME": str(home)}, capture_output=True, timeout=30, check=False,
        )  # fmt: skip
        told = write_string(wanted)
        assert done.stdout.endswith(told + told + bytes(4)), done


def test_descriptors_that_do_not_block_are_made_to() -> None:
    code = "from appliance.cli.sftp_server import main; raise SystemExit(main([], 'sftp-server'))"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        end = theirs.fileno()
        with subprocess.Popen(ourselves.bare_command(code), stdin=end, stdout=end) as process:
            time.sleep(0.3)
            ours.sendall(INIT)
            ours.settimeout(10)
            assert ours.recv(9)[4:] == b"\2\0\0\0\3"
            ours.shutdown(socket.SHUT_WR)
            assert process.wait(10) == 0
