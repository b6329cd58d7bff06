"""culvert scp, also scp: copies files between hosts, with OpenSSH's options."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from functools import partial
from typing import TYPE_CHECKING, Final

from ..errors import CulvertError, UsageError
from ..log import harmless
from .options import Option, Options, help_text, parse

if TYPE_CHECKING:
    from ..aio.loop import Loop
    from ..client.sftp_session import Host, SftpSession
    from ..files.places import Place

_log = logging.getLogger(__name__)

FAILURE: Final = 1  # scp(1), EXIT STATUS

COPY_OPTIONS: Final = (
    Option("P", "port", "the server's port (default 22)"),
    Option("i", "file", "a private key", True),
    Option("J", "[user@]host[:port]", "connect through this host; several with commas"),
    Option("F", "file", "settings from this file, and no other"),
    Option("o", "key=value", "a setting of ssh_config(5)", True),
    Option("c", "ciphers", "ciphers to offer, most wanted first"),
    Option("C", None, "compress"),
    Option("4", None, "IPv4 only"),
    Option("6", None, "IPv6 only"),
    Option("A", None, "let programs there use our agent"),
    Option("S", "program", "connect by this program, which takes ssh's options"),
    Option("l", "kbit/s", "use no more of the line than this"),
    Option("p", None, "keep times and permissions"),
    Option("r", None, "copy directories with all that is in them"),
    Option("q", None, "show no progress"),
    Option("v", None, "tell what happens; -vvv names each message as well", True),
    Option("temporary-name", None, "write under another name, renamed once the file is whole"),
)
SPEC: Final = (
    *COPY_OPTIONS,
    Option("B", None, "ask for no password or passphrase"),
    Option("D", "server", "copy from and to this SFTP server program, without a connection"),
    Option("X", "key=value", "nrequests: requests in flight; buffer: bytes of each", True),
    Option("O", None, "use the old scp protocol"),
    Option("T", None, "with -O: take whatever names the server sends"),
    Option("R", None, "between two hosts: have the first one connect to the second"),
    Option("3", None, "between two hosts: copy through this one (default)"),
    Option("s", None, ""),  # SFTP, which is the default
)

# letter -> keyword of ssh_config(5), and the value that a flag sets; '' takes the argument
_KEYWORDS: Final = {
    "P": ("Port", ""),
    "i": ("IdentityFile", ""),
    "J": ("ProxyJump", ""),
    "c": ("Ciphers", ""),
    "C": ("Compression", "yes"),
    "4": ("AddressFamily", "inet"),
    "6": ("AddressFamily", "inet6"),
    "A": ("ForwardAgent", "yes"),
    "B": ("BatchMode", "yes"),
}

_ABOUT: Final = """\
Copies files between hosts. A source or target is a path, [user@]host:path or
scp://[user@]host[:port]/path. Settings come from ~/.ssh/config, too."""


