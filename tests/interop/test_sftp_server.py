"""The SFTP server under the programs that people use, by our SSH server and by OpenSSH's."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hard_names import HARD_NAMES, NEWLINE, is_utf8
from tests.interop.conftest import OURS, words_of
from tests.interop.sftp_programs import COPIERS, Copier, Lftp, Scp, Sftp, curl_words
from tests.netns import wait_until
from tests.peers import (
    CLIENTS,
    CULVERT,
    SERVERS,
    Account,
    Keyring,
    LibraryClient,
    Login,
    Server,
    ServerKind,
    ServerSettings,
    environment,
    find_program,
    private_folder,
    start,
)

BIG = 5 << 20  # bytes

RunServer = Callable[..., Server]


@pytest.fixture
def run_server(
    account: Account, host_keys: Keyring, authorized_keys: Path, tmp_path: Path
) -> Iterator[RunServer]:
    """A function that starts our server with these lines in its file."""
    running: list[Server] = []

    def run(text: str) -> Server:
        config = tmp_path / f"sshd-{len(running)}.toml"
        config.write_text(text)
        settings = ServerSettings(
            host_keys.keys(),
            authorized_keys=None if account.password else authorized_keys,
            options=("--config", str(config)),
        )
        running.append(start(SERVERS["culvert"], settings, tmp_path / f"server-{len(running)}"))
        return running[-1]

    yield run
    for server in running:
        server.stop()


def make_tree(folder: Path) -> None:
    """A tree with an empty file, a large one, a program, an old file, and directories."""
    (folder / "deep/er").mkdir(parents=True)
    (folder / "none").mkdir()
    (folder / "empty").touch()
    (folder / "big").write_bytes(os.urandom(BIG))
    (folder / "deep/er/two words").write_text("text")
    (folder / "program").write_text("#!/bin/sh\n")
    (folder / "program").chmod(0o755)
    for path in folder.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))


def contents(folder: Path) -> dict[bytes, bytes | None]:
    """Every path below a folder with its content, None for a directory."""
    found: dict[bytes, bytes | None] = {}
    top = os.fsencode(folder)
    for place, folders, files in os.walk(top):
        relative = place[len(top) :]
        found |= {relative + b"/" + name: None for name in folders}
        for name in files:
            with open(place + b"/" + name, "rb") as file:
                found[relative + b"/" + name] = file.read()
    return found


def assert_done(done: subprocess.CompletedProcess[bytes]) -> None:
    assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")


@pytest.fixture
def sftp(server: Server, login: Login, tmp_path: Path) -> Sftp:
    return Sftp(server, login, tmp_path)


ours = pytest.mark.parametrize("server", [OURS], indirect=True)


@ours
@pytest.mark.parametrize("name", COPIERS)
def test_a_tree_goes_there_and_comes_back(
    server: Server, login: Login, there: Path, tmp_path: Path, name: str
) -> None:
    here, back = tmp_path / "here", tmp_path / "back"
    make_tree(here)
    copier: Copier = COPIERS[name](server, login, tmp_path)
    assert_done(copier.put(here, there / "tree"))
    assert contents(there / "tree") == contents(here)
    assert_done(copier.get(there / "tree", back))
    assert contents(back) == contents(here)
    if name in ("sftp", "scp", "rsync", "asyncssh"):
        for folder in (there / "tree", back):
            assert (folder / "program").stat().st_mode & 0o777 == 0o755
            assert (folder / "empty").stat().st_mtime == 1_000_000_000
    owner = pwd.getpwnam(login.user).pw_uid
    assert {path.stat().st_uid for path in (there / "tree").rglob("*")} == {owner}


@ours
@pytest.mark.parametrize("name", ["sftp", "psftp", "lftp", "sshfs"])
def test_a_directory_of_many_names_comes_back(
    server: Server, login: Login, there: Path, tmp_path: Path, name: str
) -> None:
    """Clients have limits to one reply: sshfs takes 128 KiB."""
    (there / "many").mkdir()
    names = {f"{'x' * 100} {number}" for number in range(1500)}
    for each in names:
        (there / "many" / each).touch()
    copier: Copier = COPIERS[name](server, login, tmp_path)
    assert_done(copier.get(there / "many", tmp_path / "back"))
    assert {path.name for path in (tmp_path / "back").iterdir()} == names


@ours
@pytest.mark.parametrize("name", ["sftp", "scp", "lftp", "rclone", "sshfs", "rsync"])
def test_hard_names_go_there_and_come_back(
    server: Server, login: Login, there: Path, tmp_path: Path, name: str
) -> None:
    here, back = tmp_path / "here", tmp_path / "back"
    folder = os.fsencode(here)
    os.makedirs(folder + b"/-d [*]\n")
    for number, hard in enumerate([*HARD_NAMES, NEWLINE]):
        if name == "rclone" and not is_utf8(hard):
            continue  # it takes UTF-8 only
        for place in (folder, folder + b"/-d [*]\n"):
            with open(place + b"/" + hard, "wb") as file:
                file.write(b"%d" % number)
    copier: Copier = COPIERS[name](server, login, tmp_path)
    assert_done(copier.put(here, there / "tree"))
    if name != "rclone":  # it writes other characters for control characters, and reads them so
        assert contents(there / "tree") == contents(here)
    done = copier.get(there / "tree", back)
    assert_done(done)
    assert contents(back) == contents(here)
    assert b"\x1b" not in done.stdout + done.stderr


@ours
def test_sftp_s_own_commands(sftp: Sftp, there: Path) -> None:
    done = sftp.batch(
        f"cd {there}",
        "mkdir a",
        "put /etc/hostname a/file",
        "ln a/file a/hard",
        "ln -s file a/soft",
        "rename a/hard a/other",
        "copy a/file a/copy",
        "chmod 600 a/file",
        "ls -la a",
        "df -h a",
        "rm a/file",
        "pwd",
        "-rm a/none",
        "rmdir a",
    )
    assert done.returncode == 1
    assert b"Directory not empty" in done.stderr or b"Failure" in done.stderr, done.stderr
    assert f"Remote working directory: {there}".encode() in done.stdout
    names = {path.name for path in (there / "a").iterdir()}
    assert names == {"soft", "other", "copy"}
    assert os.readlink(there / "a/soft") == "file"
    assert (there / "a/copy").read_bytes() == Path("/etc/hostname").read_bytes()


@ours
def test_a_refusal_says_the_system_s_reason(
    server: Server, login: Login, there: Path, tmp_path: Path
) -> None:
    (there / "folder/full").mkdir(parents=True)
    done = Lftp(server, login, tmp_path).run(f"rmdir {there}/folder")
    assert b"Directory not empty" in done.stdout + done.stderr


@ours
def test_what_the_user_may_not_do_is_refused(sftp: Sftp, there: Path, tmp_path: Path) -> None:
    (there / "secret").write_text("secret")
    os.chown(there / "secret", 0, 0)
    (there / "secret").chmod(0o600)
    if os.geteuid():
        (there / "secret").chmod(0)
    for line in (f"get {there}/secret {tmp_path}/got", f"put /etc/hostname {there}/secret"):
        assert b"Permission denied" in sftp.batch(line).stderr
    assert not (tmp_path / "got").exists()


@ours
def test_a_hundred_thousand_names_are_listed(sftp: Sftp, there: Path) -> None:
    folder = os.open(there, os.O_RDONLY)
    for number in range(100_000):
        os.mknod(f"{number:06}", dir_fd=folder)
    os.close(folder)
    done = sftp.batch(f"cd {there}", "ls -1")
    assert_done(done)
    listed = done.stdout.splitlines()[2:]
    assert listed == [b"%06d" % number for number in range(100_000)]


@ours
def test_a_file_with_holes_arrives(sftp: Sftp, there: Path, tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(64 << 20)
        os.pwrite(file.fileno(), b"x", 32 << 20)
    assert_done(
        sftp.batch(f"put {tmp_path}/sparse {there}/sparse", f"get {there}/sparse {tmp_path}/back")
    )
    assert (tmp_path / "sparse").read_bytes() == (tmp_path / "back").read_bytes()


@ours
def test_a_put_that_was_cut_off_is_resumed(sftp: Sftp, there: Path, tmp_path: Path) -> None:
    content = os.urandom(BIG)
    (tmp_path / "file").write_bytes(content)
    assert_done(sftp.batch(f"put {tmp_path}/file {there}/file"))
    os.truncate(there / "file", BIG // 3)
    assert_done(sftp.batch(f"reput {tmp_path}/file {there}/file"))
    assert (there / "file").read_bytes() == content


@ours
def test_curl_reads_writes_and_lists(
    server: Server, account: Account, user_keys: Keyring, there: Path, tmp_path: Path
) -> None:
    login = Login(account, user_keys.key("ecdsa-sha2-nistp256"))
    (there / "file").write_bytes(os.urandom(BIG))
    base = f"sftp://{server.address}:{server.port}{there}/"

    def curl(*words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*curl_words(server, login), *words],
            env=environment(tmp_path), capture_output=True, timeout=60, check=False,
        )  # fmt: skip

    done = curl(f"{base}file")
    assert (done.returncode, done.stdout == (there / "file").read_bytes()) == (0, True)
    (tmp_path / "up").write_bytes(os.urandom(BIG))
    assert_done(curl("-T", str(tmp_path / "up"), f"{base}up"))
    os.chown(there / "up", 0, 0)
    assert (there / "up").read_bytes() == (tmp_path / "up").read_bytes()
    assert b" up\n" in curl(base).stdout


@ours
def test_libssh_reads_and_writes(server: Server, login: Login, there: Path, tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(os.urandom(BIG))
    client = LibraryClient("libssh")
    for words in (
        ("put", str(tmp_path / "here"), str(there / "file")),
        ("get", str(there / "file"), str(tmp_path / "back")),
    ):
        done = client.run(server, login, "", options=[f"--sftp={word}" for word in words])
        assert done.status == 0, done.stderr
    assert (there / "file").read_bytes() == (tmp_path / "here").read_bytes()
    assert (tmp_path / "back").read_bytes() == (tmp_path / "here").read_bytes()


@pytest.mark.root
@ours
def test_gnome_s_file_manager_can_do_its_work(
    server: Server, login: Login, there: Path, tmp_path: Path
) -> None:
    """gvfs runs ssh itself; a home of its own is mounted for it."""
    for program in ("gio", "dbus-run-session", "unshare"):
        find_program(program)
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh").chmod(0o700)
    shutil.copy(server.known_hosts, home / ".ssh/known_hosts")
    (home / ".ssh/config").write_text(f"IdentityFile {login.key}\nIdentitiesOnly yes\n")
    (tmp_path / "two words").write_text("text")
    top = f"sftp://{login.user}@{server.address}:{server.port}"
    script = tmp_path / "script"
    script.write_text(
        f"""
        set -e
        gio mount {top}/ </dev/null
        gio copy '{tmp_path}/two words' {top}{there}/
        gio list {top}{there}
        gio copy {top}{there}/two%20words {tmp_path}/back
        gio mkdir {top}{there}/new
        gio rename {top}{there}/new newer
        gio remove {top}{there}/newer
        gio move {top}{there}/two%20words {top}{there}/moved
        gio mount -u {top}/
        """
    )
    mounted = f"mount --bind {home} {Path.home()}; exec dbus-run-session -- sh {script}"
    with private_folder("gvfs") as run:  # short enough for sockets
        own = {"XDG_RUNTIME_DIR": str(run), "GVFS_DISABLE_FUSE": "1"}
        done = subprocess.run(
            ["unshare", "--mount", "--", "sh", "-ec", mounted],
            env=environment(Path.home(), own | {"GIO_USE_VOLUME_MONITOR": "unix"}),
            capture_output=True, timeout=60, check=False,
        )  # fmt: skip
    assert_done(done)
    assert b"two words" in done.stdout
    assert (tmp_path / "back").read_text() == (there / "moved").read_text() == "text"
    assert [path.name for path in there.iterdir()] == ["moved"]


@pytest.mark.parametrize("name", ["sftp", "scp", "rclone"])
def test_openssh_s_sshd_runs_our_server(
    serve: Callable[[ServerKind, ServerSettings], Server],
    host_keys: Keyring,
    authorized_keys: Path,
    user_keys: Keyring,
    there: Path,
    tmp_path: Path,
    name: str,
) -> None:
    program = " ".join([*CULVERT, "sftp-server"])
    settings = ServerSettings(
        host_keys.keys(),
        authorized_keys=authorized_keys,
        options=("-o", f"Subsystem sftp {program}"),
    )
    # who runs this test may certainly run this interpreter
    login = Login(Account.current(), user_keys.key())
    server = serve(SERVERS["openssh"], settings)
    make_tree(tmp_path / "here")
    copier: Copier = COPIERS[name](server, login, tmp_path)
    assert_done(copier.put(tmp_path / "here", there / "tree"))
    assert_done(copier.get(there / "tree", tmp_path / "back"))
    assert contents(tmp_path / "back") == contents(tmp_path / "here")


# What the server's file says


def test_read_only_and_a_start_directory(
    run_server: RunServer, login: Login, there: Path, tmp_path: Path
) -> None:
    (there / "file").write_text("text")
    server = run_server(f"sftp_read_only = true\nsftp_start_directory = '{there}'\n")
    done = Sftp(server, login, tmp_path).batch("get file " + str(tmp_path / "got"), "rm file")
    assert done.returncode == 1
    assert b"Permission denied" in done.stderr
    assert (tmp_path / "got").read_text() == "text"


def test_umask_log_and_audit(
    run_server: RunServer, login: Login, there: Path, tmp_path: Path
) -> None:
    audit = tmp_path / "audit"
    server = run_server(f"sftp_umask = '027'\naudit_files = true\naudit_file = '{audit}'\n")
    (tmp_path / "file").touch(0o666)
    (tmp_path / "file").chmod(0o666)
    done = Sftp(server, login, tmp_path).batch(
        f"put {tmp_path}/file {there}/new", f"rename {there}/new {there}/newer", f"-rm {there}/none"
    )
    assert_done(done)
    assert (there / "newer").stat().st_mode & 0o777 == 0o640
    assert wait_until(lambda: '"operation": "rename"' in audit.read_text())
    lines = [line for line in audit.read_text().splitlines() if '"event": "file"' in line]
    assert f'"path": "{there}/new", "target": "{there}/newer"' in "".join(lines)
    assert f'"user": "{login.user}"' in lines[-1]
    assert f"write {there}/new, by the sftp-server's report" in server.log


def test_setstat_may_be_ignored(
    run_server: RunServer, login: Login, there: Path, tmp_path: Path
) -> None:
    (there / "file").touch()
    server = run_server("sftp_ignore_setstat = true\n")
    assert_done(Sftp(server, login, tmp_path).batch(f"chmod 777 {there}/file"))
    assert (there / "file").stat().st_mode & 0o777 == 0o644


def test_an_account_may_have_sftp_and_nothing_else(
    run_server: RunServer, login: Login, there: Path, tmp_path: Path
) -> None:
    server = run_server(
        f'[[match]]\nuser = "{login.user}"\nforce_command = "internal-sftp"\n'
        "disable_forwarding = true\n"
    )
    client = CLIENTS["openssh"]
    assert client.run(server, login, "echo in").stdout == b""
    done = client.run(server, login, None, options=["-tt"])
    assert (done.status, done.stdout) == (1, b"This service allows sftp connections only.\r\n")
    assert_done(Sftp(server, login, tmp_path).batch(f"ls {there}"))


def test_a_key_may_be_for_sftp_only(
    run_server: RunServer, account: Account, user_keys: Keyring, there: Path, tmp_path: Path
) -> None:
    if not account.password:
        pytest.skip("this writes authorized_keys")
    before = (account.home / ".ssh/authorized_keys").read_text()
    account.authorize([f'restrict,command="internal-sftp -R" {user_keys.public()}'])
    try:
        server = run_server("")
        login = Login(account, user_keys.key())
        assert CLIENTS["openssh"].run(server, login, "id").stdout == b""
        sftp = Sftp(server, login, tmp_path)
        assert_done(sftp.batch(f"ls {there}"))
        assert b"Permission denied" in sftp.batch(f"mkdir {there}/x").stderr
    finally:
        account.authorize(before.splitlines())


@pytest.mark.root
def test_an_account_without_an_ordinary_shell_needs_internal_sftp(
    run_server: RunServer, account: Account, login: Login, there: Path, tmp_path: Path
) -> None:
    """Its shell may be there to refuse, so it is asked; the administrator may say otherwise."""
    account.change("usermod", "-s", find_program("nologin"))
    try:
        done = Sftp(run_server(""), login, tmp_path).batch(f"ls {there}")
        assert done.returncode == 255
        server = run_server('force_command = "internal-sftp"\n')
        assert_done(Sftp(server, login, tmp_path).batch(f"ls {there}"))
    finally:
        account.change("usermod", "-s", "/bin/sh")


@ours
@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\0\0\0\5\1\0\0\0\3" * 2, "a second INIT"),
        (b"\0\0\0\5\1\0\0\0\3\xff\xff\xff\xff\5\0\0\0\7", "a packet of 4294967295 bytes"),
        (bytes(1000), "a packet without a request"),
        (b"GET / HTTP/1.1\r\n\r\n", "a packet of 1195725856 bytes"),
    ],
)
def test_what_is_no_sftp_ends_with_one_line(
    server: Server, login: Login, data: bytes, told: str
) -> None:
    done = CLIENTS["openssh"].run(server, login, "sftp", options=["-s"], data=data)
    assert (done.status, done.stderr.splitlines()[-1:]) == (1, [f"sftp-server: {told}"])


@pytest.mark.root
class TestChroot:
    """The user's directory in a jail of root's, without a program or file of the system."""

    @pytest.fixture
    def jail(self, account: Account) -> Iterator[Path]:
        with private_folder("jail") as folder:
            folder.chmod(0o755)
            (folder / "in").mkdir()
            os.chown(folder / "in", pwd.getpwnam(account.name).pw_uid, -1)
            yield folder

    def test_sftp_and_scp_see_nothing_else(
        self, run_server: RunServer, login: Login, jail: Path, tmp_path: Path
    ) -> None:
        server = run_server(
            f'[[match]]\nuser = "{login.user}"\nchroot_directory = "{jail}"\n'
            'force_command = "internal-sftp -d /in"\n'
        )
        sftp = Sftp(server, login, tmp_path)
        done = sftp.batch(
            "pwd", "put /etc/hostname new", "ls -la /", "ln -s /etc/passwd out", "-get out",
            "-put /etc/hostname /not-here", "df", "-get /../../../etc/passwd",
        )  # fmt: skip
        assert_done(done)
        assert b"Remote working directory: /in\n" in done.stdout
        new = (jail / "in/new").stat()
        entry = pwd.getpwnam(login.user)
        assert (new.st_uid, new.st_gid) == (entry.pw_uid, entry.pw_gid)
        assert not (tmp_path / "passwd").exists()
        assert [path.name for path in jail.iterdir()] == ["in"]
        make_tree(tmp_path / "here")
        scp = Scp(server, login, tmp_path)
        assert_done(scp.put(tmp_path / "here", Path("/in/tree")))
        assert contents(jail / "in/tree") == contents(tmp_path / "here")

    def test_the_program_has_given_up_root(
        self, run_server: RunServer, login: Login, jail: Path, tmp_path: Path
    ) -> None:
        server = run_server(
            f'chroot_directory = "{jail}"\nsubsystems.sftp = "internal-sftp"\naudit_files = true\n'
        )
        argv = [*words_of(CLIENTS["openssh"], server, login, ["-s"]), server.address, "sftp"]
        process = subprocess.Popen(
            argv, env=environment(server.folder), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"\0\0\0\5\1\0\0\0\3")
        process.stdin.flush()
        assert process.stdout.read(9)[4] == 2
        (pid,) = (
            int(each.name)
            for each in Path("/proc").iterdir()
            if each.name.isdigit() and _root_of(int(each.name)) == str(jail)
        )
        entry = pwd.getpwnam(login.user)
        status = Path(f"/proc/{pid}/status").read_text()
        assert f"Uid:\t{entry.pw_uid}\t{entry.pw_uid}\t{entry.pw_uid}\t{entry.pw_uid}" in status
        assert f"Gid:\t{entry.pw_gid}\t{entry.pw_gid}\t{entry.pw_gid}\t{entry.pw_gid}" in status
        assert "CapEff:\t0000000000000000" in status
        assert f"Groups:\t{entry.pw_gid} \n" in status
        environ = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"LD_" not in environ and b"PYTHON" not in environ
        opened = {os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()}
        assert len(opened) == 4  # the standard ones, and that for reports
        process.communicate(timeout=10)

    def test_a_jail_that_others_may_change_lets_nobody_in(
        self, run_server: RunServer, login: Login, jail: Path, tmp_path: Path
    ) -> None:
        jail.chmod(0o775)
        server = run_server(f'chroot_directory = "{jail}"\n')
        assert Sftp(server, login, tmp_path).batch("pwd").returncode == 255
        assert CLIENTS["openssh"].run(server, login, "true").status != 0
        assert f"{jail} must belong to root" in server.log

    def test_other_programs_run_in_there_too_if_they_are_there(
        self, run_server: RunServer, login: Login, jail: Path
    ) -> None:
        server = run_server(f'chroot_directory = "{jail}"\n')
        done = CLIENTS["openssh"].run(server, login, "true")
        assert done.status == 127
        assert "cannot start /bin/sh" in done.stderr
        busybox = find_program("busybox")
        needed = subprocess.run(["ldd", busybox], capture_output=True, text=True, check=False)
        for path in [word for word in needed.stdout.split() if word.startswith("/")]:
            (jail / path[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, jail / path[1:])
        (jail / "bin").mkdir()
        for name in ("sh", "id"):
            shutil.copy(busybox, jail / "bin" / name)
        done = CLIENTS["openssh"].run(server, login, "echo in; echo /i*; id -u")
        uid = pwd.getpwnam(login.user).pw_uid
        assert done.stdout == f"in\n/in\n{uid}\n".encode(), done.stderr


def _root_of(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/root")
    except OSError:
        return ""
