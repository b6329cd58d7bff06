"""The programs that speak SFTP, each told to copy a tree to a server and back."""

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from tests.interop.conftest import write_program
from tests.peers import CLIENTS, Login, Server, environment, find_program

Done = subprocess.CompletedProcess[bytes]


class Copier(ABC):
    """One program with its options for a server and a login."""

    name: str
    program: str

    def __init__(self, server: Server, login: Login, folder: Path) -> None:
        """``folder`` is for files of the test's own."""
        self.server = server
        self.login = login
        self.folder = folder
        self.env = environment(server.folder)
        find_program(self.program)

    def call(self, *words: str, data: str | bytes = b"") -> Done:
        """Run the program with these words; its input may have any bytes."""
        done = subprocess.run(
            [find_program(self.program), *words],
            env=self.env,
            input=data.encode() if isinstance(data, str) else data,
            capture_output=True,
            timeout=90,
            check=False,
            start_new_session=True,
        )
        return done

    @abstractmethod
    def put(self, source: Path, target: Path) -> Done:
        """Copy the directory ``source`` to the server, where it becomes ``target``."""

    @abstractmethod
    def get(self, source: Path, target: Path) -> Done:
        """Copy the server's directory ``source``, which becomes ``target`` here."""


class _OverSsh(Copier):
    """A program of OpenSSH, which runs ssh."""

    def __init__(self, server: Server, login: Login, folder: Path) -> None:
        super().__init__(server, login, folder)
        call = CLIENTS["openssh"].invocation(server, login, None)
        self.ssh = write_program(folder / "ssh", call.argv[:-1])
        self.env = call.env


class Sftp(_OverSsh):
    name = program = "sftp"

    def batch(self, *lines: str | bytes, options: Sequence[str] = ()) -> Done:
        """Run the commands of a batch."""
        words = [line.encode() if isinstance(line, str) else line for line in lines]
        arguments = ["-q", "-S", str(self.ssh), *options, "-b", "-", self.server.address]
        return self.call(*arguments, data=b"\n".join(words) + b"\n")

    def put(self, source: Path, target: Path) -> Done:
        return self.batch(f"mkdir {target}", f"put -R -p {source}/. {target}")

    def get(self, source: Path, target: Path) -> Done:
        target.mkdir()
        return self.batch(f"get -R -p {source}/. {target}")


class Scp(_OverSsh):
    name = program = "scp"

    def put(self, source: Path, target: Path) -> Done:
        remote = f"{self.server.address}:{target}"
        return self.call("-s", "-q", "-r", "-p", "-S", str(self.ssh), str(source), remote)

    def get(self, source: Path, target: Path) -> Done:
        remote = f"{self.server.address}:{source}"
        return self.call("-s", "-q", "-r", "-p", "-S", str(self.ssh), remote, str(target))


class _Putty(Copier):
    """A program of PuTTY."""

    def words(self) -> list[str]:
        """The options for server and login."""
        call = CLIENTS["plink"].invocation(self.server, self.login, None)
        self.env = call.env
        return call.argv[1:]


class Psftp(_Putty):
    name = program = "psftp"

    def batch(self, *lines: str) -> Done:
        """Run these commands."""
        script = self.folder / "batch"
        script.write_text("".join(f"{line}\n" for line in lines))
        return self.call(*self.words(), "-b", str(script))

    def put(self, source: Path, target: Path) -> Done:
        return self.batch(f"lcd {source.parent}", f'put -r "{source.name}" "{target}"')

    def get(self, source: Path, target: Path) -> Done:
        return self.batch(f"lcd {target.parent}", f'get -r "{source}" "{target.name}"')


class Pscp(_Putty):
    """It copies a directory into another one only, so the copy has to be renamed."""

    name = program = "pscp"

    def _run(self, source: str, target: str, made: Path, wanted: Path) -> Done:
        done = self.call("-sftp", "-q", "-r", *self.words(), source, target)
        made.rename(wanted)
        return done

    def put(self, source: Path, target: Path) -> Done:
        place = f"{self.server.address}:{target.parent}"
        return self._run(str(source), place, target.parent / source.name, target)

    def get(self, source: Path, target: Path) -> Done:
        place = f"{self.server.address}:{source}"
        return self._run(place, str(target.parent), target.parent / source.name, target)


