"""The old scp protocol: our near end, our far end, and OpenSSH's of each.

Without a network where the protocol is what matters: the near end's ssh is a shell.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.files.old_scp import near_end
from appliance.files.old_scp.near_end import far_command
from appliance.files.old_scp.peer import ScpSettings
from tests.hard_names import HARD_NAMES, NEWLINE, content, make_tree
from tests.interop.conftest import words_of, write_program
from tests.peers import (
    CLIENTS,
    KEY_TYPES,
    PATH,
    ROOT,
    SERVERS,
    Account,
    ClientKind,
    Keyring,
    Login,
    Server,
    ServerKind,
    ServerSettings,
    environment,
    find_program,
    private_folder,
)

FAR_END = "from appliance.cli.scp_far_end import main; import sys; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(params=["openssh", "culvert"])
def far(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], list[str]]:
    """A function that gives the words that run a command at the far end, whose scp is this."""
    folder = tmp_path / "bin"
    folder.mkdir()
    if request.param == "openssh":
        (folder / "scp").symlink_to(find_program("scp"))
    else:
        write_program(folder / "scp", [sys.executable, "-c", FAR_END])
    variables = [f"PATH={folder}:{PATH}", f"PYTHONPATH={ROOT}"]
    return lambda command: ["env", *variables, "sh", "-c", command]


class NearEnd:
    """Our near end, towards the far end of the parameter."""

    def __init__(self, far: Callable[[str], list[str]]) -> None:
        self.far = far
        self.told: list[bytes] = []

    def upload(self, sources: list[Path | bytes], target: str, settings: ScpSettings) -> bool:
        words = self.far(far_command("t", target, settings))
        return near_end.upload(words, list(map(os.fsencode, sources)), settings, self.told.append)

    def download(
        self, request: bytes, target: Path, settings: ScpSettings, any_name: bool = False
    ) -> bool:
        return near_end.download(
            self.far(far_command("f", os.fsdecode(request), settings)),
            None if any_name else request,
            bytes(target),
            settings,
            self.told.append,
        )


@pytest.fixture
def near(far: Callable[[str], list[str]]) -> NearEnd:
    return NearEnd(far)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    folder.mkdir()
    make_tree(folder)
    return folder


def test_a_tree_of_hard_names_goes_there_and_back(
    near: NearEnd, tree: Path, tmp_path: Path
) -> None:
    settings = ScpSettings(recursive=True)
    assert near.upload([tree], str(tmp_path / "there"), settings), near.told
    assert near.download(bytes(tmp_path / "there"), tmp_path / "back", settings), near.told
    assert content(tmp_path / "there") == content(tree)
    assert content(tmp_path / "back") == content(tree)
    assert near.told == []


def test_each_hard_name_can_be_asked_for(near: NearEnd, tree: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    there.mkdir()
    back.mkdir()
    sources = [os.path.join(bytes(tree), b"files", name) for name in HARD_NAMES]
    assert near.upload(list(sources), str(there), ScpSettings()), near.told
    for name in HARD_NAMES[::4]:
        request = os.fsencode(shlex.quote(os.fsdecode(os.path.join(bytes(there), name))))
        assert near.download(request, back, ScpSettings()), (name, near.told)
        assert content(back).pop(name) == content(there)[name]
    request = os.path.join(bytes(there), b"[a-c]*")
    assert near.download(request, back, ScpSettings()), near.told
    assert near.told == []


def test_a_newline_arrives_as_openssh_writes_it(near: NearEnd, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    source.mkdir()
    with open(os.path.join(bytes(source), NEWLINE), "wb") as file:
        file.write(b"content")
    settings = ScpSettings(recursive=True)
    assert near.upload([source], str(tmp_path / "there"), settings), near.told
    assert content(tmp_path / "there") == {b"new\\^Jline": b"content"}
    assert near.download(bytes(source), back, settings), near.told
    assert content(back) == {b"new\\^Jline": b"content"}


def test_times_modes_and_holes_are_kept(near: NearEnd, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    with open(source, "wb") as file:
        file.seek(8 << 20)
        file.write(b"end")
    source.chmod(0o751)
    os.utime(source, (1_100_000_000, 1_000_000_000))
    settings = ScpSettings(preserve=True)
    assert near.upload([source], str(tmp_path / "there"), settings), near.told
    assert near.download(bytes(tmp_path / "there"), back, settings), near.told
    for path in (tmp_path / "there", back):
        assert path.read_bytes() == source.read_bytes()
        assert path.stat().st_mode & 0o7777 == 0o751
        assert path.stat().st_mtime == 1_000_000_000
        assert path.stat().st_atime in (1_100_000_000, path.stat().st_atime)
    assert back.stat().st_blocks * 512 <= 512 << 10


def test_a_failure_is_told_with_its_path_and_the_others_follow(
    near: NearEnd, tmp_path: Path
) -> None:
    (tmp_path / "there/taken").mkdir(parents=True)
    for name in ("taken", "last"):
        (tmp_path / name).write_text(name)
    sources: list[Path | bytes] = [tmp_path / name for name in ("none", "taken", "last")]
    assert not near.upload(sources, str(tmp_path / "there"), ScpSettings())
    assert near.told == [
        b"scp: %b/none: No such file or directory" % bytes(tmp_path),
        b"scp: %b/there/taken: Is a directory" % bytes(tmp_path),
    ]
    assert (tmp_path / "there/last").read_text() == "last"
    near.told.clear()
    request = b"%b/none %b/last" % (bytes(tmp_path), bytes(tmp_path))
    assert not near.download(request, tmp_path / "back", ScpSettings())
    assert near.told == [b"scp: %b/none: No such file or directory" % bytes(tmp_path)]
    assert (tmp_path / "back").read_text() == "last"


def test_a_name_that_was_not_asked_for_is_taken_with_t_alone(near: NearEnd, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    request = b"$(echo %b/file)" % bytes(tmp_path)
    assert not near.download(request, tmp_path / "back", ScpSettings())
    assert not (tmp_path / "back").exists()
    assert near.download(request, tmp_path / "back", ScpSettings(), any_name=True)
    assert (tmp_path / "back").exists()


def test_a_tree_goes_from_a_far_end_to_another(
    far: Callable[[str], list[str]], tree: Path, tmp_path: Path
) -> None:
    told: list[bytes] = []
    settings = ScpSettings(recursive=True, preserve=True)
    source, target = str(tree), str(tmp_path / "there")
    from_words, to_words = (
        far(far_command("f", source, settings)),
        far(far_command("t", target, settings)),
    )
    assert near_end.between(from_words, bytes(tree), to_words, settings, told.append), told
    assert content(tmp_path / "there") == content(tree)
    assert told == []


def test_both_far_ends_failures_are_told(far: Callable[[str], list[str]], tmp_path: Path) -> None:
    (tmp_path / "there/taken").mkdir(parents=True)
    for name in ("taken", "last"):
        (tmp_path / name).write_text(name)
    told: list[bytes] = []
    request = " ".join(f"{tmp_path}/{name}" for name in ("none", "taken", "last"))
    from_words = far(far_command("f", request, ScpSettings()))
    to_words = far(far_command("t", f"{tmp_path}/there", ScpSettings()))
    assert not near_end.between(from_words, request.encode(), to_words, ScpSettings(), told.append)
    assert told == [
        b"scp: %b/none: No such file or directory" % bytes(tmp_path),
        b"scp: %b/there/taken: Is a directory" % bytes(tmp_path),
    ]
    assert (tmp_path / "there/last").read_text() == "last"


def test_a_program_that_fails_is_a_failure(tmp_path: Path) -> None:
    told: list[bytes] = []
    words = ["sh", "-c", "exit 255"]
    assert not near_end.upload(words, [b"/etc/hostname"], ScpSettings(), told.append)
    assert not near_end.download(words, b"x", bytes(tmp_path), ScpSettings(), told.append)
    assert {*told} == {b"lost connection"}


# OpenSSH's near end, our far end


@pytest.fixture
def to_ours(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """A function that runs OpenSSH's scp -O with our far end."""
    folder = tmp_path / "bin"
    folder.mkdir()
    write_program(folder / "scp", [sys.executable, "-c", FAR_END])
    program = tmp_path / "program"
    program.write_text(
        f"#!/bin/sh\nexport PATH={folder}:$PATH PYTHONPATH={ROOT}\n"
        'for command; do :; done\nexec sh -c "$command"\n'
    )
    program.chmod(0o755)

    def run(*words: str | bytes) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [find_program("scp"), "-O", "-S", str(program), *words],
            env=environment(tmp_path), stdin=subprocess.DEVNULL, capture_output=True, timeout=60,
            check=False,
        )  # fmt: skip

    return run


