"""What the command lines of ssh and dbclient have in common.

The login runs without an event loop; the services are imported once the connection is
up, and only those that the command uses.
"""

import contextlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Self

from .. import __version__
from ..client.host_options import HostOptions
from ..errors import CulvertError, UsageError
from ..log import harmless
from .options import Option, Options, help_text, parse

_log = logging.getLogger(__name__)

Setting = tuple[str, str]  # a keyword of ssh_config(5) and its value

FAILURE: Final = 255  # ssh(1), EXIT STATUS

COMMON: Final = (
    Option("p", "port", "the server's port (default 22)"),
    Option("l", "user", "log in as this user"),
    Option("i", "file", "a private key", True),
    Option("t", None, "have a terminal for a command; -tt even if ours is none", True),
    Option("T", None, "have no terminal"),
    Option("N", None, "run no command: for tunnels"),
    Option("f", None, "go to the background after the login"),
    Option("o", "key=value", "a setting of ssh_config(5)", True),
    Option("c", "ciphers", "ciphers to offer, most wanted first"),
    Option("m", "macs", "MACs to offer, most wanted first"),
    Option("s", None, "the command is the name of a subsystem"),
    Option("q", None, "say nothing but fatal errors"),
    Option("v", None, "tell what happens; -vvv names each message as well", True),
    Option("V", None, "show the version"),
)
# Settings of -W and -B, which connect input and output to a place and not to a session.
NO_SESSION: Final[tuple[Setting, ...]] = (("SessionType", "none"), ("RequestTTY", "no"))

# letter -> keyword of ssh_config(5), and the value that a flag sets; '' takes the argument
KEYWORDS: Final = {
    "p": ("Port", ""),
    "l": ("User", ""),
    "i": ("IdentityFile", ""),
    "c": ("Ciphers", ""),
    "m": ("MACs", ""),
    "b": ("BindAddress", ""),
    "L": ("LocalForward", ""),
    "R": ("RemoteForward", ""),
    "A": ("ForwardAgent", "yes"),
    "g": ("GatewayPorts", "yes"),
    "N": ("SessionType", "none"),
    "f": ("ForkAfterAuthentication", "yes"),
    "T": ("RequestTTY", "no"),
}


class CommandLine:
    """Options, destination and command of one call."""

    def __init__(
        self, program: str, options: Options, destination: str, command: Sequence[str]
    ) -> None:
        self._program = program
        self.options = options
        self._destination = destination
        self.command = " ".join(command)

    @classmethod
    def parsed(cls, arguments: list[str], spec: tuple[Option, ...], program: str) -> Self:
        """Parses the arguments of ``program``; raises UsageError."""
        options = Options([], [])
        rest = list(arguments)
        words: list[str] = []
        while True:  # options may also stand between the host and the command
            parsed = parse(rest, spec, program)
            options.given += parsed.given
            rest = parsed.operands
            if words or not rest:
                break
            words, rest = rest[:1], rest[1:]
        return cls(program, options, words[0] if words else "", rest)

    @property
    def destination(self) -> str:
        """The host as it was typed; raises UsageError without one."""
        if not self._destination:
            raise UsageError(f"no host given; try '{self._program} --help'")
        return self._destination

    def given(
        self, destination: Sequence[Setting], keywords: Mapping[str, tuple[str, str]]
    ) -> list[str | Setting]:
        """Returns settings for ssh_config.load: those of the ``destination``, then of the options.

        ``keywords`` maps the program's letters to keywords, as KEYWORDS does.
        """
        given: list[str | Setting] = []
        if verbose := self.options.count("v"):
            given.append(("LogLevel", f"DEBUG{min(verbose, 3)}"))
        if "q" in self.options:
            given.append(("LogLevel", "QUIET"))
        given += destination
        for option, value in self.options:
            if option == "o":
                given.append(value)
            elif option in keywords:
                keyword, fixed = keywords[option]
                given.append((keyword, fixed or value))
        terminals = self.options.count("t")
        if terminals:
            given.append(("RequestTTY", "force" if terminals > 1 else "yes"))
        if "s" in self.options:
            given.append(("SessionType", "subsystem"))
        return given


def main(
    arguments: list[str],
    command: str,
    spec: tuple[Option, ...],
    call: Callable[[CommandLine], int],
) -> int:
    """Parses the command line and runs ``call`` with it; returns the exit status."""

    def run() -> int:
        line = CommandLine.parsed(arguments, spec, command)
        if "help" in line.options:
            usage = f"{command} [options] [user@]host [command]"
            print(help_text(usage, "An SSH client. Settings come from ~/.ssh/config, too.", spec))
            return 0
        if "V" in line.options:
            print(f"Culvert {__version__}", file=sys.stderr)
            return 0
        return call(line)

    return reported(command, run)


def reported(command: str, run: Callable[[], int]) -> int:
    """Runs a client and returns its exit status; an error is told in a line, and is FAILURE."""
    try:
        return run()
    except UsageError as error:
        print(f"{command}: {error}", file=sys.stderr)
    except CulvertError as error:
        print(f"{command}: {harmless(str(error))}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    except Exception:  # the root of a process
        _log.exception("the client failed")
    return FAILURE


def host_and_port(option: str, text: str) -> tuple[str, int]:
    """Returns the host and port of -W or -B; raises UsageError."""
    from ..config import hosts

    with contextlib.suppress(ValueError):
        place = hosts.destination(text)
        if place.port and not place.user:
            return place.host, place.port
    raise UsageError(f"{option} {text}: expected host:port, with an IPv6 address in brackets")


def run(options: HostOptions, line: CommandLine, window: int | None = None) -> int:
    """Runs the command, over a shared connection or a new one; returns the exit status."""
    command = line.command or options.remote_command or ""
    quiet = "q" in line.options
    if options.session_type == "subsystem" and not command:
        raise UsageError("-s needs the name of a subsystem")
    if options.fork_after_authentication and not (command or options.session_type == "none"):
        raise UsageError("-f needs a command to run, or -N")
    if options.control_path is not None and options.control_master not in ("yes", "ask"):
        from ..client.control_client import ControlClient, NoMaster

        try:
            client = ControlClient(options)
        except NoMaster as error:
            _log.debug("%s", error)
        else:
            status = client.run(command, quiet)
            _log.debug("Exit status %d", status)
            return status
    from ..client.client import Client

    status = Client(options, command, quiet).run(window)
    _log.debug("Exit status %d", status)
    return status
