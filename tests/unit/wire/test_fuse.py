"""The kernel's FUSE protocol: by the bytes of several kernels, and with the kernel itself."""

import contextlib
import ctypes
import errno
import os
import stat
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import MalformedMessage
from appliance.wire import fuse

WANTED = fuse.ASYNC_READ | fuse.BIG_WRITES | fuse.DO_READDIRPLUS | fuse.MAX_PAGES
CONTENT = b"hello from user space\n"


def request(opcode: int, body: bytes, node: int = fuse.ROOT, extensions: bytes = b"") -> bytes:
    length = 40 + len(body) + len(extensions)
    head = struct.pack("=IIQQIIIHH", length, opcode, 7, node, 1, 2, 3, len(extensions) // 8, 0)
    return head + body + extensions


def init_of(minor: int, flags: int, length: int) -> bytes:
    """INIT as a kernel sends it: 16 bytes before 7.36, then 64."""
    return request(fuse.INIT, struct.pack("=IIII", 7, minor, 131072, flags).ljust(length, b"\0"))


@pytest.mark.parametrize(
    ("minor", "flags", "length", "replied", "largest"),
    [
        (26, 0x3FFFB, 16, 64, 131072),  # Linux 4.9, without MAX_PAGES
        (31, 0x7FFFFFB, 16, 64, 1 << 20),  # Linux 5.10
        (38, 0x73FFFFFB, 64, 64, 1 << 20),  # Linux 6.1
        (45, 0x73FFFFFB, 64, 64, 1 << 20),  # Linux 6.18
        (22, 0x3FFB, 16, 24, 131072),  # Linux 3.14: a short reply
    ],
)
def test_init_agrees_with_each_kernel(
    minor: int, flags: int, length: int, replied: int, largest: int
) -> None:
    asked = fuse.parse(memoryview(init_of(minor, flags, length)))
    structure, agreement = fuse.negotiate(asked, WANTED, 1 << 20)
    assert len(structure) == replied
    assert agreement == fuse.Agreement(minor, flags & WANTED, largest)
    major, own_minor, _, agreed = struct.unpack_from("=IIII", structure)
    assert (major, own_minor, agreed) == (7, minor, flags & WANTED)
    assert struct.unpack_from("=I", structure, 20) == (largest,)


def test_a_newer_major_version_is_asked_to_come_down_and_an_old_kernel_is_refused() -> None:
    newer = fuse.parse(memoryview(request(fuse.INIT, struct.pack("=IIII", 8, 0, 0, 0))))
    structure, agreement = fuse.negotiate(newer, WANTED, 1 << 20)
    assert agreement is None
    assert struct.unpack_from("=I", structure) == (7,)
    older = fuse.parse(memoryview(init_of(18, 0, 16)))
    with pytest.raises(MalformedMessage, match=r"FUSE 7\.18, which is too old"):
        fuse.negotiate(older, WANTED, 1 << 20)


def test_fields_names_and_data_are_found() -> None:
    rename = fuse.parse(memoryview(request(fuse.RENAME2, struct.pack("=QI4x", 5, 1) + b"a\0b\0")))
    assert rename.fields() == (5, 1)
    assert rename.names() == (b"a", b"b")
    head = struct.pack("=QQIIQI4x", 1, 4096, 3, 0, 0, 0)
    assert bytes(fuse.parse(memoryview(request(fuse.WRITE, head + b"abc"))).data()) == b"abc"
    value = struct.pack("=II", 2, 0) + b"user.x\0" + b"\0v"
    asked = fuse.parse(memoryview(request(fuse.SETXATTR, value)))
    assert (asked.names(), bytes(asked.data())) == ((b"user.x",), b"\0v")
    with_context = request(fuse.LOOKUP, b"name\0", extensions=bytes(8))
    assert fuse.parse(memoryview(with_context)).names() == (b"name",)
    forget = struct.pack("=II", 2, 0) + struct.pack("=QQQQ", 1, 2, 3, 4)
    asked = fuse.parse(memoryview(request(fuse.BATCH_FORGET, forget)))
    assert asked.forgotten() == [(1, 2), (3, 4)]


@given(opcode=st.integers(0, 60), body=st.binary(max_size=120))
def test_arbitrary_bytes_are_a_request_or_malformed(opcode: int, body: bytes) -> None:
    asked = fuse.parse(memoryview(request(opcode, body)))
    for read in (asked.fields, asked.names):
        with contextlib.suppress(MalformedMessage):
            read()
    with pytest.raises(MalformedMessage):
        fuse.parse(memoryview(request(opcode, body)[:39]))
    with pytest.raises(MalformedMessage):
        fuse.parse(memoryview(request(opcode, body) + b"x"))


@given(
    st.builds(
        fuse.Attributes,
        *[st.integers(0, 2**64 - 1)] * 3,
        *[st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32 - 1))] * 3,
        *[st.integers(0, 2**32 - 1)] * 6,
    )
)
def test_packed_attributes_are_read_as_a_whole_and_by_field(given: fuse.Attributes) -> None:
    packed = given.encode()
    assert fuse.Attributes.decode(packed) == given
    assert fuse.size_in(packed) == given.size
    assert fuse.mode_in(packed) == given.mode
    assert fuse.links_in(packed) == given.links
    assert fuse.inode_in(packed) == given.inode
    assert fuse.Attributes.decode(fuse.with_inode(packed, 5)) == given._replace(inode=5)