def test_openssh_sends_and_fetches_a_tree_of_hard_names(
    to_ours: Callable[..., subprocess.CompletedProcess[bytes]], tree: Path, tmp_path: Path
) -> None:
    done = to_ours("-rp", str(tree), f"host:{tmp_path}/there")
    assert (done.returncode, done.stderr) == (0, b"")
    done = to_ours("-rp", f"host:{tmp_path}/there", str(tmp_path / "back"))
    assert (done.returncode, done.stderr) == (0, b"")
    assert content(tmp_path / "there") == content(tree)
    assert content(tmp_path / "back") == content(tree)


def test_openssh_shows_what_our_far_end_tells(
    to_ours: Callable[..., subprocess.CompletedProcess[bytes]], tmp_path: Path
) -> None:
    done = to_ours(f"host:{tmp_path}/none", str(tmp_path))
    assert (done.returncode, done.stderr) == (
        1,
        f"scp: {tmp_path}/none: No such file or directory\n".encode(),
    )
    done = to_ours("/etc/hostname", "/etc/passwd", f"host:{tmp_path}/none")
    assert done.returncode == 1
    assert f"scp: {tmp_path}/none: No such file or directory".encode() in done.stderr


# culvert scp -O


@pytest.fixture
def scp(
    far: Callable[[str], list[str]], tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """A function that runs culvert scp -O, whose ssh is a shell with the far end's scp."""
    program = tmp_path / "program"
    program.write_text(
        "#!/bin/sh\nfor command; do :; done\n" + f'exec {shlex.join(far("")[:-1])} "$command"\n'
    )
    program.chmod(0o755)

    def run(*words: str | bytes) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "appliance", "scp", "-O", "-S", str(program), *words],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False,
            env=environment(tmp_path) | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path,
        )  # fmt: skip

    return run


