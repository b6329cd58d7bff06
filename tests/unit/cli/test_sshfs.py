"""sshfs's command line, with the kernel and with OpenSSH's SFTP server behind a program for ssh."""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from appliance.cli.sshfs import defaults
from appliance.client.sftp_session import Host
from appliance.links.reports import (
    DATAGRAM,
    MOUNT_KINDS,
    AttemptFailed,
    MountOrder,
    MountProgress,
    PassedLine,
)
from appliance.wire.codec import Message
from tests.peers import CULVERT, SFTP_SERVER, environment, find_program, private_folder
from tests.processes import family, lives

Done = subprocess.CompletedProcess[str]


class Place:
    """A folder with a program that stands for ssh, files at the server, and a mount point."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.there = folder / "there"
        self.mountpoint = folder / "m"
        self.ssh = self.program("ssh", f'echo "$@" >{folder}/words\nexec {SFTP_SERVER}')
        self.there.mkdir()
        self.mountpoint.mkdir()
        (self.there / "file").write_text("content")

    def program(self, name: str, body: str) -> Path:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    def called(self, name: str) -> list[str]:
        """Culvert by another name."""
        if CULVERT[0] == sys.executable:
            code = (
                f"import sys; sys.argv[0] = {name!r}; from appliance.multicall import main; main()"
            )
            return [sys.executable, "-c", code.replace("main()", "sys.exit(main())")]
        link = self.folder / name
        if not link.is_symlink():
            link.symlink_to(CULVERT[0])
        return [str(link)]

    def start(
        self,
        *words: str | Path,
        env: Mapping[str, str] | None = None,
        name: str = "sshfs",
        descriptors: Sequence[int] = (),
    ) -> "subprocess.Popen[str]":
        program = [name] if name.startswith("/") else self.called(name)
        return subprocess.Popen(
            [*program, *map(str, words)],
            env=environment(self.folder) if env is None else env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            start_new_session=True,
            pass_fds=descriptors,
        )

    def run(
        self, *words: str | Path, env: Mapping[str, str] | None = None, name: str = "sshfs"
    ) -> Done:
        process = self.start(*words, env=env, name=name)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def mount(self, *words: str | Path, source: str = "") -> None:
        """Mounts in the background."""
        command = f"ssh_command={self.ssh}"
        done = self.run(source or f"host:{self.there}", self.mountpoint, "-o", command, *words)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    @property
    def is_mounted(self) -> bool:
        return bool(self.lines())

    def lines(self) -> list[str]:
        """What mountinfo says of the mount, without the numbers."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line.split(" ", 3)[3] for line in lines if line.split()[4] == str(self.mountpoint)]

    def unmount(self) -> None:
        subprocess.run(["umount", self.mountpoint], check=True)


@pytest.fixture
def place() -> Iterator[Place]:
    with private_folder("sshfs") as folder:
        place = Place(folder)
        yield place
        while place.is_mounted:
            subprocess.run(["umount", "-l", place.mountpoint], check=True)


