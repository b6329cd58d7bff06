"""culvert scp against the SFTP servers of OpenSSH and of the field, and against hostile ones."""

import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hard_names import HARD_NAMES, NEWLINE
from tests.interop import odd_sftp_server
from tests.netns import wait_until
from tests.peers import SFTP_SERVER

PLAIN = (
    "clock",
    "short-reads",
    "shortest-reads",
    "cuts-writes",
    "no-attributes",
    "no-messages",
    "one-name",
)
Scp = Callable[..., subprocess.CompletedProcess[bytes]]


def scp(*words: object, timeout: float = 60) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "appliance", "scp", *map(str, words)],
        capture_output=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def odd(*oddities: str) -> str:
    """The words for -D of a server with oddities."""
    return shlex.join([sys.executable, "-m", "tests.interop.odd_sftp_server", *oddities])


OURS = shlex.join([sys.executable, "-m", "appliance", "sftp-server"])


def assert_copied(done: subprocess.CompletedProcess[bytes]) -> None:
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def contents(root: Path) -> dict[bytes, bytes | None]:
    """Every path below ``root`` with its bytes; None for a directory."""
    found: dict[bytes, bytes | None] = {}
    top = os.fsencode(root)
    for folder, folders, files in os.walk(top):
        for name in folders:
            found[os.path.relpath(os.path.join(folder, name), top)] = None
        for name in files:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, top)] = file.read()
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree of hard names, an empty file and directory, a big file and many small ones."""
    root = tmp_path / "tree"
    (root / "deep/er/est").mkdir(parents=True)
    (root / "empty folder").mkdir()
    (root / "big").write_bytes(os.urandom(3_000_001))
    (root / "exactly").write_bytes(os.urandom(2 * 261120))
    (root / "empty").touch()
    top = os.fsencode(root)
    for index, name in enumerate([*HARD_NAMES, NEWLINE]):
        with open(os.path.join(top, name), "wb") as file:
            file.write(b"%d" % index * 10)
        os.mkdir(os.path.join(top, b"deep", name))
        with open(os.path.join(top, b"deep", name, b"inside"), "wb") as file:
            file.write(name)
    for index in range(300):
        (root / "deep/er" / f"small{index}").write_bytes(b"s" * index)
    return root


@pytest.mark.parametrize("oddities", [(), *((each,) for each in PLAIN), ("out-of-order",)])
def test_a_tree_goes_to_a_bare_server_and_comes_back(
    tree: Path, tmp_path: Path, oddities: tuple[str, ...]
) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    assert_copied(scp("-r", "-D", odd(*oddities), tree, f"x:{there}"))
    assert contents(there) == contents(tree)
    assert_copied(scp("-r", "-D", odd(*oddities), f"x:{there}", back))
    assert contents(back) == contents(tree)


def test_a_tree_goes_to_openssh_s_server_and_comes_back(tree: Path, tmp_path: Path) -> None:
    there, back, across = tmp_path / "there", tmp_path / "back", tmp_path / "across"
    os.chmod(tree / "big", 0o751)
    os.utime(tree / "big", (1_000_000_000, 1_234_567_890))
    assert_copied(scp("-rp", "-D", SFTP_SERVER, tree, f"x:{there}"))
    assert_copied(scp("-rp", "-D", SFTP_SERVER, f"x:{there}", back))
    assert_copied(scp("-rp", "-D", SFTP_SERVER, f"x:{there}", f"x:{across}"))
    for copy in (there, back, across):
        assert contents(copy) == contents(tree)
        status = os.stat(copy / "big")
        assert stat.S_IMODE(status.st_mode) == 0o751
        assert int(status.st_mtime) == 1_234_567_890


def test_each_hard_name_can_be_asked_for(tree: Path, tmp_path: Path) -> None:
    for index, name in enumerate([*HARD_NAMES, NEWLINE]):
        path = os.path.join(os.fsencode(tree), name)
        back = tmp_path / f"back{index}"
        assert_copied(scp("-D", SFTP_SERVER, f"x:{os.fsdecode(path)}", back))
        assert back.read_bytes() == b"%d" % index * 10


def test_patterns_are_expanded_at_the_server(tmp_path: Path) -> None:
    for name in ("a1", "a2", "b1", ".a3"):
        (tmp_path / name).write_text(name)
    back = tmp_path / "back"
    back.mkdir()
    assert_copied(scp("-D", SFTP_SERVER, f"x:{tmp_path}/a?", f"x:{tmp_path}/{{b,c}}1", back))
    assert sorted(os.listdir(back)) == ["a1", "a2", "b1"]


def test_a_server_that_refuses_setstat_gets_a_whole_file(tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(b"x" * 100_000)
    assert_copied(scp("-D", odd("no-setstat"), tmp_path / "here", f"x:{tmp_path}/there"))
    assert (tmp_path / "there").read_bytes() == b"x" * 100_000


def test_a_hole_at_the_end_of_a_file_arrives_at_a_server_that_refuses_setstat(
    tmp_path: Path,
) -> None:
    with open(tmp_path / "here", "wb") as file:
        file.write(b"data")
        file.truncate(10 << 20)
    assert_copied(scp("-D", odd("no-setstat"), tmp_path / "here", f"x:{tmp_path}/there"))
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()


def test_times_that_a_server_leaves_out_do_not_become_1970(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("text")
    done = scp("-p", "-D", odd("no-attributes"), f"x:{tmp_path}/here", tmp_path / "there")
    assert_copied(done)
    assert os.stat(tmp_path / "there").st_mtime > 1_000_000_000


def test_what_fails_is_named_and_the_rest_is_copied(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    (tmp_path / "folder").mkdir()
    back = tmp_path / "back"
    back.mkdir()
    sources = [f"x:{tmp_path}/{name}" for name in ("missing", "folder", "one")]
    done = scp("-D", SFTP_SERVER, *sources, back)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        f"culvert scp: {tmp_path}/missing: No such file or directory",
        f"culvert scp: {tmp_path}/folder: not a regular file",
    ]
    assert (back / "one").read_text() == "1"


def test_the_target_of_several_files_must_be_a_directory(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    for target in (tmp_path / "new", f"x:{tmp_path}/new"):
        done = scp("-D", SFTP_SERVER, f"x:{tmp_path}/one", f"x:{tmp_path}/two", target)
        assert (done.returncode, done.stderr) == (
            1,
            f"culvert scp: {tmp_path}/new: Not a directory\n".encode(),
        )
        assert not (tmp_path / "new").exists()


def test_holes_of_a_local_file_are_not_sent(tmp_path: Path) -> None:
    with open(tmp_path / "here", "wb") as file:
        file.seek(50 << 20)
        file.write(b"data")
        file.truncate(100 << 20)
    assert_copied(scp("-D", odd(), tmp_path / "here", f"x:{tmp_path}/there"))
    status = os.stat(tmp_path / "there")
    assert status.st_size == 100 << 20
    assert status.st_blocks * 512 < 1 << 20
    assert subprocess.run(["cmp", tmp_path / "here", tmp_path / "there"]).returncode == 0


def test_a_temporary_name_is_gone_only_once_the_file_is_whole(tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(os.urandom(1_000_000))
    words = ("--temporary-name", "-D")
    assert_copied(scp(*words, SFTP_SERVER, tmp_path / "here", f"x:{tmp_path}/there"))
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
    done = scp(*words, odd("dies"), f"x:{tmp_path}/here", tmp_path / "back")
    assert done.returncode == 1
    assert not (tmp_path / "back").exists()
    assert b"SFTP server has ended" in done.stderr


# -- hostile servers -----------------------------------------------------------------------


def test_a_name_that_leaves_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").touch()
    done = scp("-r", "-D", odd("climbs"), f"x:{tmp_path}/there", tmp_path / "back")
    assert done.returncode == 1
    assert b"the server lists a file with the name '../climbed'" in done.stderr
    assert not (tmp_path / "climbed").exists()


@pytest.mark.parametrize("flag", ["-q", "-p"])
def test_no_file_becomes_setuid(tmp_path: Path, flag: str) -> None:
    (tmp_path / "there").write_text("text")
    assert_copied(scp(flag, "-D", odd("setuid"), f"x:{tmp_path}/there", tmp_path / "back"))
    assert stat.S_IMODE(os.stat(tmp_path / "back").st_mode) & 0o7000 == 0


@pytest.mark.parametrize(
    ("oddity", "said"),
    [
        ("talks", "the server sent no SFTP, but: 'Welcome to this host!"),
        ("huge-packet", "a packet that is too long"),
        ("other-id", "a reply to a request that was not made"),
        ("wrong-type", "a reply of type 102"),
        ("dies", "the SFTP server has ended"),
    ],
)
def test_a_server_that_breaks_the_protocol_ends_the_copy(
    tmp_path: Path, oddity: str, said: str
) -> None:
    (tmp_path / "there").write_bytes(os.urandom(1_000_000))
    done = scp("-D", odd(oddity), f"x:{tmp_path}/there", tmp_path / "back")
    assert done.returncode == 1
    assert said in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_a_file_without_an_end_fills_no_memory(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"1234")
    words = ("-D", odd("endless"), f"x:{tmp_path}/there", "/dev/full")
    done = scp(*words)
    assert done.returncode == 1
    assert done.stderr == b"culvert scp: /dev/full: No space left on device\n"


def test_a_listing_without_names_ends_the_copy(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    done = scp("-r", "-D", odd("no-names"), f"x:{tmp_path}/there", tmp_path / "back")
    assert done.returncode == 1
    assert b"a listing without an entry" in done.stderr


def test_what_a_server_says_cannot_control_the_terminal(tmp_path: Path) -> None:
    done = scp("-D", odd("escapes"), f"x:{tmp_path}/\x1b[31mmissing", tmp_path / "back")
    assert done.returncode == 1
    assert b"\x1b" not in done.stderr


def test_only_a_new_file_becomes_unwritable(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("read only")
    (tmp_path / "source").chmod(0o444)
    (tmp_path / "old").write_text("was here before")
    (tmp_path / "old").chmod(0o640)
    os.mknod(tmp_path / "null", stat.S_IFCHR, os.makedev(1, 3))  # as "scp host:file /dev/null"
    (tmp_path / "null").chmod(0o666)
    for name, mode in (("new", 0o444), ("old", 0o640), ("null", 0o666)):
        assert_copied(scp("-D", odd(), f"x:{tmp_path}/source", tmp_path / name))
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode


@pytest.mark.parametrize(
    "source", ["/proc/kallsyms", "/sys/kernel/mm/transparent_hugepage/enabled"]
)
@pytest.mark.parametrize("server", [SFTP_SERVER, OURS], ids=["openssh", "ours"])
def test_a_file_of_the_kernel_s_is_copied_whole(tmp_path: Path, server: str, source: str) -> None:
    # whose size is not what can be read, and of which one read brings only a part
    assert_copied(scp("-D", server, source, f"x:{tmp_path}/there"))
    assert (tmp_path / "there").read_bytes() == Path(source).read_bytes()


@pytest.mark.parametrize("server", [SFTP_SERVER, OURS], ids=["openssh", "ours"])
def test_a_copy_onto_itself_leaves_the_file(tmp_path: Path, server: str) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    (tmp_path / "link").symlink_to("file")
    for target in (file, tmp_path, tmp_path / "link"):
        done = scp("-D", server, f"x:{file}", f"x:{target}")
        told = f"culvert scp: {file}: source and target are the same file\n"
        assert (done.returncode, done.stderr) == (1, told.encode())
        assert file.read_text() == "precious"
    assert_copied(scp("-D", server, f"x:{file}", f"x:{tmp_path}/other"))
    assert (tmp_path / "other").read_text() == "precious"


def test_a_tree_that_was_not_asked_for_is_left(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").write_text("x")
    assert_copied(scp("-r", "-D", odd("other-tree"), f"x:{tmp_path}/there", tmp_path / "here"))
    assert contents(tmp_path / "here") == {b"file": b"x"}


def test_a_server_that_never_ends_its_output_is_left(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("x")
    words = ("-D", odd("floods"), f"x:{tmp_path}/there", tmp_path / "here")
    assert_copied(scp(*words, timeout=20))
    assert (tmp_path / "here").read_text() == "x"


def test_a_failure_at_the_end_of_a_file_is_told_with_its_name(tmp_path: Path) -> None:
    with open(tmp_path / "there", "wb") as file:
        file.truncate(1 << 20)  # a hole, whose end is set at last
    words = ["-D", OURS, f"x:{tmp_path}/there", f"{tmp_path}/here"]
    done = subprocess.run(
        ["prlimit", f"--fsize={1 << 16}", sys.executable, "-m", "appliance", "scp", *words],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    told = f"culvert scp: {tmp_path}/here: File too large\n"
    assert (done.returncode, done.stderr) == (1, told.encode())


def test_many_small_holes_are_kept_by_our_server_and_not_sent(tmp_path: Path) -> None:
    with open(tmp_path / "there", "wb") as file:
        for offset in range(0, 64 << 20, 64 << 10):
            os.pwrite(file.fileno(), b"data", offset)
    assert_copied(scp("-D", OURS, f"x:{tmp_path}/there", tmp_path / "here"))
    there, here = os.stat(tmp_path / "there"), os.stat(tmp_path / "here")
    assert here.st_size == there.st_size
    assert here.st_blocks < 2 * there.st_blocks
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()


def test_a_link_to_where_it_lies_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "here/sub").mkdir(parents=True)
    (tmp_path / "here/file").write_text("x")
    for name in ("here/one", "here/sub/two"):  # each doubles what the other one leads to
        (tmp_path / name).symlink_to(tmp_path / "here")
    done = scp("-r", "-D", odd(), tmp_path / "here", f"x:{tmp_path}/there")
    told = sorted(done.stderr.splitlines())
    reason = "Too many levels of symbolic links"
    assert told == [
        f"culvert scp: {tmp_path}/{name}: {reason}".encode()
        for name in ("here/one", "here/sub/two")
    ]
    assert done.returncode == 1
    assert contents(tmp_path / "there") == {b"file": b"x", b"sub": None}


@pytest.mark.parametrize("target", ["up", "down", "across"])
def test_a_file_that_is_cut_meanwhile_is_a_failure(tmp_path: Path, target: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(8 << 20))
    source, to = (
        f"{where}{tmp_path}/{name}"
        for where, name in (
            ("" if target == "up" else "x:", "file"),
            ("" if target == "down" else "x:", "copy"),
        )
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "appliance", "scp", "-l", "16000", "-D", SFTP_SERVER, source, to],
        stderr=subprocess.PIPE,
    )
    wait_until(lambda: (tmp_path / "copy").exists() and (tmp_path / "copy").stat().st_size > 0)
    os.truncate(file, 1000)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    assert stderr == f"culvert scp: {file}: the file has become shorter\n".encode()


def test_the_oddities_have_their_tests() -> None:
    """Here, or in what is tried with a mount."""
    here = Path(__file__)
    text = here.read_text() + here.with_name("test_mount_hostile.py").read_text()
    assert [name for name in odd_sftp_server.ODDITIES if f'"{name}"' not in text] == []