def test_the_program_copies_there_back_and_between(
    scp: Callable[..., subprocess.CompletedProcess[bytes]], tree: Path, tmp_path: Path
) -> None:
    for words in (
        ("-rp", "tree", f"host:{tmp_path}/there"),
        ("-r", f"host:{tmp_path}/there", "back"),
        ("-r", f"host:{tmp_path}/there", f"other:{tmp_path}/between"),
        ("-3r", f"scp://host/{tmp_path}/there", f"scp://u@other:24/{tmp_path}/three"),
    ):
        done = scp(*words)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    for name in ("there", "back", "between", "three"):
        assert content(tmp_path / name) == content(tree), name


def test_the_program_takes_several_sources_for_a_directory(
    scp: Callable[..., subprocess.CompletedProcess[bytes]], tmp_path: Path
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    (tmp_path / "there").mkdir()
    (tmp_path / "back").mkdir()
    assert scp("a", "b", f"host:{tmp_path}/c", f"host:{tmp_path}/there").returncode == 0
    assert scp(f"host:{tmp_path}/there/[ab]", f"host:{tmp_path}/c", "back").returncode == 0
    assert content(tmp_path / "there") == content(tmp_path / "back")
    assert sorted(content(tmp_path / "back")) == [b"a", b"b", b"c"]
    done = scp(f"host:{tmp_path}/a", f"host:{tmp_path}/b", "c")
    assert (done.returncode, done.stderr) == (1, b"culvert scp: c: Not a directory\n")
    done = scp("a", "b", f"host:{tmp_path}/c")
    assert (done.returncode, done.stderr) == (1, b"scp: %b/c: Not a directory\n" % bytes(tmp_path))


def test_the_program_tells_what_failed_and_copies_the_rest(
    scp: Callable[..., subprocess.CompletedProcess[bytes]], tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "a").write_text("a")
    done = scp("none", "a", f"host:{tmp_path}/there")
    assert (done.returncode, done.stderr) == (1, b"scp: none: No such file or directory\n")
    assert (tmp_path / "there/a").read_text() == "a"
    done = scp(f"host:{tmp_path}/none", "x")
    told = b"scp: %b/none: No such file or directory\n" % bytes(tmp_path)
    assert (done.returncode, done.stderr) == (1, told)


def test_a_rate_is_kept(
    scp: Callable[..., subprocess.CompletedProcess[bytes]], tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(bytes(100_000))
    begin = time.monotonic()
    assert scp("-l", "800", "a", f"host:{tmp_path}/b").returncode == 0
    assert 0.9 < time.monotonic() - begin < 10


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"C0644 1 .bashrc\nx\0", b"filename '.bashrc' does not match request"),
        (b"C0644 1 ../x\nx\0", b"unexpected filename: ../x"),
        (b"D0777 0 .\nE\n", b"unexpected filename: ."),
        (b"D0777 0 wanted\nE\n", b"received directory without -r"),
        (b"C0644 -1 wanted\nx\0", b"size not present"),
        (b"\1evil\x1b]0;title\x07\n", b"evil\\x1b]0;title\\x07"),
        (b"Last login: today\x1b[2J\n", b"not 'Last login: today\\x1b[2J'"),
        (b"", b""),
    ],
)
def test_a_hostile_server_gets_nothing_through(tmp_path: Path, sent: bytes, told: bytes) -> None:
    """CVE-2018-20685, CVE-2019-6109, CVE-2019-6110, CVE-2019-6111."""
    (tmp_path / "sent").write_bytes(sent)
    (tmp_path / "target").mkdir()
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\nhead -c 1 >/dev/null\ncat {tmp_path}/sent\nexit 1\n")
    program.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "appliance", "scp", "-O", "-S", program, "host:wanted", "target"],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False, cwd=tmp_path,
        env=environment(tmp_path) | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1
    assert told in done.stderr
    assert b"\x1b" not in done.stderr
    assert content(tmp_path / "target") == {}


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"C0644 1 .bashrc\nx\0", b"filename '.bashrc' does not match request"),
        (b"D0777 0 wanted\nE\n", b"received directory without -r"),
        (b"E\n", b"the end of a directory that was not begun"),
    ],
)
def test_a_hostile_host_gets_nothing_through_to_another(
    tmp_path: Path, sent: bytes, told: bytes
) -> None:
    (tmp_path / "sent").write_bytes(sent)
    (tmp_path / "target").mkdir()
    program = tmp_path / "program"
    ours = shlex.join([sys.executable, "-m", "appliance", "scp", "-t", "target"])
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *"scp -t"*) exec {ours};; esac\n'
        f"cat {tmp_path}/sent\ncat >/dev/null\n"
    )
    program.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "appliance", "scp", "-O", "-S", program, "a:wanted", "b:target"],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False, cwd=tmp_path,
        env=environment(tmp_path) | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1
    assert told in done.stderr
    assert content(tmp_path / "target") == {}


