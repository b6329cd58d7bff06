"""culvert sshfs logs in to real servers; tests/unit/cli/test_sshfs.py has its command line."""

import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.conftest import OURS
from tests.peers import CULVERT, Account, Login, Server, environment, find_program
from tests.processes import family

Done = subprocess.CompletedProcess[str]
pytestmark = pytest.mark.root
servers = pytest.mark.parametrize("server", ["openssh", OURS], indirect=True)
openssh = pytest.mark.parametrize("server", ["openssh"], indirect=True)


class Sshfs:
    """Runs culvert sshfs as a helper of mount(8) is run, without a terminal."""

    def __init__(self, server: Server, login: Login, folder: Path) -> None:
        self.server = server
        self.login = login
        self.mountpoint = folder / "m"
        self.mountpoint.mkdir()

    def words(self, folder: Path, *options: str) -> list[str]:
        """The command line that mounts a folder of the server."""
        named = {
            "UserKnownHostsFile": str(self.server.known_hosts),
            "GlobalKnownHostsFile": "/dev/null",
            "IdentityFile": str(self.login.key),
            "Port": str(self.server.port),
        }
        given = {option.partition("=")[0] for option in options}
        named = {name: value for name, value in named.items() if name not in given}
        all_options = [*(f"{name}={value}" for name, value in named.items()), *options]
        source = f"{self.login.user}@{self.server.address}:{folder}"
        return ["mount.sshfs", source, str(self.mountpoint), "-o", ",".join(all_options)]

    def run(self, folder: Path, *options: str, data: str = "") -> Done:
        """Mounts a folder of the server."""
        return subprocess.run(
            [*CULVERT, *self.words(folder, *options)],
            input=data,
            env=environment(self.server.folder),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            start_new_session=True,
        )

    def unmount(self) -> None:
        subprocess.run(["umount", self.mountpoint], check=True, timeout=20)

    def daemon(self) -> int:
        """The process that serves the mount."""
        (found,) = (
            pid
            for pid in family(os.getpid())[1:]
            if os.fsencode(self.mountpoint) in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        return found


@pytest.fixture
def sshfs(server: Server, login: Login, tmp_path: Path) -> Iterator[Sshfs]:
    mount = Sshfs(server, login, tmp_path)
    yield mount
    subprocess.run(["umount", "-l", mount.mountpoint], stderr=subprocess.DEVNULL, check=False)


@servers
def test_a_key_mounts(sshfs: Sshfs, there: Path) -> None:
    done = sshfs.run(there)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (sshfs.mountpoint / "file").write_text("content")
    assert (there / "file").read_text() == "content"
    sshfs.unmount()


@openssh
def test_it_connects_again_by_the_same_files(sshfs: Sshfs, there: Path, tmp_path: Path) -> None:
    """The working directory is another one then."""
    (there / "file").write_text("content")
    config = tmp_path / "config"
    config.write_text(f"ProxyCommand {find_program('busybox')} nc %h %p\n")
    words = sshfs.words(there)
    done = subprocess.run(
        [*CULVERT, "sshfs", *words[1:], "-F", "config"],
        env=environment(sshfs.server.folder), cwd=tmp_path, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    (relay,) = family(sshfs.daemon())[1:]
    os.kill(relay, signal.SIGKILL)
    assert (sshfs.mountpoint / "file").read_text() == "content"
    sshfs.unmount()


@servers
def test_a_password_of_standard_input_mounts_and_connects_again(
    sshfs: Sshfs, account: Account, there: Path
) -> None:
    if not account.password:
        pytest.skip("the password of this account is not known")
    (there / "file").write_text("content")
    proxy = f"ProxyCommand={find_program('busybox')} nc %h %p"
    done = sshfs.run(
        there, "password_stdin,PubkeyAuthentication=no", proxy, data=f"{account.password}\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (relay,) = family(sshfs.daemon())[1:]
    os.kill(relay, signal.SIGKILL)
    assert (sshfs.mountpoint / "file").read_text() == "content"
    (again,) = family(sshfs.daemon())[1:]
    assert again != relay
    sshfs.unmount()


@openssh
def test_a_wrong_password_mounts_nothing(sshfs: Sshfs, there: Path) -> None:
    done = sshfs.run(there, "password_stdin,PubkeyAuthentication=no", data="wrong\n")
    assert done.returncode == 32
    assert "Permission denied" in done.stderr
    assert not os.path.ismount(sshfs.mountpoint)


@openssh
def test_nobody_is_asked_without_a_terminal(sshfs: Sshfs, there: Path, tmp_path: Path) -> None:
    (tmp_path / "none").touch()
    for options in (["UserKnownHostsFile=/dev/null"], ["IdentityFile=none"]):
        done = sshfs.run(there, *options)
        assert done.returncode == 32
        assert done.stderr.splitlines()[-1].startswith("culvert mount.sshfs: ")
        assert not os.path.ismount(sshfs.mountpoint)


@openssh
def test_what_a_proxy_complains_about_is_shown(sshfs: Sshfs, there: Path) -> None:
    done = sshfs.run(there, "ProxyCommand=sh -c 'echo no way >&2; exit 3'")
    assert done.returncode == 32
    first, last = done.stderr.splitlines()
    assert first == "no way"
    assert "ProxyCommand ended with exit status 3" in last


def read_until(fd: int, text: bytes) -> bytes:
    """What a terminal shows up to this text, or to its end."""
    shown = b""
    while not shown.endswith(text):
        try:
            shown += os.read(fd, 1)
        except OSError:
            break
    return shown


@openssh
def test_a_person_at_a_terminal_is_asked(sshfs: Sshfs, account: Account, there: Path) -> None:
    if not account.password:
        pytest.skip("the password of this account is not known")
    (there / "file").write_text("content")
    words = [*CULVERT, *sshfs.words(there, "PubkeyAuthentication=no")]
    for answer, status in ((account.password.encode() + b"\n", 0), (b"\x03", 130)):
        pid, terminal = pty.fork()
        if pid == 0:
            os.execve(words[0], words, environment(sshfs.server.folder))
        assert read_until(terminal, b"assword: ").endswith(b"assword: ")
        os.write(terminal, answer)
        shown = read_until(terminal, b"no such text")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status
        assert shown.strip() == b""
        os.close(terminal)
        assert os.path.ismount(sshfs.mountpoint) == (status == 0)
        if status == 0:  # its terminal is gone
            assert (sshfs.mountpoint / "file").read_text() == "content"
            sshfs.unmount()
