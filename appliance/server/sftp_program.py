"""The SFTP server that this package brings, as the program of a session.

It is a new interpreter, never a fork of the monitor. It begins as root, without a variable of the
client's or the user's choice in its environment, and becomes the user for good before it reads
the first byte (appliance/sftp/identity.py). So the user needs no right to run this interpreter,
which may be installed in /root, and a chroot needs no file.
"""

import os
import pwd
import shlex
from typing import Final, NamedTuple

from ..config.server import ConnectionConfig
from ..process import ourselves

INTERNAL: Final = "internal-sftp"  # sshd_config(5)
REPORTS: Final = 3  # the descriptor on which the program reports changes

# Our own choice. Any other shell may exist to decide what its user runs (git-shell, rbash,
# nologin), so it is asked. These would run anything, and the start-up files of some print what a
# client takes for a packet.
ORDINARY_SHELLS: Final = frozenset(
    ("ash", "bash", "busybox", "csh", "dash", "fish", "ksh", "mksh", "sh", "tcsh", "zsh")
)

_CODE: Final = "from appliance.cli.sftp_server import session; raise SystemExit(session(sys.argv))"
# What is kept for a program that begins as root
_SAFE: Final = (b"USER", b"LOGNAME", b"HOME", b"SHELL", b"PATH", b"SSH_CONNECTION", b"SSH_CLIENT")


class SftpServer(NamedTuple):
    """A command that runs the SFTP server with these options of its command line."""

    options: tuple[str, ...]
    asks_shell: bool  # an unusual shell decides whether it runs

    def command(self, user: pwd.struct_passwd | None, chroot: str, reports: bool) -> list[str]:
        """Returns the command line for root, or for the user alone if ``user`` is None.

        ``chroot`` is '' for none. What the program does as root stands in words of its own in
        front of the options, where no option can take its place: options may come from a user's
        authorized_keys.
        """
        identity = ""
        if user is not None and os.geteuid() == 0:
            groups = os.getgrouplist(user.pw_name, user.pw_gid)
            identity = f"{user.pw_uid}:{user.pw_gid}:{','.join(map(str, groups))}"
        words = (chroot, identity, str(REPORTS) if reports else "")
        return ourselves.bare_command(_CODE, *words, *self.options)

    def is_for_shell(self, shell: str) -> bool:
        """Whether ``shell`` has to run the program, so that it can refuse to."""
        return self.asks_shell and os.path.basename(shell) not in ORDINARY_SHELLS


def of_settings(config: ConnectionConfig) -> SftpServer:
    """Returns the subsystem ``sftp`` as the settings have it."""
    return SftpServer(_options(config), asks_shell=True)


def of_command(text: str, config: ConnectionConfig) -> SftpServer | None:
    """Returns what a command that begins with ``internal-sftp`` runs, None if it is another.

    Its options add to those of the settings. Raises ValueError for quotes that are not closed.
    """
    if text != INTERNAL and not text.startswith((f"{INTERNAL} ", f"{INTERNAL}\t")):
        return None
    return SftpServer((*_options(config), *shlex.split(text)[1:]), asks_shell=False)


def _options(config: ConnectionConfig) -> tuple[str, ...]:
    options = ["-l", config.sftp_log.upper()]
    if config.sftp_read_only:
        options.append("-R")
    if config.sftp_umask:
        options += ["-u", config.sftp_umask]
    if config.sftp_start_directory:
        options += ["-d", config.sftp_start_directory]
    if config.sftp_ignore_setstat:
        options.append("--ignore-setstat")
    return tuple(options)


def safe_environment(environment: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Returns the variables that the server itself has set."""
    return {name: environment[name] for name in _SAFE if name in environment}