def test_the_far_ends_are_the_program_s_as_well(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "appliance", "scp", "-t", str(tmp_path)],
        input=b"C0644 2 f\nhi\0", capture_output=True, timeout=60, check=False,
        env=environment(tmp_path) | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\0\0\0", b"")
    assert (tmp_path / "f").read_bytes() == b"hi"


# Real connections to our server, on a machine without scp


@pytest.fixture
def server(
    serve: Callable[[ServerKind, ServerSettings], Server],
    host_keys: Keyring,
    keys_without_scp: Path,
) -> Server:
    """Our server, for users whose PATH leads to no scp."""
    config = keys_without_scp.parent / "sshd.toml"
    config.write_text('permit_user_environment = ["PATH"]\n')
    settings = ServerSettings(
        host_keys=host_keys.keys(),
        authorized_keys=keys_without_scp,
        options=["--config", str(config)],
    )
    return serve(SERVERS["culvert"], settings)


@pytest.fixture
def login(user_keys: Keyring) -> Login:
    """A login of whoever runs the tests: others may not be allowed to run this Python."""
    return Login(Account.current(), user_keys.key())


@pytest.fixture(scope="session")
def keys_without_scp(user_keys: Keyring) -> Iterator[Path]:
    with private_folder("no-scp") as folder:
        path = folder / "authorized_keys"
        option = 'environment="PATH=/nonexistent"'
        path.write_text("".join(f"{option} {user_keys.public(kind)}\n" for kind in KEY_TYPES))
        path.chmod(0o600)
        yield path


