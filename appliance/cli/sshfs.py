"""culvert sshfs, also mount.sshfs: mounts a directory of an SFTP server, with sshfs's options.

The program that was called waits until its child has logged in, found the directory and mounted;
the child stays in the background. mount(8) calls mount.sshfs with options of its own.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import CulvertError, UsageError
from ..log import harmless
from .options import Option, Options, help_text, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..aio.loop import Loop, Timer
    from ..aio.tasks import Task
    from ..client.sftp_session import Host, LoggedIn, SftpSession
    from ..links.mount_reports import MountReports
    from ..mount.mount import Mount
    from ..mount.mounting import Mounted
    from ..mount.options import MountLine
    from ..process.daemon import Starting

_log = logging.getLogger(__name__)

FAILURE: Final = 1
MOUNT_FAILURE: Final = 32  # mount(8), EXIT STATUS

# Our own choices
CONNECT_SECONDS: Final = 30  # unless ssh_config(5) says otherwise
ALIVE_SECONDS: Final = 5  # between two questions to a silent server, of which three are asked

SPEC: Final = (
    Option("p", "port", "the server's port (default 22)"),
    Option("C", None, "compress"),
    Option("F", "file", "ssh settings from this file, and no other"),
    Option("o", "option,...", "what is listed below, or a setting of ssh_config(5)", True),
    Option("f", None, "stay in the foreground"),
    Option("d", None, "tell each request of the kernel; stay in the foreground"),
    Option("v", None, "tell what happens"),
    Option("V", None, "show the version"),
    Option("h", None, ""),
    Option("s", None, ""),  # one thread, as always
    Option("r", None, ""),
    Option("w", None, ""),
    Option("n", None, ""),  # no mtab, as always
    Option("debug", None, ""),
    Option("verbose", None, ""),
    Option("version", None, ""),
    Option("supervised", "descriptor", ""),  # a socket to the supervisor that runs it
)
# What mount(8) passes to its helpers: its EXTERNAL HELPERS
HELPER_SPEC: Final = (
    Option("o", "option,...", "what 'culvert sshfs --help' lists", True),
    Option("r", None, "read-only"),
    Option("w", None, "for reading and writing"),
    Option("f", None, "look for mistakes only; nothing is connected or mounted"),
    Option("s", None, "ignore options that are unknown"),
    Option("v", None, "tell what happens"),
    Option("n", None, ""),
    Option("t", "type", ""),
    Option("N", "namespace", ""),
)

_ABOUT: Final = """\
Mounts a directory of a server, by SFTP. Without a directory it is the user's home. Settings come
from ~/.ssh/config, too. It is unmounted by 'fusermount3 -u mountpoint', or umount as root."""
_FOOTER: Final = """\
Options of -o, separated by commas (\\, is a comma within one):
  timeout=SECONDS           until a request fails that the server does not answer (default 60)
  cache_size=MIB            for listings and for files that are read ahead (default 32)
  write_behind              report changes as done before the server has confirmed them
  dir_cache=no              keep no names and attributes
  dcache_timeout=SECONDS    keep them this long; also dcache_{stat,link,dir}_timeout (default 3)
  idmap=user                the server's user has our number; idmap=file with uidfile=, gidfile=
  nomap=ignore              with idmap=file: those that are missing there keep their numbers
  follow_symlinks           have the server follow its symbolic links
  transform_symlinks        make absolute links relative, so that they stay inside
  no_contain_symlinks       show links that lead out of the directory
  disable_hardlink          make no hard links
  sshfs_sync, no_readahead  wait for each write; read nothing ahead
  direct_io, kernel_cache   the kernel keeps no data; keeps it for good
  max_read=N, max_write=N   bytes of one request to the server
  workaround=LIST           rename, renamexdev, createmode, separated by colons
  sftp_server=NAME          the subsystem there, or the path of an SFTP server program
  ssh_command=COMMAND       connect by this program, which takes ssh's options
  directport=PORT           connect to a server that speaks SFTP without SSH
  passive                   the server is at standard input and output
  password_stdin            read the password from standard input
  uid=N, gid=N, umask=M     shown for all files
  {entry,negative,attr}_timeout=SECONDS
                            how long the kernel keeps names, missing names, attributes
  allow_other               let other users in; with default_permissions by the files' modes
  auto_unmount              unmount also after a kill -9
  fsname=NAME, subtype=NAME what mount(8) lists
  setuid=USER               mount as this user, who then owns the mount
  ro, noexec, noatime, sync, dirsync, dev, suid
                            as mount(8)'s