def main(arguments: list[str], name: str) -> int:
    """Copies; returns 0 if everything was copied."""
    from . import scp_far_end

    if scp_far_end.is_far_end(arguments):
        return scp_far_end.main(arguments)
    command = "culvert scp" if os.path.basename(sys.argv[0]) != "scp" else name
    try:
        options = parse(arguments, SPEC, command)
        if "help" in options:
            print(help_text(f"{command} [options] source ... target", _ABOUT, SPEC), end="")
            return 0
        if len(options.operands) < 2:
            raise UsageError(f"expected a source and a target; try '{command} --help'")
        return 0 if _copy(options, command) else FAILURE
    except CulvertError as error:
        print(f"{command}: {harmless(str(error))}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    except Exception:  # the root of a process
        _log.exception("the copy failed")
    return FAILURE


def _log_level(options: Options) -> str | None:
    """Returns the LogLevel of -v and -q; None without them."""
    if verbose := options.count("v"):
        return f"DEBUG{min(verbose, 3)}"
    return "QUIET" if "q" in options else None


def start_log(options: Options) -> None:
    """Starts the log at the level of -v and -q."""
    from . import client_log

    client_log.set_up(_log_level(options) or "INFO", None)


def ssh_settings(options: Options) -> tuple[str | tuple[str, str], ...]:
    """Returns the settings that the options have for the connection, in their order."""
    settings: list[str | tuple[str, str]] = []
    if (level := _log_level(options)) is not None:
        settings.append(("LogLevel", level))
    for letter, value in options:
        if letter == "o":
            settings.append(value)
        elif letter in _KEYWORDS:
            keyword, fixed = _KEYWORDS[letter]
            settings.append((keyword, fixed or value))
    return tuple(settings)


def rate(options: Options) -> int:
    """Returns the bytes a second of -l; 0 for no limit. Raises UsageError."""
    text = options.value("l")
    if text is None:
        return 0
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= 100_000_000:
        raise UsageError(f"-l {text}: expected kilobits a second")
    return int(text) * 1000 // 8


def _copy(options: Options, command: str) -> bool:
    """Copies; returns whether everything was copied."""
    from ..client.copy import Copy
    from ..files.copying import CopySettings
    from ..files.places import parse_place
    from ..files.progress import Lines, Silent

    start_log(options)
    requests, buffer = _tuning(options)
    settings = CopySettings(
        preserve="p" in options,
        recursive="r" in options,
        temporary_name="temporary-name" in options,
        buffer=buffer,
        requests=requests,
        rate=rate(options),
    )
    *sources, target = map(parse_place, options.operands)
    if "R" in options and target.host and any(source.host for source in sources):
        failed = [source for source in sources if not _direct(options, source, target)]
        return not failed
    is_drawn = sys.stdout.isatty() and "q" not in options
    if "O" in options:
        from .scp_old_protocol import OldCopy

        progress = Lines("", sys.stdout.write) if is_drawn else Silent("")
        return OldCopy(options, partial(host_of, options), settings, progress).run(sources, target)
    progress = Lines(command, sys.stdout.write) if is_drawn else Silent(command)
    connect = partial(_connect, options)
    return Copy(connect, settings, progress).run(sources, target)


def _connect(options: Options, loop: Loop, place: Place) -> SftpSession:
    from ..client.sftp_session import connect, run_server

    if (server := options.value("D")) is not None:
        return run_server(loop, shlex.split(server))
    return connect(loop, host_of(options, place), "q" in options)


def host_of(options: Options, place: Place) -> Host:
    """Returns the host of a place, and how the options say that it is reached."""
    from ..client.sftp_session import Host

    settings: list[str | tuple[str, str]] = []
    if place.user:
        settings.append(("User", place.user))
    if place.port:
        settings.append(("Port", str(place.port)))
    settings += ssh_settings(options)
    program = tuple(shlex.split(options.value("S") or ""))
    return Host(place.host, tuple(settings), options.value("F"), program)


def _direct(options: Options, source: Place, target: Place) -> bool:
    """Has the host of the source copy to that of the target (-R)."""
    import subprocess

    words = ["scp", *(f"-{letter}" for letter in "Cpqrv" if letter in options)]
    if target.port:
        words += ["-P", str(target.port)]
    user = f"{target.user}@" if target.user else ""
    host = f"[{target.host}]" if ":" in target.host else target.host
    words += ["--", source.path or ".", f"{user}{host}:{target.path}"]
    if not source.host:
        raise UsageError("-R: a source of this machine cannot be copied by another host")
    host_with_command = host_of(options, source)._replace(command=shlex.join(words))
    return subprocess.run(host_with_command.words(), check=False).returncode == 0


def _tuning(options: Options) -> tuple[int, int]:
    """The requests in flight and their bytes, of -X; 0 for those that are not given."""
    found = {"nrequests": 0, "buffer": 0}
    limits = {"nrequests": 1024, "buffer": 255 << 10}
    for text in options.values("X"):
        key, _, value = text.partition("=")
        units = {"k": 1 << 10, "m": 1 << 20}
        scale = units.get(value[-1:].lower(), 1)
        digits = value[:-1] if scale > 1 else value
        if key not in found or not digits.isascii() or not digits.isdigit():
            raise UsageError(f"-X {text}: expected nrequests=N or buffer=BYTES")
        number = int(digits) * scale
        if not 0 < number <= limits[key]:
            raise UsageError(f"-X {text}: expected a number up to {limits[key]}")
        found[key] = number
    return found["nrequests"], found["buffer"]