def test_the_time_of_the_last_change_is_exchanged_for_another() -> None:
    first = fuse.Attributes(1, 2, 3, (4, 5), (6, 7), (8, 9), 10, 11, 12, 13)
    other = first._replace(changed=(-1, 999_999_999))
    changed = fuse.changed_in(other.encode())
    assert changed != fuse.changed_in(first.encode())
    assert fuse.with_changed(first.encode(), changed) == other.encode()


def test_a_version_tells_content_and_not_what_reading_changes() -> None:
    first = fuse.Attributes(1, 2, 3, (4, 5), (6, 7), (8, 9), 10, 11, 12, 13)
    version = fuse.version_in(first.encode())
    assert fuse.version_in(first._replace(accessed=(0, 0), blocks=9).encode()) == version
    changes = (
        {"size": 0},
        {"modified": (6, 8)},
        {"changed": (8, 0)},
        {"inode": 2},
        {"mode": 1},
        {"uid": 0},
    )
    for change in changes:
        assert fuse.version_in(first._replace(**change).encode()) != version


def test_entries_are_padded() -> None:
    entries = [fuse.directory_entry(1, 2, 4, b"x" * length) for length in (1, 8, 9)]
    assert list(map(len, entries)) == [32, 32, 40]


# -- the kernel itself ---------------------------------------------------------------------