class Lftp(_OverSsh):
    name = program = "lftp"

    def run(self, command: str) -> Done:
        """Run commands of lftp's."""
        settings = f'set sftp:connect-program "{self.ssh} -a -x"; set net:max-retries 1'
        place = f"sftp://{self.login.user}:@{self.server.address}:{self.server.port}"
        return self.call("-c", f"{settings}; open {place}; {command}")

    def put(self, source: Path, target: Path) -> Done:
        return self.run(f'mirror -R --no-umask "{source}" "{target}"')

    def get(self, source: Path, target: Path) -> Done:
        return self.run(f'mirror --no-umask "{source}" "{target}"')


class Rclone(Copier):
    name = program = "rclone"

    def __init__(self, server: Server, login: Login, folder: Path) -> None:
        super().__init__(server, login, folder)
        self.env |= {
            "RCLONE_CONFIG": "/notfound",  # its word for none
            "RCLONE_LOW_LEVEL_RETRIES": "1",
            "RCLONE_RETRIES": "1",
            "RCLONE_SFTP_HOST": server.address,
            "RCLONE_SFTP_PORT": str(server.port),
            "RCLONE_SFTP_USER": login.user,
            "RCLONE_SFTP_KNOWN_HOSTS_FILE": str(server.known_hosts),
            "RCLONE_SFTP_KEY_FILE": str(login.key),
        }

    def put(self, source: Path, target: Path) -> Done:
        return self.call("copy", "--create-empty-src-dirs", str(source), f":sftp:{target}")

    def get(self, source: Path, target: Path) -> Done:
        return self.call("copy", "--create-empty-src-dirs", f":sftp:{source}", str(target))


class Rsync(_OverSsh):
    """It uses no SFTP, but people expect it beside the others."""

    name = program = "rsync"

    def put(self, source: Path, target: Path) -> Done:
        return self.call(
            "-a", "-e", str(self.ssh), f"{source}/", f"{self.server.address}:{target}/"
        )

    def get(self, source: Path, target: Path) -> Done:
        return self.call(
            "-a", "-e", str(self.ssh), f"{self.server.address}:{source}/", f"{target}/"
        )


class Sshfs(_OverSsh):
    """A mount, to and from which cp copies."""

    name = program = "sshfs"

    def mount(self) -> Path:
        """Mount the server's root; the caller has to unmount it."""
        place = self.folder / "mount"
        place.mkdir(exist_ok=True)
        done = self.call(
            f"{self.server.address}:/", str(place), "-o", f"ssh_command={self.ssh}",
            "-o", "StrictHostKeyChecking=yes",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return place

    def unmount(self) -> None:
        """End the mount."""
        subprocess.run(
            [find_program("fusermount3"), "-u", str(self.folder / "mount")], check=True, timeout=20
        )

    def _copy(self, source: Path, target: Path) -> Done:
        return subprocess.run(
            ["cp", "-r", str(source), str(target)], capture_output=True, timeout=60, check=False
        )

    def put(self, source: Path, target: Path) -> Done:
        place = self.mount()
        try:
            return self._copy(source, place / target.relative_to("/"))
        finally:
            self.unmount()

    def get(self, source: Path, target: Path) -> Done:
        place = self.mount()
        try:
            return self._copy(place / source.relative_to("/"), target)
        finally:
            self.unmount()


class Library(Copier):
    """A client written with a Python library: tests/interop/NAME_client.py, with --sftp."""

    program = "python3"

    def _run(self, *words: str) -> Done:
        options = [f"--sftp={word}" for word in words]
        call = CLIENTS[self.name].invocation(self.server, self.login, "", options=options)
        return subprocess.run(call.argv, env=call.env, capture_output=True, timeout=60, check=False)

    def put(self, source: Path, target: Path) -> Done:
        return self._run("put", str(source), str(target))

    def get(self, source: Path, target: Path) -> Done:
        return self._run("get", str(source), str(target))


class AsyncSsh(Library):
    name = "asyncssh"


class Paramiko(Library):
    name = "paramiko"


COPIERS: dict[str, type[Copier]] = {
    kind.name: kind
    for kind in (
        Sftp, Scp, Psftp, Pscp, Lftp, Rclone, Rsync, Sshfs, AsyncSsh, Paramiko,
    )
}  # fmt: skip


def curl_words(server: Server, login: Login) -> list[str]:
    """The command line of curl (libssh2) up to the URL."""
    argv = [find_program("curl"), "-sS", "--user", f"{login.user}:", "--key", str(login.key)]
    return [*argv, "--pubkey", f"{login.key}.pub", "--max-time", "30", "--insecure"]