Other options of sshfs, and those of mount(8) such as _netdev, are accepted."""


def main(arguments: list[str], name: str) -> int:
    """Mounts; returns 0 once the mount is there, or with -f after its end."""
    is_helper = name != "sshfs"
    command = name if os.path.basename(sys.argv[0]) == name else f"culvert {name}"
    failure = MOUNT_FAILURE if is_helper else FAILURE
    reports = None
    try:
        options = _parse(arguments, HELPER_SPEC if is_helper else SPEC, command)
        if "help" in options or "h" in options:
            print(_help(command, is_helper), end="")
            return 0
        if "V" in options or "version" in options:
            print(_version())
            return 0
        if (descriptor := options.value("supervised")) is not None:
            reports = _reports(descriptor)
        wanted = _wanted(options, is_helper, command)
        if is_helper and "f" in options:
            return 0
        return _Sshfs(wanted, reports).run()
    except CulvertError as error:
        if reports is not None:
            reports.failed(error)
        else:
            print(f"{command}: {harmless(str(error))}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    except Exception:  # the root of a process
        _log.exception("the mount failed")
    return failure


def _parse(arguments: list[str], spec: tuple[Option, ...], command: str) -> Options:
    """Parses options in any place, between the operands and behind them."""
    given: list[tuple[str, str]] = []
    operands: list[str] = []
    rest = list(arguments)
    while rest:
        part = parse(rest, spec, command)
        given += part.given
        if "--" in rest[: len(rest) - len(part.operands)]:
            operands += part.operands
            break
        operands += part.operands[:1]
        rest = part.operands[1:]
    return Options(given, operands)


def _help(command: str, is_helper: bool) -> str:
    usage = f"{command} [user@]host:[dir] mountpoint [options]"
    return help_text(
        usage, _ABOUT, HELPER_SPEC if is_helper else SPEC, "" if is_helper else _FOOTER
    )


def _version() -> str:
    from .. import __version__
    from ..wire.fuse import MAJOR, MINOR

    return f"Culvert {__version__}\nusing FUSE kernel interface version {MAJOR}.{MINOR}"


def _reports(descriptor: str) -> MountReports:
    """Returns the socket to the supervisor; raises UsageError."""
    from ..links.mount_reports import MountReports

    if not (descriptor.isascii() and descriptor.isdigit() and len(descriptor) < 10):
        raise UsageError(f"--supervised={descriptor}: expected a descriptor")
    return MountReports(int(descriptor))


class _Wanted(NamedTuple):
    """What the command line asks for."""

    line: MountLine
    source: str  # as it is shown
    user: str
    host: str
    mountpoint: str
    host_settings: tuple[str | tuple[str, str], ...]
    config_file: str | None
    stays: bool  # in the foreground


def _wanted(options: Options, is_helper: bool, command: str) -> _Wanted:
    """Returns what the options and operands ask for; raises UsageError."""
    from dataclasses import replace

    from ..mount.mounting import check_mountpoint
    from ..mount.options import read

    source, mountpoint = _operands(options.operands, command)
    user, host, directory = _split_source(source)
    texts = options.values("o") + ["ro" for _ in options.values("r")]
    line = read(texts, is_sloppy=is_helper and "s" in options)
    if not host and not line.passive and not line.ssh_command:
        raise UsageError(f"missing host in `{source}'; see `{command} --help' for usage")
    if line.become:
        _become(line.become)
    line.mount = replace(line.mount, directory=os.fsencode(directory))
    line.debug = line.debug or "d" in options or "debug" in options
    line.verbose = line.verbose or "v" in options or "verbose" in options
    settings: list[str | tuple[str, str]] = [("User", user)] if user else []
    settings += [("Port", port) for port in options.values("p")[-1:]]
    settings += [("Compression", "yes")] if "C" in options else []
    return _Wanted(
        line,
        line.source or source,
        user,
        host,
        check_mountpoint(mountpoint),
        (*settings, *line.ssh),
        _absolute(options.value("F")),
        line.debug or (not is_helper and "f" in options),
    )


def _absolute(config_file: str | None) -> str | None:
    if config_file is None or config_file.lower() == "none":
        return config_file
    return os.path.abspath(config_file)


def _operands(operands: list[str], command: str) -> tuple[str, str]:
    """Returns source and mount point: the first operand with a colon, and the other one."""
    source = next((each for each in operands if ":" in each), None)
    if source is None:
        raise UsageError(f"missing host; see `{command} --help' for usage")
    rest = list(operands)
    rest.remove(source)
    if not rest:
        raise UsageError(f"no mountpoint specified; see `{command} --help' for usage")
    if len(rest) > 1:
        raise UsageError(f"invalid argument `{rest[1]}'")
    return source.removeprefix("sshfs#"), rest[0]


def _split_source(source: str) -> tuple[str, str, str]:
    """Returns user, host and directory of ``[user@]host:[dir]``; brackets hide colons."""
    head = ""
    at = 0
    while source[at] != ":":
        if source[at] == "[":
            end = source.find("]", at)
            if end < 0 or ":" not in source[end:]:
                raise UsageError(f"missing ']' or ':' in `{source}'")
            head += source[at + 1 : end]
            at = end
        else:
            head += source[at]
        at += 1
    user, _, host = head.rpartition("@")
    if host.startswith("-") or head.startswith("-"):
        raise UsageError(f"invalid hostname '{head}'")
    return user, host, source[at + 1 :]


def _become(name: str) -> None:
    """Becomes the user of setuid=; raises UsageError."""
    import pwd

    try:
        entry = pwd.getpwnam(name)
    except KeyError as error:
        raise UsageError(f"setuid={name}: there is no such user") from error
    if os.geteuid() == entry.pw_uid:
        return
    try:
        os.initgroups(name, entry.pw_gid)
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    except OSError as error:
        raise UsageError(f"setuid={name}: {error.strerror}") from error
    os.environ.update(HOME=entry.pw_dir, USER=name, LOGNAME=name)


def defaults(host: Host, options: Sequence[str]) -> list[tuple[str, str]]:
    """Returns settings that neither the options, as keyword=value, nor the files have.

    Raises UsageError for a mistake in any of them.
    """
    found = host.load()
    given = {word.partition("=")[0].lower() for word in options}
    settings = []
    if found.connect_timeout is None and "connecttimeout" not in given:
        settings.append(("ConnectTimeout", str(CONNECT_SECONDS)))
    if not found.server_alive_interval and "serveraliveinterval" not in given:
        settings.append(("ServerAliveInterval", str(ALIVE_SECONDS)))
    return settings


class _Sshfs:
    """One run of the program, as its command line wants it."""

    def __init__(self, wanted: _Wanted, reports: MountReports | None = None) -> None:
        """``reports``: to the supervisor, if there is one."""
        self._wanted = wanted
        self._reports = reports
        self._line = wanted.line
        self._is_first = True
        self._start: Task[int] | None = None
        self._limit: Timer | None = None  # of the server's first answers
        self._mounted: Mounted | None = None
        self._is_ending = False
        self._signals = 0
        self._has_failed = False

    def run(self) -> int:
        """Mounts, and serves the mount to its end; returns the exit status."""
        from .. import log
        from ..aio.loop import Loop
        from ..mount.mount import Mount
        from ..process.daemon import Starting
        from . import client_log

        starting = None if self._wanted.stays else Starting()
        os.chdir("/")  # at once, so that a path which leads nowhere later is told now
        line = self._line
        client_log.set_up("DEBUG" if line.debug else "VERBOSE" if line.verbose else "INFO", None)
        if self._reports is not None:
            log.pass_on(self._reports.write)
        self._prepare()
        loop = Loop()
        mount = Mount(loop, line.mount, self._connect)
        try:
            self._serve(loop, mount, starting)
        finally:
            mount.close()
            if self._mounted is not None:
                self._mounted.close()
            loop.close()
        return FAILURE if self._has_failed else 0

    def _prepare(self) -> None:
        """Reads the password, and completes the settings for the host; raises CulvertError."""
        import shlex

        from ..client import prompts
        from ..client.sftp_session import Host

        wanted, line = self._wanted, self._line
        settings = list(wanted.host_settings)
        if self._reports is not None:
            settings += self._reports.settings()
        if line.password_stdin:
            if line.ssh_command or line.passive:
                raise UsageError("password_stdin cannot be used with ssh_command or passive")
            prompts.give(os.fsdecode(sys.stdin.buffer.readline(1 << 12).rstrip(b"\r\n")))
            settings.append(("NumberOfPasswordPrompts", "1"))
        try:
            program = tuple(shlex.split(line.ssh_command))
        except ValueError as error:
            raise UsageError(f"ssh_command={line.ssh_command}: {error}") from error
        host = Host(wanted.host, tuple(settings), wanted.config_file, program)
        if "/" in line.sftp_server:
            host = host._replace(command=line.sftp_server)
        elif line.sftp_server:
            host = host._replace(subsystem=line.sftp_server)
        if not program and not line.passive and not line.direct_port:
            host = host._replace(settings=(*host.settings, *defaults(host, line.ssh)))
        self._host = host

    def _connect(self) -> Callable[[Loop], SftpSession]:
        """Logs in; the first time it may ask the user, later it may not."""
        is_first, self._is_first = self._is_first, False
        logged_in = self._log_in(is_first)
        if not is_first:
            return logged_in.session

        def session(loop: Loop) -> SftpSession:
            # The user may have been asked before, for any time. From here on nobody is.
            self._limit = loop.call_later(self._line.mount.timeout, self._give_up)
            return logged_in.session(loop)

        return session

    def _give_up(self) -> None:
        if self._start is not None:
            self._start.cancel()

    def _log_in(self, is_first: bool) -> LoggedIn:
        from ..client.sftp_session import dial_server, log_in, standard_streams

        line, host = self._line, self._host
        if line.passive:
            if not is_first:
                self._end_ourselves()
                raise UsageError("the server at standard input has ended")
            return standard_streams()
        if line.direct_port:
            return dial_server(host.name, line.direct_port, CONNECT_SECONDS)
        if not is_first and not line.password_stdin:
            host = host._replace(settings=(("BatchMode", "yes"), *host.settings))
        return log_in(host)

    def _end_ourselves(self) -> None:
        """Has the loop's thread end the mount, whose server will never come back."""
        import signal

        self._signals += 1  # so that nothing waits to be written
        os.kill(os.getpid(), signal.SIGTERM)

    def _serve(self, loop: Loop, mount: Mount, starting: Starting | None) -> None:
        import signal

        from ..mount import mounting

        def killed(number: int, _: object) -> None:
            raise SystemExit(128 + number)  # which ends what was started

        # nohup and shells have some signals ignored
        numbers = [
            number
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN
        ]
        for number in numbers:
            signal.signal(number, killed)
        if self._reports is not None:
            self._reports.watch(loop, lambda: self._on_gone(loop, mount))
        wanted, kernel = self._wanted, self._line.kernel
        root_mode = self._root_mode(loop, mount)
        # From here on there is something to unmount.
        for number in numbers:
            loop.on_signal(number, lambda: self._on_signal(loop, mount))
        mounted = mounting.mount(wanted.mountpoint, wanted.source, kernel, root_mode)
        self._mounted = mounted
        try:
            mount.serve(mounted.fd, lambda: self._end(loop, mount))
            if starting is not None:
                self._detach(loop, starting)
                self._tell_who_may_enter()
            elif self._reports is not None:
                self._tell_who_may_enter()
                self._reports.follow(loop, mount)
            loop.run()
        finally:
            try:
                mounted.unmount()
            except UsageError as error:
                self._has_failed = True
                _log.error("%s", error)

    def _root_mode(self, loop: Loop, mount: Mount) -> int:
        """Connects, and returns st_mode of the directory; raises CulvertError."""
        import stat

        try:
            mode = self._started(loop, mount)
        except OSError as error:
            raise UsageError(f"{self._wanted.source}: {error.strerror}") from error
        if not stat.S_ISDIR(mode):
            raise UsageError(f"{self._wanted.source}: Not a directory")
        return mode

    def _started(self, loop: Loop, mount: Mount) -> int:
        """Runs the loop until the directory is found; returns its st_mode."""
        from ..aio.tasks import Cancelled, Task

        self._start = task = Task(loop, mount.start())
        task.when_done(loop.stop)
        loop.run()
        if self._limit is not None:
            self._limit.cancel()
        try:
            return task.result()
        except Cancelled:
            seconds = round(self._line.mount.timeout)
            raise UsageError(f"the server has not answered for {seconds} seconds") from None

    def _detach(self, loop: Loop, starting: Starting) -> None:
        """Leaves the terminal, and ends the program that was called."""
        from .. import log

        line = self._line
        try:
            starting.detach()
        except BrokenPipeError as error:
            raise UsageError("the program that waited for the mount was ended") from error
        loop.watch_reader(starting.messages, lambda: _log_messages(starting.messages))
        log.set_up("sshfs", logging.INFO if line.verbose else logging.WARNING, to_stderr=False)

    def _tell_who_may_enter(self) -> None:
        """Logs that everybody may, where only root can have it so."""
        words = self._line.kernel.words
        if os.geteuid() == 0 and "allow_other" in words and "default_permissions" not in words:
            where = self._wanted.mountpoint
            text = "%s: all users here can do what the server permits; see default_permissions"
            _log.warning(text, where)

    def _on_gone(self, loop: Loop, mount: Mount) -> None:
        """Ends the mount, of which no supervisor takes care any more."""
        if self._mounted is None:
            raise SystemExit(FAILURE)
        self._end(loop, mount)

    def _on_signal(self, loop: Loop, mount: Mount) -> None:
        self._signals += 1
        if self._signals > 1:  # somebody is impatient
            loop.stop()
        self._end(loop, mount)

    def _end(self, loop: Loop, mount: Mount) -> None:
        """Has what waits written, and then ends."""
        from ..aio.tasks import Task

        if not self._is_ending:
            self._is_ending = True
            Task(loop, self._finish(loop, mount))

    async def _finish(self, loop: Loop, mount: Mount) -> None:
        try:
            await mount.finish()
        except (CulvertError, OSError) as error:
            self._has_failed = True
            _log.error("not all changes have reached the server: %s", error)
        loop.stop()


def _log_messages(fd: int) -> None:
    """Logs what programs have written to standard error: ssh_command, ProxyCommand."""
    for line in os.read(fd, 4096).decode(errors="replace").splitlines():
        _log.warning("%s", line)