class Files:
    """A file system with one file, which can be written."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.content = bytearray(CONTENT)
        self.asked: set[int] = set()

    def serve(self) -> None:
        """Answers until the file system is unmounted."""
        buffer = bytearray((1 << 20) + 4096)
        while True:
            try:
                count = os.readv(self._fd, [buffer])
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                continue
            asked = fuse.parse(memoryview(buffer)[:count])
            self.asked.add(asked.opcode)
            if asked.opcode in (fuse.FORGET, fuse.BATCH_FORGET, fuse.INTERRUPT):
                continue
            with contextlib.suppress(FileNotFoundError):  # the caller was killed
                try:
                    os.writev(self._fd, fuse.reply(asked.unique, *self._answer(asked)))
                except NotImplementedError:
                    os.write(self._fd, fuse.failure(asked.unique, errno.ENOSYS))
                except OSError as error:
                    os.write(self._fd, fuse.failure(asked.unique, error.errno or errno.EIO))

    def _attributes(self, node: int) -> fuse.Attributes:
        when = (-5, 123_456_789)
        if node == fuse.ROOT:
            return fuse.Attributes(1, 0, 0, when, when, when, stat.S_IFDIR | 0o755, 2, 0, 0)
        size = len(self.content)
        return fuse.Attributes(2, size, 8, when, when, when, stat.S_IFREG | 0o640, 1, 3, 4)

    def _answer(self, asked: fuse.Request) -> list[bytes]:
        opcode = asked.opcode
        if opcode == fuse.INIT:
            structure, agreement = fuse.negotiate(asked, WANTED, 1 << 20)
            assert agreement is not None
            return [structure]
        if opcode == fuse.LOOKUP:
            if asked.names() != (b"file",):
                raise FileNotFoundError(errno.ENOENT, "")
            return [fuse.entry(2, 0.5, 0.5, self._attributes(2).encode())]
        if opcode in (fuse.GETATTR, fuse.SETATTR):
            if opcode == fuse.SETATTR and asked.fields()[0] & fuse.FATTR_SIZE:
                size = asked.fields()[2]
                self.content[:] = self.content[:size].ljust(size, b"\0")
            return [fuse.attributes_reply(0, self._attributes(asked.node).encode())]
        if opcode in (fuse.OPEN, fuse.OPENDIR):
            return [fuse.opened(9, 0)]
        if opcode == fuse.READ:
            _, offset, size, *_ = asked.fields()
            return [bytes(self.content[offset : offset + size])]
        if opcode == fuse.WRITE:
            data = asked.data()
            offset = asked.fields()[1]
            self.content[offset : offset + len(data)] = data
            return [fuse.written(len(data))]
        if opcode == fuse.READDIRPLUS:
            _, offset, size, *_ = asked.fields()
            entry = fuse.entry(2, 1, 1, self._attributes(2).encode())
            entries = [entry + fuse.directory_entry(2, 1, stat.S_IFREG >> 12, b"file")]
            return entries[offset:]
        if opcode == fuse.STATFS:
            return [fuse.statistics(1000, 500, 400, 10, 5, 4096, 255, 4096)]
        if opcode in (fuse.FLUSH, fuse.RELEASE, fuse.RELEASEDIR, fuse.ACCESS, fuse.DESTROY):
            asked.fields()
            return []
        raise NotImplementedError


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[tuple[Path, Files]]:
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    libc = ctypes.CDLL(None, use_errno=True)
    place = tmp_path / "mount"
    place.mkdir()
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
    flags = 2 | 4  # MS_NOSUID, MS_NODEV
    if libc.mount(b"test", bytes(place), b"fuse.test", flags, options):
        os.close(fd)
        raise OSError(ctypes.get_errno(), "mount")
    files = Files(fd)
    serving = threading.Thread(target=files.serve)
    serving.start()
    yield place, files
    subprocess.run(["umount", place], check=True)
    serving.join()
    os.close(fd)


def run(*words: object) -> str:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True)
    return done.stdout


def test_the_kernel_reads_and_writes_a_file_system(mounted: tuple[Path, Files]) -> None:
    place, files = mounted
    assert run("ls", place) == "file\n"
    assert run("cat", place / "file").encode() == CONTENT
    told = run("stat", "-c", "%s %b %a %u %g %h %i %.9Y", place / "file")
    assert told == f"{len(CONTENT)} 8 640 3 4 1 2 -4.876543211\n"
    assert run("stat", "-f", "-c", "%b %f %a %c %d %l %S", place) == "1000 500 400 10 5 255 4096\n"
    run("sh", "-c", f"printf abc > {place}/file")
    assert bytes(files.content) == b"abc"
    subprocess.run(["ls", place / "none"], stderr=subprocess.DEVNULL, check=False)
    assert {fuse.INIT, fuse.LOOKUP, fuse.READDIRPLUS, fuse.SETATTR, fuse.WRITE} <= files.asked
