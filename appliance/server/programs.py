"""Programs that run as the user who is logged in: terminals, pipes, identity, exec."""

import contextlib
import fcntl
import grp
import os
import pwd
import shlex
import signal
import socket
import termios
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, NoReturn

from ..process import merging
from . import xauthority_files
from .accounts import become, take_groups, take_user
from .sftp_program import SftpServer, safe_environment
from .xauthority_files import Display

# Our own choices
PIPE_SIZE: Final = 256 << 10  # bytes: four times the system's default, for fewer wake-ups
PATH: Final = "/usr/local/bin:/usr/bin:/bin:/usr/games"
ROOT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SYSTEM_RC: Final = "/etc/ssh/sshrc"  # sshd(8), SSHRC
_F_SETPIPE_SZ: Final = 1031

Environment = dict[bytes, bytes]
Command = bytes | SftpServer | None  # for the user's shell; None: the shell itself, for a login


class Program(NamedTuple):
    """A child of ours, and the descriptors that go to the worker."""

    pid: int
    descriptors: list[int]  # stdin, stdout, stderr; none with a terminal: the worker has its master


class PseudoTerminal(NamedTuple):
    """A pseudo-terminal; a reader of the master sees its end while no slave is open."""

    master: int
    slave: int
    name: str

    def close(self) -> None:
        """Closes our copies of both sides."""
        os.close(self.master)
        os.close(self.slave)


def ended_children() -> Iterator[tuple[int, int]]:
    """Process id and wait status of every child that has ended and was not waited for yet."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        yield pid, status


def open_terminal(user: pwd.struct_passwd) -> PseudoTerminal:
    """A new terminal that belongs to ``user``, who alone may use it."""
    master, slave = os.openpty()
    name = os.ttyname(slave)
    if os.geteuid() == 0:
        try:
            group, mode = grp.getgrnam("tty").gr_gid, 0o620  # for write(1)
        except KeyError:
            group, mode = user.pw_gid, 0o600
        os.fchown(slave, user.pw_uid, group)
        os.fchmod(slave, mode)
    return PseudoTerminal(master, slave, name)


def base_environment(user: pwd.struct_passwd, inherited: bool) -> Environment:
    """The environment of every program of ``user``; ``inherited``: in addition to the server's."""
    environment = dict(os.environb) if inherited else {}
    environment |= {
        b"USER": user.pw_name.encode(),
        b"LOGNAME": user.pw_name.encode(),
        b"HOME": os.fsencode(user.pw_dir),
        b"SHELL": os.fsencode(user.pw_shell or "/bin/sh"),
        b"PATH": (PATH if user.pw_uid else ROOT_PATH).encode(),
    }
    return environment


def start(
    user: pwd.struct_passwd,
    command: Command,
    environment: Environment,
    terminal: PseudoTerminal | None,
    greeting: str,
    runs_rc: bool,
    chroot: str = "",
    reports: socket.socket | None = None,
    display: Display | None = None,
    display_ready: int | None = None,
) -> Program:
    """Runs ``command``, all of it within the directory ``chroot`` unless that is ''.

    With ``runs_rc``, ~/.ssh/rc runs first if there is one, or else the system's (sshd(8), SSHRC).
    An SFTP server reports its changes on ``reports``. The child closes ``display_ready`` once the
    cookie of ``display`` is stored. Raises OSError.
    """
    plan = _Plan(
        user, command, environment, greeting, runs_rc, chroot, reports, display, display_ready
    )
    if terminal is not None:
        pid = os.fork()
        if pid == 0:
            _become_program(plan, terminal, ())
        return Program(pid, [])
    with contextlib.ExitStack() as undo:
        stdin_read, stdin_write = pipe(undo)
        stdout_read, stdout_write = pipe(undo)
        stderr_read, stderr_write = pipe(undo)
        for fd in (stdin_write, stdout_read):
            _enlarge(fd)
        pid = os.fork()
        if pid == 0:
            _become_program(plan, None, (stdin_read, stdout_write, stderr_write))
        undo.pop_all()
    for fd in (stdin_read, stdout_write, stderr_write):
        os.close(fd)
    return Program(pid, [stdin_write, stdout_read, stderr_read])


def pipe(undo: contextlib.ExitStack) -> tuple[int, int]:
    """A new pipe, which ``undo`` closes."""
    ends = os.pipe()
    for fd in ends:
        undo.callback(os.close, fd)
    return ends


def _enlarge(fd: int) -> None:
    with contextlib.suppress(OSError):  # the user's pipes may use up their quota
        fcntl.fcntl(fd, _F_SETPIPE_SZ, PIPE_SIZE)


class _Plan(NamedTuple):
    """The arguments of ``start``."""

    user: pwd.struct_passwd
    command: Command
    environment: Environment
    greeting: str
    runs_rc: bool
    chroot: str
    reports: socket.socket | None
    display: Display | None
    display_ready: int | None