def wait_for(fact: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < end
        time.sleep(0.01)


pytestmark = pytest.mark.root


def test_a_mount_is_silent_and_ends_when_it_is_unmounted(place: Place) -> None:
    place.mount(source=f"joe@host:{place.there}")
    assert place.lines()[0].split(" - ")[1].startswith(f"fuse.sshfs joe@host:{place.there} rw")
    assert (place.mountpoint / "file").read_text() == "content"
    place.unmount()  # what is left behind fails the test
    assert "User joe" in (place.folder / "words").read_text()
    assert (place.folder / "words").read_text().endswith("-s -- host sftp\n")


def test_options_may_stand_anywhere(place: Place) -> None:
    done = place.run(
        "-o", f"ssh_command={place.ssh},port=1", f"host:{place.there}", "-C", place.mountpoint,
        "-o", "ro,IdentityFile=/a\\,b", "-p", "2222",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert place.lines()[0].startswith("/ " + str(place.mountpoint) + " ro,nosuid,nodev")
    place.unmount()
    words = (place.folder / "words").read_text()
    for each in ("Port 2222", "port=1", "Compression yes", "IdentityFile=/a,b"):
        assert f"-o {each}" in words


def test_it_mounts_without_an_environment(place: Place) -> None:
    done = place.run(
        f"host:{place.there}", place.mountpoint, "-o", f"rw,ssh_command={place.ssh}",
        env={}, name="mount.sshfs",
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    place.unmount()


def test_a_caller_gets_their_descriptors_back(place: Place) -> None:
    """A lock, say, of a script that mounts."""
    read, write = os.pipe()
    words = [f"host:{place.there}", str(place.mountpoint), "-o", f"ssh_command={place.ssh}"]
    subprocess.run(
        [*place.called("sshfs"), *words],
        env=environment(place.folder), pass_fds=(write,), timeout=60, check=True,
    )  # fmt: skip
    os.close(write)
    assert os.read(read, 1) == b""
    os.close(read)
    place.unmount()


def test_signals_that_the_caller_has_ignored_stay_so(place: Place) -> None:
    process = place.start(
        "-c",
        f"trap '' HUP; exec {shlex.join(place.called('sshfs'))} host:{place.there}"
        f" {place.mountpoint} -f -o ssh_command={place.ssh}",
        name="/bin/sh",
    )
    wait_for(lambda: place.is_mounted)
    process.send_signal(signal.SIGHUP)
    assert (place.mountpoint / "file").read_text() == "content"
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 0


# -- with a supervisor ---------------------------------------------------------------------


@contextlib.contextmanager
def supervised(place: Place, *words: str | Path) -> Iterator[socket.socket]:
    """The supervisor's end of the socket to a program that says nothing, and ends with status 0."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(20)
    number = theirs.fileno()
    with ours:
        with theirs:
            process = place.start(
                "-f", "--supervised", str(number), *words, place.mountpoint, descriptors=[number]
            )
        ours.send(MountOrder((b"User", b"joe", b"BatchMode", b"yes")).encode())
        try:
            yield ours
        finally:
            ours.close()
            said = process.communicate(timeout=30)
    assert said == ("", "")
    assert process.returncode == 0
    assert not place.is_mounted


def report(supervisor: socket.socket) -> Message:
    data = supervisor.recv(DATAGRAM)
    return MOUNT_KINDS[data[0]].decode(data)


def test_a_supervised_program_reports_and_ends_with_its_supervisor(place: Place) -> None:
    options = f"ssh_command={place.ssh},allow_other"
    with supervised(place, f"host:{place.there}", "-o", options) as supervisor:
        warning, first = report(supervisor), report(supervisor)
        assert isinstance(warning, PassedLine)
        assert b"all users here can do what the server permits" in warning.text
        assert isinstance(first, MountProgress)
        assert first.is_connected and first.received and first.sent
        assert (place.mountpoint / "file").read_text() == "content"
        more = report(supervisor)
        assert isinstance(more, MountProgress)
        assert more.received > first.received
        assert "User joe" in (place.folder / "words").read_text()
        new = os.open(place.mountpoint / "new", os.O_CREAT | os.O_WRONLY)
        os.write(new, bytes(1 << 20))
        supervisor.shutdown(socket.SHUT_WR)
        wait_for(lambda: not place.is_mounted)
        with contextlib.suppress(OSError):  # the program may have ended
            os.close(new)
    assert (place.there / "new").stat().st_size == 1 << 20


def test_a_supervised_program_that_loses_its_server_says_so(place: Place) -> None:
    keeps = place.program("keeps", f"echo $$ >{place.folder}/pid; exec {SFTP_SERVER}")
    with supervised(place, f"host:{place.there}", "-o", f"ssh_command={keeps}") as supervisor:
        assert isinstance(report(supervisor), MountProgress)
        keeps.rename(place.folder / "away")
        os.kill(int((place.folder / "pid").read_text()), signal.SIGKILL)
        while not isinstance(lost := report(supervisor), MountProgress):
            pass
        assert not lost.is_connected
        assert lost.last_error
        (place.folder / "away").rename(keeps)
        while not (isinstance(back := report(supervisor), MountProgress) and back.is_connected):
            pass
        assert back.received > lost.received


def test_a_supervised_program_reports_why_it_has_failed(place: Place) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    number = theirs.fileno()
    with ours:
        with theirs:
            process = place.start(
                "--supervised", str(number), "-f", "host:", "none", descriptors=[number]
            )
        failure = report(ours)
        assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 1
    assert isinstance(failure, AttemptFailed)
    assert "bad mount point `none': No such file or directory" in failure.why


@pytest.mark.parametrize("descriptor", ["", "x", "-1", "\N{SUPERSCRIPT TWO}", "1", "9", "9" * 30])
def test_a_supervisor_is_a_socket_that_was_inherited(place: Place, descriptor: str) -> None:
    done = place.run("-f", f"--supervised={descriptor}", "host:", place.mountpoint)
    assert done.returncode == 1
    assert done.stderr.startswith(f"sshfs: --supervised={descriptor}: ")
    assert done.stderr.count("\n") == 1


MISTAKES = [
    ((), "missing host"),
    (("M", "x"), "missing host"),
    (("host:",), "no mountpoint specified"),
    (("host:", "M", "x"), "invalid argument `x'"),
    (("host:", "none"), "bad mount point `none': No such file or directory"),
    (("host:", "ssh"), "bad mount point `ssh': Not a directory"),
    (("--", "-host:", "M"), "invalid hostname '-host'"),
    (("--", "u@-host:", "M"), "invalid hostname 'u@-host'"),
    (("[::1:/", "M"), "missing ']'"),
    ((":/", "M"), "missing host in `:/'"),
    (("host:", "M", "-o", "bogus"), "unknown option(s): `-o bogus'"),
    (("host:", "M", "-o", "uid=x"), "invalid parameter in option `uid=x'"),
    (("host:", "M", "-o", "idmap=file,uidfile=none"), "failed to open 'none'"),
    (("host:", "M", "-o", "setuid=nobody-here"), "setuid=nobody-here: there is no such user"),
    (("host:", "M", "-o", "ssh_command=/none"), "/none: No such file or directory"),
    (("host:", "M", "-o", "ssh_command=/bin/false"), "the SFTP server has ended"),
    (("localhost:", "M", "-o", "directport=1"), "connect to host localhost port 1: Connection ref"),
    (("localhost:", "M", "-o", "Port=1"), "connect to host localhost port 1: Connection refused"),
    (("host:", "M", "-o", "ssh_command=a 'b"), "ssh_command=a 'b: No closing quotation"),
    (("host:/none", "M", "-o", "ssh_command=SSH"), "/none: No such file or directory"),
    (("host:/etc/passwd", "M", "-o", "ssh_command=SSH"), "host:/etc/passwd: Not a directory"),
    (("host:", "M", "-o", "password_stdin,passive"), "password_stdin cannot be used with"),
]


@pytest.mark.parametrize(("words", "told"), MISTAKES)
@pytest.mark.parametrize(("name", "status"), [("sshfs", 1), ("mount.sshfs", 32)])
def test_a_mistake_is_one_line_and_mounts_nothing(
    place: Place, words: Sequence[str], told: str, name: str, status: int
) -> None:
    real = {"M": str(place.mountpoint), "ssh_command=SSH": f"ssh_command={place.ssh}"}
    done = place.run(*(real.get(word, word) for word in words), name=name)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(f"{name}: ")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert not place.is_mounted


def test_the_real_sshfs_says_the_same(place: Place) -> None:
    """Its words, where there is no reason for others."""
    for words in (
        ("host:", "none"),
        ("host:", str(place.mountpoint), "x"),
        ("host:", str(place.mountpoint), "-o", "ro,bogus"),
        ("--", "-host:", str(place.mountpoint)),
        ("host:", str(place.mountpoint), "-o", "workaround=bla"),
    ):
        theirs = subprocess.run(
            ["sshfs", *words], capture_output=True, text=True, cwd=place.folder, check=False
        )
        ours = place.run(*words)
        told = theirs.stderr.strip().removeprefix("sshfs: ").removeprefix("fuse: ")
        assert ours.stderr == f"sshfs: {told}\n"
        assert ours.returncode == theirs.returncode


def test_a_server_that_never_answers_takes_bounded_time(place: Place) -> None:
    hangs = place.program("hangs", "exec sleep 1000")
    options = f"ssh_command={hangs},timeout=1"
    done = place.run("host:", place.mountpoint, "-o", options, name="mount.sshfs")
    assert done.returncode == 32
    assert done.stderr == "mount.sshfs: the server has not answered for 1 seconds\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_program_that_is_ended_while_it_waits_takes_all_with_it(
    place: Place, number: int
) -> None:
    hangs = place.program("hangs", f"echo >{place.folder}/begun; exec sleep 1000")
    process = place.start("host:", place.mountpoint, "-o", f"ssh_command={hangs}")
    wait_for((place.folder / "begun").exists)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert not place.is_mounted


def test_a_program_that_was_killed_while_it_waits_gets_no_mount(place: Place) -> None:
    slow = place.program(
        "slow",
        f"echo >{place.folder}/begun; while ! test -e {place.folder}/go; do sleep 0.05; done\n"
        f"exec {SFTP_SERVER}",
    )
    process = place.start("host:", place.mountpoint, "-o", f"ssh_command={slow}")
    wait_for((place.folder / "begun").exists)
    (child,) = family(process.pid)[1:2]
    process.kill()
    process.wait()
    (place.folder / "go").touch()
    process.communicate(timeout=20)  # up to the end of the child
    wait_for(lambda: not lives(child))
    assert not place.is_mounted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_writes_what_waits_and_unmounts(place: Place, number: int) -> None:
    process = place.start(
        f"host:{place.there}", place.mountpoint, "-f", "-o", f"ssh_command={place.ssh},write_behind"
    )
    wait_for(lambda: place.is_mounted)
    (place.mountpoint / "new").write_text("written")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")
    assert not place.is_mounted
    assert (place.there / "new").read_text() == "written"


def test_a_mount_that_others_put_above_stays(place: Place) -> None:
    process = place.start(
        f"host:{place.there}", place.mountpoint, "-f", "-o", f"ssh_command={place.ssh}"
    )
    wait_for(lambda: place.is_mounted)
    subprocess.run(["mount", "-t", "tmpfs", "above", place.mountpoint], check=True)
    process.terminate()
    process.communicate(timeout=30)
    assert [line.split(" - ")[1].split()[0] for line in place.lines()] == ["fuse.sshfs", "tmpfs"]


def test_debug_shows_the_requests_and_stays(place: Place) -> None:
    process = place.start(
        f"host:{place.there}", place.mountpoint, "-d", "-o", f"ssh_command={place.ssh}"
    )
    wait_for(lambda: place.is_mounted)
    assert os.listdir(place.mountpoint) == ["file"]
    place.unmount()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "debug1: " in err


def test_mount_s_own_options_are_taken(place: Place) -> None:
    source, options = f"host:{place.there}", f"ssh_command={place.ssh}"
    words: tuple[str, ...] = (source, str(place.mountpoint), "-n", "-v", "-o", options)
    done = place.run(*words, "-f", name="mount.sshfs")  # mount -f
    assert (done.returncode, done.stderr, place.is_mounted) == (0, "", False)
    done = place.run(*words, "-o", "bogus", name="mount.fuse.sshfs")
    assert done.returncode == 32
    done = place.run(
        *words, "-r", "-s", "-o", "bogus,user=joe,noauto,_netdev,nofail,x-systemd.automount",
        "-t", "fuse.sshfs", name="mount.fuse.sshfs",
    )  # fmt: skip
    assert done.returncode == 0
    assert " ro," in place.lines()[0]
    place.unmount()


def test_fstab_and_mount(place: Place) -> None:
    """mount -a, mount by each type, and umount, in a mount namespace with a fstab of its own."""
    if CULVERT[0] == sys.executable:
        pytest.skip("the command culvert is not installed")
    places = [place.folder / name for name in ("one two", "two", "three")]
    for each in places:
        each.mkdir()
    common = f"ssh_command={place.ssh},_netdev,nofail,x-systemd.automount,comment=x,reconnect"
    fstab = place.folder / "fstab"
    fstab.write_text(
        f"host:{place.there} {place.folder}/one\\040two sshfs {common},user,noauto 0 0\n"
        f"joe@host:{place.there} {places[1]} fuse.sshfs defaults,{common},ro 0 0\n"
        f"sshfs#host:{place.there} {places[2]} fuse {common},allow_other 0 0\n"
        f"host:/none {place.mountpoint} sshfs {common} 0 0\n"
    )
    script = f"""
        mount --bind {shlex.quote(CULVERT[0])} /usr/bin/sshfs
        mount --bind {fstab} /etc/fstab
        mount -a; echo "status $?"
        mount '{places[0]}'
        for each in '{places[0]}' {places[1]} {places[2]}; do
            cat "$each/file"; findmnt -n -o FSTYPE,SOURCE "$each"; umount "$each"
        done
        mount {place.mountpoint}; echo "status $?"
    """
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines == [
        "status 64",  # some of them succeeded
        f"contentfuse.sshfs host:{place.there}",
        f"contentfuse.sshfs joe@host:{place.there}",
        f"contentfuse.sshfs host:{place.there}",
        "status 32",
    ]
    assert done.stderr == "mount.sshfs: host:/none: No such file or directory\n" * 2


def test_autofs(place: Place) -> None:
    """It mounts when somebody looks into it, and unmounts when nobody does any more."""
    if CULVERT[0] == sys.executable:
        pytest.skip("the command culvert is not installed")
    automount, top = find_program("automount"), place.mountpoint
    source = f"sshfs\\#host\\:{place.there}"
    (place.folder / "map").write_text(f"work -fstype=fuse,ssh_command={place.ssh} :{source}\n")
    (place.folder / "master").write_text(f"{top} file:{place.folder}/map --timeout=1\n")
    script = f"""
        mount --bind {shlex.quote(CULVERT[0])} /usr/bin/sshfs
        setsid {automount} -f -p {place.folder}/pid {place.folder}/master >log 2>&1 &
        automount=$!
        waits() {{ for i in $(seq 200); do "$@" && return; sleep 0.1; done; echo "not: $*"; }}
        gone() {{ ! grep -q ' {top}/work ' /proc/self/mountinfo; }}  # which does not look into it
        waits findmnt -n -o FSTYPE {top}
        for i in 1 2; do
            cat {top}/work/file; findmnt -n -o FSTYPE,SOURCE {top}/work
            waits gone
        done
        ls {top}/other; echo "status $?"
        kill $automount; wait $automount
    """
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], cwd=place.folder,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    mounted = f"contentfuse.sshfs host:{place.there}"
    said = (place.folder / "log").read_text() + done.stderr
    assert done.stdout.splitlines() == ["autofs", mounted, mounted, "status 2"], said


def test_a_user_of_setuid_owns_the_mount(place: Place) -> None:
    os.chown(place.mountpoint, 65534, 65534)
    # nobody may not read the modules of this interpreter: all are imported before
    code = (
        "import sys, appliance.mount.options, appliance.mount.mount, appliance.cli.sshfs,"
        " appliance.client.sftp_session, appliance.aio.loop, appliance.cli.client_log,"
        " appliance.process.daemon, appliance.mount.mounting, subprocess, shutil, pwd, shlex;"
        " sys.argv[0] = 'sshfs'; sys.exit(appliance.cli.sshfs.main(sys.argv[1:], 'sshfs'))"
    )
    place.folder.chmod(0o755)
    (place.folder / "words").touch()
    (place.folder / "words").chmod(0o666)
    options = f"setuid=nobody,ssh_command={place.ssh}"
    done = subprocess.run(
        [sys.executable, "-c", code, f"host:{place.there}", str(place.mountpoint), "-o", options],
        capture_output=True, text=True, env=environment(place.folder), timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "user_id=65534,group_id=65534" in place.lines()[0]
    place.unmount()


# -- without ssh ---------------------------------------------------------------------------


@contextlib.contextmanager
def sftp_port() -> Iterator[int]:
    """A port on which OpenSSH's SFTP server speaks without SSH."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    with sock:
                        subprocess.run(
                            [SFTP_SERVER], stdin=sock.fileno(), stdout=sock.fileno(), check=False
                        )

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_a_server_without_ssh_is_reached_by_its_port(place: Place) -> None:
    with sftp_port() as port:
        done = place.run(f"127.0.0.1:{place.there}", place.mountpoint, "-o", f"directport={port}")
        assert (done.returncode, done.stderr) == (0, "")
        assert (place.mountpoint / "file").read_text() == "content"
        place.unmount()


def test_a_server_may_be_at_standard_input_and_output(place: Place) -> None:
    """As dpipe does it; the mount ends with the server."""
    server = subprocess.Popen([SFTP_SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdin is not None
    assert server.stdout is not None
    with server.stdin, server.stdout:
        process = subprocess.Popen(
            [*place.called("sshfs"), f":{place.there}", str(place.mountpoint), "-fo", "passive"],
            env=environment(place.folder), stdin=server.stdout, stdout=server.stdin,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    wait_for(lambda: place.is_mounted)
    assert (place.mountpoint / "file").read_text() == "content"
    assert place.lines()[0].split(" - ")[1].startswith(f"fuse.sshfs :{place.there} ")
    server.kill()
    server.wait()
    process.communicate(timeout=30)
    assert not place.is_mounted


def test_a_silent_server_is_noticed_unless_the_settings_have_their_own(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.touch()
    host = Host("host", config_file=str(config))
    assert defaults(host, ()) == [("ConnectTimeout", "30"), ("ServerAliveInterval", "5")]
    assert defaults(host, ("serveraliveinterval=0", "ConnectTimeout=none")) == []
    config.write_text("ServerAliveInterval 60\nConnectTimeout 5\n")
    assert defaults(host, ()) == []


# -- help ----------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_is_no_failure(place: Place, word: str) -> None:
    done = place.run("host:", word)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: sshfs [user@]host:[dir] mountpoint [options]\n")
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize("word", ["-V", "--version"])
def test_the_version_is_told(place: Place, word: str) -> None:
    done = place.run(word)
    assert (done.returncode, done.stderr) == (0, "")
    assert "FUSE kernel interface version 7." in done.stdout
