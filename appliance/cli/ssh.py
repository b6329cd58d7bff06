"""culvert ssh, also ssh and dbclient: the client's command line.

The login runs without an event loop; the services are imported once the connection is
up, and only those that the command uses.
"""

import contextlib
import logging
import os
import sys
from typing import Final

from .. import __version__
from ..client.host_options import HostOptions
from ..client.ssh_config import Person, load
from ..client.ssh_keywords import SETTINGS
from ..errors import CulvertError, UsageError
from ..log import harmless
from . import client_log
from .options import Option, Options, help_text, parse

FAILURE: Final = 255  # ssh(1), EXIT STATUS

_COMMON: Final = (
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
SSH_SPEC: Final = (
    *_COMMON,
    Option("J", "[user@]host[:port]", "connect through this host; several with commas"),
    Option("W", "host:port", "connect our input and output to this place, from the server"),
    Option("L", "[address:]port:host:port", "a port here leads to a place of the server's", True),
    Option("R", "[address:]port:host:port", "a port of the server leads to a place of ours", True),
    Option("D", "[address:]port", "a SOCKS port here leads wherever its clients want", True),
    Option("g", None, "let other hosts use the ports of -L and -D"),
    Option("M", None, "let other clients share the connection; -MM: ask before each", True),
    Option("S", "path", "the socket by which clients share a connection, or none"),
    Option("O", "command", "tell who shares: check, exit, stop, forward or cancel (-L -R -D)"),
    Option("w", "local[:remote]", "a VPN tunnel between tun devices; numbers, or 'any'"),
    Option("4", None, "IPv4 only"),
    Option("6", None, "IPv6 only"),
    Option("b", "address", "connect from this address of ours"),
    Option("C", None, "compress"),
    Option("E", "file", "append messages to this file"),
    Option("e", "character", "escape character of a terminal session (default ~), or none"),
    Option("F", "file", "settings from this file, and no other"),
    Option("G", None, "print the settings for the host and exit"),
    Option("n", None, "read nothing from standard input"),
    Option("Q", "what", "list what is supported: cipher, mac, kex, key, compression"),
    Option("x", None, ""),
    Option("A", None, "let programs there use our agent"),
    Option("a", None, "let nobody use our agent (default)"),
    Option("k", None, ""),
)
DBCLIENT_SPEC: Final = (
    *_COMMON,
    Option("y", None, "accept an unknown host key; -yy any host key", True),
    Option("K", "seconds", "ask a silent server whether it is there"),
    Option("L", "[address:]port:host:port", "a port here leads to a place of the server's", True),
    Option("R", "[address:]port:host:port", "a port of the server leads to a place of ours", True),
    Option("g", None, "let other hosts use the ports of -L"),
    Option("J", "command", "connect by a command's input and output: dbclient's ProxyCommand"),
    Option("A", None, "let programs there use our agent"),
    Option("I", "seconds", "end after so long without traffic"),
    Option("z", None, ""),  # no traffic classes: there are none
    Option("B", "host:port", "connect our input and output to this place, from the server"),
    Option("b", "address", "connect from this address of ours"),
    Option("W", "bytes", "receive window of a channel"),
)
_LATER: Final = frozenset("XYKBI")  # ssh's letters that this version does not have

# letter -> keyword of ssh_config(5); a flag has its value here
_KEYWORDS: Final = {
    "p": ("Port", ""),
    "l": ("User", ""),
    "i": ("IdentityFile", ""),
    "c": ("Ciphers", ""),
    "m": ("MACs", ""),
    "b": ("BindAddress", ""),
    "J": ("ProxyJump", ""),
    "L": ("LocalForward", ""),
    "R": ("RemoteForward", ""),
    "D": ("DynamicForward", ""),
    "A": ("ForwardAgent", "yes"),
    "a": ("ForwardAgent", "no"),
    "S": ("ControlPath", ""),
    "g": ("GatewayPorts", "yes"),
    "e": ("EscapeChar", ""),
    "K": ("ServerAliveInterval", ""),
    "4": ("AddressFamily", "inet"),
    "6": ("AddressFamily", "inet6"),
    "C": ("Compression", "yes"),
    "N": ("SessionType", "none"),
    "n": ("StdinNull", "yes"),
    "f": ("ForkAfterAuthentication", "yes"),
    "T": ("RequestTTY", "no"),
}

_log = logging.getLogger(__name__)


class _CommandLine:
    """Options, destination and command of one call."""

    def __init__(self, arguments: list[str], spec: tuple[Option, ...], command: str) -> None:
        self.options = Options([], [])
        rest = list(arguments)
        words: list[str] = []
        while True:  # options may also stand between the host and the command
            try:
                parsed = parse(rest, spec, command)
            except UsageError as error:
                raise _named_later(error, spec) from error
            self.options.given += parsed.given
            rest = parsed.operands
            if words or not rest:
                break
            words, rest = rest[:1], rest[1:]
        self.destination = words[0] if words else ""
        self.command = " ".join(rest)


def _named_later(error: UsageError, spec: tuple[Option, ...]) -> UsageError:
    text = str(error)
    for letter in _LATER:
        if text.startswith(f"unknown option -{letter};") and spec is SSH_SPEC:
            return UsageError(f"-{letter} is not supported by this version")
    return error


def main(arguments: list[str], name: str) -> int:
    """Run the client; returns its exit status."""
    dropbear = name == "dbclient"
    command = "culvert ssh" if name == "ssh" else name
    spec = DBCLIENT_SPEC if dropbear else SSH_SPEC
    try:
        line = _CommandLine(arguments, spec, command)
        options = line.options
        if "help" in options:
            print(
                help_text(
                    f"{command} [options] [user@]host [command]",
                    "An SSH client. Settings come from ~/.ssh/config, too.",
                    spec,
                )
            )
            return 0
        if "V" in options:
            print(f"Culvert {__version__}", file=sys.stderr)
            return 0
        if (what := options.value("Q")) is not None and not dropbear:
            from .queries import answer

            return answer(what)
        if not line.destination:
            raise UsageError(f"no host given; try '{command} --help'")
        settings = _settings(line, dropbear)
        client_log.set_up(settings.log_level, options.value("E"))
        if "G" in options:
            print(_described(settings))
            return 0
        if (what := options.value("O")) is not None:
            return _tell_master(what, settings)
        window = _window(options.value("W")) if dropbear else None
        return _run(settings, line, window)
    except UsageError as error:
        print(f"{command}: {error}", file=sys.stderr)
    except CulvertError as error:
        print(f"{command}: {harmless(str(error))}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    except Exception:  # the root of a process
        _log.exception("the client failed")
    return FAILURE


def _settings(line: _CommandLine, dropbear: bool) -> HostOptions:
    """The command line's settings, then those of the files."""
    given: list[str | tuple[str, str]] = []
    if verbose := line.options.count("v"):
        given.append(("LogLevel", f"DEBUG{min(verbose, 3)}"))
    if "q" in line.options:
        given.append(("LogLevel", "QUIET"))
    host = line.destination
    hops = ""
    if dropbear:
        hops, _, last = host.rpartition(",")
        host, port = _dropbear_hop(last)
        given += [("Port", port)] if port else []
        given += [("ProxyJump", _as_jumps(hops))] if hops else []
    if host.startswith("ssh://"):
        host = host.removeprefix("ssh://").rstrip("/")
        before, colon, port = host.rpartition(":")
        if colon and port.isdigit():
            host = before
            given.append(("Port", port))
        host = host.replace("[", "").replace("]", "")
    user, at, after = host.rpartition("@")
    if at:
        host = after
        given.append(("User", user))
    for option, value in line.options:
        if option == "o":
            given.append(value)
        elif option == "w":
            given += [("TunnelDevice", value)]
        elif option == "J" and dropbear:
            given.append(("ProxyCommand", value.replace("%", "%%")))
        elif option in _KEYWORDS:
            keyword, fixed = _KEYWORDS[option]
            given.append((keyword, fixed or value))
    if "w" in line.options:
        given.append(("Tunnel", "point-to-point"))
    if masters := line.options.count("M"):
        given.append(("ControlMaster", "ask" if masters > 1 else "yes"))
    terminals = line.options.count("t")
    if terminals:
        given.append(("RequestTTY", "force" if terminals > 1 else "yes"))
    if "s" in line.options:
        given.append(("SessionType", "subsystem"))
    accepts = line.options.count("y")
    if dropbear and accepts:
        given.append(("StrictHostKeyChecking", "accept-new" if accepts == 1 else "no"))
        if accepts > 1:
            given.append(("UserKnownHostsFile", os.devnull))
    person = _dropbear_person() if dropbear else None
    if person is not None and "i" not in line.options:
        key = os.path.join(person.home, ".ssh", "id_dropbear")
        if os.path.exists(key):
            given.append(("IdentityFile", key))
    place = line.options.value("B" if dropbear else "W")
    if place is not None:  # instead of a session
        given = [("SessionType", "none"), ("RequestTTY", "no"), *given]
    settings = load(host, given, line.options.value("F"), person)
    if dropbear and (idle := line.options.value("I")) is not None:
        settings.idle_timeout = _seconds("-I", idle)
    if place is not None:
        settings.stdio_forward = _host_and_port(place)
    if hops:  # Dropbear has one set of options for all hosts
        there = f"[{settings.host_name}]:{settings.port}"
        settings.jump_command = ("dbclient", *_same_everywhere(line.options), "-B", there, hops)
    return settings


def _seconds(option: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 10 * 86400):
        raise UsageError(f"{option} {text}: expected a number from 0 to {10 * 86400}")
    return int(text)


def _dropbear_hop(text: str) -> tuple[str, str]:
    """``[user@]host`` and the port of one of dbclient's hosts: behind '^', or '/' as of old."""
    user, at, place = text.rpartition("@")
    host, _, port = place.replace("^", "/").partition("/")
    return user + at + host, port


def _as_jumps(hops: str) -> str:
    """Dropbear's list of hosts, as -J of ssh writes it."""
    jumps = []
    for host, port in map(_dropbear_hop, hops.split(",")):
        user, at, name = host.rpartition("@")
        jumps.append(f"{user}{at}[{name}]:{port}" if port else f"{user}{at}{name}")
    return ",".join(jumps)


def _same_everywhere(options: Options) -> list[str]:
    """What holds for every hop."""
    keys = [word for key in options.values("i") for word in ("-i", key)]
    return keys + ["-y"] * options.count("y")


def _host_and_port(text: str) -> tuple[str, int]:
    from ..config import hosts

    with contextlib.suppress(ValueError):
        place = hosts.destination(text)
        if place.port and not place.user:
            return place.host, place.port
    raise UsageError(f"-W {text}: expected host:port, with an IPv6 address in brackets")


def _dropbear_person() -> Person:
    """dbclient looks for its files in $HOME, where ssh takes the account's home."""
    person = Person.current()
    return person._replace(home=os.environ.get("HOME") or person.home)


_DIRECTIONS: Final = {"localforward": "L", "remoteforward": "R", "dynamicforward": "D"}


def _described(settings: HostOptions) -> str:
    """-G: a line for each setting, in the style of ``ssh -G``."""
    rows = [f"host {settings.host}"]
    for name, setting in SETTINGS.items():
        value = getattr(settings, setting.field)
        if name in _DIRECTIONS:
            rows += [f"{name} {each}" for each in value if each.direction == _DIRECTIONS[name]]
            continue
        if value is None or value == ():
            continue
        if isinstance(value, bool):
            value = "yes" if value else "no"
        elif name == "proxyjump":
            value = ",".join(value)
        elif type(value) is tuple:
            value = " ".join(
                "=".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in value
            )
        rows.append(f"{name} {value}")
    return "\n".join(rows)


def _tell_master(command: str, settings: HostOptions) -> int:
    """-O: the exit status."""
    from ..client.control_client import COMMANDS, ControlClient

    if command not in COMMANDS:
        raise UsageError(f"-O {command}: expected one of {', '.join(COMMANDS)}")
    if settings.control_path is None:
        raise UsageError("-O needs a ControlPath; give one with -S")
    return ControlClient(settings).command(command)


def _window(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdigit() or not 32 << 10 <= int(text) <= 64 << 20:
        raise UsageError(f"-W {text}: expected a number from {32 << 10} to {64 << 20}")
    return int(text)


def _run(options: HostOptions, line: _CommandLine, window: int | None) -> int:
    """Do what was asked: over a connection that is there, or over one of our own."""
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