def _become_program(
    plan: _Plan, terminal: PseudoTerminal | None, descriptors: tuple[int, ...]
) -> NoReturn:
    """In the child: gives up everything that is not the user's, and calls exec."""
    user, command = plan.user, plan.command
    shell = os.fsencode(user.pw_shell or "/bin/sh")
    try:
        merging.end()
        os.setsid()
        if terminal is not None:
            fcntl.ioctl(terminal.slave, termios.TIOCSCTTY, 0)
            descriptors = (terminal.slave,) * 3
        if plan.reports is not None:
            descriptors = (*descriptors, plan.reports.fileno())
        if plan.display_ready is not None:
            descriptors = (*descriptors, plan.display_ready)
        _place(descriptors)
        if plan.display_ready is not None:
            os.set_inheritable(len(descriptors) - 1, False)  # exec closes it
        _reset_signals()
        os.umask(0o022)
        if isinstance(command, SftpServer):
            _become_sftp_server(plan, command, terminal is not None)
        _enter(user, plan.chroot)
        name = os.path.basename(shell)
        if plan.greeting and command is None and not os.path.exists(".hushlogin"):
            os.write(1, plan.greeting.encode())
        if plan.display is not None:
            plan.environment[b"XAUTHORITY"] = xauthority_files.users_file(plan.environment)
        if not _run_rc(plan, shell) and plan.display is not None:
            _store_cookie(plan.display, plan.environment)
        arguments = [b"-" + name] if command is None else [name, b"-c", command]
        os.execve(shell, arguments, plan.environment)
    except BaseException as error:
        text = f"culvert: cannot start {os.fsdecode(shell)}: {error}\n"
        os.write(2, text.encode(errors="replace"))
    finally:
        os._exit(127)


def _run_rc(plan: _Plan, shell: bytes) -> bool:
    """Runs the user's rc file or the system's; returns whether there was one.

    It reads the protocol and the cookie of the display, if there is one, and stores them itself.
    """
    own = os.path.join(plan.user.pw_dir, ".ssh/rc")
    if plan.runs_rc and os.path.exists(own):
        program, words = shell, [os.path.basename(shell), b"-c", b'/bin/sh "$0"', os.fsencode(own)]
    elif os.path.exists(SYSTEM_RC):
        program, words = b"/bin/sh", [b"sh", os.fsencode(SYSTEM_RC)]
    else:
        return False
    reading, writing = os.pipe()
    if plan.display is not None:
        os.write(writing, b"%s %s\n" % (plan.display.protocol, plan.display.cookie))
    os.close(writing)
    actions = [(os.POSIX_SPAWN_DUP2, reading, 0)]
    os.waitpid(os.posix_spawn(program, words, plan.environment, file_actions=actions), 0)
    os.close(reading)
    return True


def _store_cookie(display: Display, environment: Environment) -> None:
    """Stores a display's cookie, and tells the program where; without it there is no display."""
    # a client that hangs up now must not leave a lock behind
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        environment[b"XAUTHORITY"] = xauthority_files.add(display, environment)
    except OSError as error:
        text = f"culvert: no X11 forwarding: nowhere to store its cookie: {error.strerror}\n"
        os.write(2, text.encode())
        del environment[b"DISPLAY"], environment[b"XAUTHORITY"]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_aside(user: pwd.struct_passwd, descriptor: int, work: Callable[[int], None]) -> None:
    """Runs ``work`` in a child with the user's identity, and does not wait for it.

    The child has ``descriptor`` under the number that ``work`` gets. Raises OSError.
    """
    if os.fork():
        return
    try:
        merging.end()
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        _place((null, null, null, descriptor))
        _reset_signals()
        become(user)
        os.chdir("/")
        work(3)
    except BaseException:  # the root of a process, which nobody waits for
        pass
    finally:
        os._exit(0)


def _reset_signals() -> None:
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.set_wakeup_fd(-1)


def _place(descriptors: tuple[int, ...]) -> None:
    """Makes these the descriptors 0, 1, 2 ..., and closes all others."""
    # above all targets first, so that none is overwritten before it was copied
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD, len(descriptors)) for fd in descriptors]
    for target, fd in enumerate(copies):
        os.dup2(fd, target)
    os.closerange(len(descriptors), 65536)


def _enter(user: pwd.struct_passwd, chroot: str) -> None:
    """Becomes the user, within the directory ``chroot`` if it is not '', in the user's home."""
    if chroot:
        take_groups(user)  # by the system's own files
        os.chroot(chroot)
        os.chdir("/")
        take_user(user)
    else:
        become(user)
    try:
        os.chdir(user.pw_dir)
    except OSError as error:
        if not chroot:  # a chroot often is the home, or has none
            os.write(2, f"Could not chdir to {user.pw_dir}: {error.strerror}\n".encode())
            os.chdir("/")


def _become_sftp_server(plan: _Plan, server: SftpServer, on_terminal: bool) -> NoReturn:
    """Runs the SFTP server, by the user's shell if that may refuse."""
    if on_terminal:  # sshd's words to a person who wants a shell
        os.write(1, b"This service allows sftp connections only.\n")
        os._exit(1)
    shell = plan.user.pw_shell or "/bin/sh"
    reports = plan.reports is not None
    if server.is_for_shell(shell):
        _enter(plan.user, plan.chroot)
        words = server.command(None, "", reports)
        os.execve(shell, [os.path.basename(shell), "-c", shlex.join(words)], plan.environment)
    words = server.command(plan.user, plan.chroot, reports)
    os.chdir("/")
    os.execve(words[0], words, safe_environment(plan.environment))