def copies(
    run: Callable[..., subprocess.CompletedProcess[bytes]], tree: Path, there: Path, back: Path
) -> None:
    """A tree goes there and comes back, by a function that runs an scp with both places."""
    done = run("-r", "-p", str(tree), f":{there}/")
    assert done.returncode == 0, done.stderr
    assert content(there / "tree") == content(tree)
    done = run("-r", "-p", f":{there}/tree", str(back))
    assert done.returncode == 0, done.stderr
    assert content(back / "tree" if (back / "tree").exists() else back) == content(tree)
    done = run(f":{there}/none", str(back))
    assert done.returncode != 0
    assert b"none: No such file or directory" in done.stderr + done.stdout


def test_our_scp_works_where_our_server_has_no_scp(
    server: Server, login: Login, tree: Path, there: Path, tmp_path: Path
) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[bytes]:
        places = [f"{server.address}{word}" if word[0] == ":" else word for word in words]
        return subprocess.run(
            [sys.executable, "-m", "appliance", "scp", "-O", "-F", "none", "-P", str(server.port),
             "-i", str(login.key), f"-oUserKnownHostsFile={server.known_hosts}",
             f"-oUser={login.user}", *places],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False,
            env=environment(tmp_path) | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    copies(run, tree, there, tmp_path / "back")


@pytest.mark.parametrize("name", ["openssh", "dbclient", "culvert"])
def test_scp_works_where_our_server_has_no_scp(
    name: str,
    server: Server,
    login: Login,
    tree: Path,
    there: Path,
    tmp_path: Path,
    need: Callable[[ClientKind], None],
) -> None:
    client = CLIENTS[name]
    need(client)
    program = write_program(tmp_path / "ssh", words_of(client, server, login))
    env = client.invocation(server, login, None).env

    def run(*words: str) -> subprocess.CompletedProcess[bytes]:
        places = [f"{server.address}{word}" if word[0] == ":" else word for word in words]
        return subprocess.run(
            [find_program("scp"), "-O", "-S", str(program), *places],
            env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False,
        )  # fmt: skip

    copies(run, tree, there, tmp_path / "back")


def test_pscp_works_where_our_server_has_no_scp(
    server: Server, login: Login, there: Path, tmp_path: Path, need: Callable[[ClientKind], None]
) -> None:
    need(CLIENTS["plink"])
    call = CLIENTS["plink"].invocation(server, login, None)
    tree = tmp_path / "tree"
    tree.mkdir()
    # PuTTY takes names as text, and refuses some of its own accord
    make_tree(tree, [b"two words", b"it's", b"[brackets]", b"%s%n", b"-leading"])

    def run(*words: str) -> subprocess.CompletedProcess[bytes]:
        places = [f"{server.address}{word}" if word[0] == ":" else word for word in words]
        return subprocess.run(
            [find_program("pscp"), *call.argv[1:], "-scp", "-q", *places],
            env=call.env, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False,
        )  # fmt: skip

    back = tmp_path / "back"
    back.mkdir()
    copies(run, tree, there, back)


def test_the_environment_of_the_users_programs_stays(server: Server, login: Login) -> None:
    done = CLIENTS["openssh"].run(server, login, "echo $PATH; exec scp -t x")
    assert done.status == 127
    assert done.stdout.endswith(b"/nonexistent\n")  # a shell may have put its own in front
