"""culvert ssh, also ssh: the client's command line, with OpenSSH's options."""

from typing import Final

from ..client.host_options import HostOptions
from ..client.ssh_config import load
from ..client.ssh_keywords import SETTINGS
from ..errors import UsageError
from . import client_command, client_log
from .client_command import COMMON, KEYWORDS, NO_SESSION, CommandLine, Setting
from .options import Option

SPEC: Final = (
    *COMMON,
    Option("J", "[user@]host[:port]", "connect through this host; several with commas"),
    Option("W", "host:port", "connect our input and output to this place, from the server"),
    Option("L", "[address:]port:host:port", "a port here leads to a place of the server's", True),
    Option("R", "[address:]port:host:port", "a port of the server leads to a place of ours", True),
    Option("D", "[address:]port", "a SOCKS port here leads wherever its clients want", True),
    Option("g", None, "let other hosts use the ports of -L and -D"),
    Option("M", None, "let other clients share the connection; -MM: ask before each", True),
    Option("S", "path", "the socket by which clients share a connection, or none"),
    Option("O", "command", "control the master: check, exit, stop, forward or cancel (-L -R -D)"),
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
    Option("X", None, "show programs there on our display, and keep them off other programs here"),
    Option("Y", None, "the same, for programs that are trusted: they may spy and type here"),
    Option("x", None, "show none there (default)"),
    Option("A", None, "let programs there use our agent"),
    Option("a", None, "let nobody use our agent (default)"),
    Option("k", None, ""),
)
# Letters that this version does not have.
_LATER: Final = (
    Option("K", None, ""),
    Option("B", "interface", ""),
    Option("I", "provider", ""),
)

_KEYWORDS: Final = {
    **KEYWORDS,
    "J": ("ProxyJump", ""),
    "D": ("DynamicForward", ""),
    "w": ("TunnelDevice", ""),
    "a": ("ForwardAgent", "no"),
    "S": ("ControlPath", ""),
    "e": ("EscapeChar", ""),
    "4": ("AddressFamily", "inet"),
    "6": ("AddressFamily", "inet6"),
    "C": ("Compression", "yes"),
    "n": ("StdinNull", "yes"),
}


def main(arguments: list[str], name: str) -> int:
    """Runs the client; returns its exit status."""
    command = "culvert ssh" if name == "ssh" else name
    return client_command.main(arguments, command, (*SPEC, *_LATER), _call)


def _call(line: CommandLine) -> int:
    options = line.options
    for each in _LATER:
        if each.name in options:
            raise UsageError(f"{each.spelling} is not supported by this version")
    if (what := options.value("Q")) is not None:
        from .queries import answer

        return answer(what)
    settings = settings_of(line)
    client_log.set_up(settings.log_level, options.value("E"))
    if "G" in options:
        print(_described(settings))
        return 0
    if (what := options.value("O")) is not None:
        return _tell_master(what, settings)
    return client_command.run(settings, line)


def settings_of(line: CommandLine) -> HostOptions:
    """Returns the settings of the command line, then those of the files."""
    host = line.destination
    destination: list[Setting] = []
    if host.startswith("ssh://"):
        host = host.removeprefix("ssh://").rstrip("/")
        before, colon, port = host.rpartition(":")
        if colon and port.isdigit():
            host = before
            destination.append(("Port", port))
        host = host.replace("[", "").replace("]", "")
    user, at, after = host.rpartition("@")
    if at:
        host = after
        destination.append(("User", user))
    given = [*_x11(line), *line.given(destination, _KEYWORDS)]
    if "w" in line.options:
        given.append(("Tunnel", "point-to-point"))
    if masters := line.options.count("M"):
        given.append(("ControlMaster", "ask" if masters > 1 else "yes"))
    place = line.options.value("W")
    settings = load(
        host, given if place is None else [*NO_SESSION, *given], line.options.value("F")
    )
    if settings.forward_x11 and {"X", "Y"} & dict(line.options).keys():
        settings.x11_refused = "warn"
    if place is not None:
        settings.stdio_forward = client_command.host_and_port("-W", place)
    return settings


def _x11(line: CommandLine) -> list[Setting]:
    """Returns the settings of -X, -Y and -x, of which the last one counts."""
    letters = [name for name, _ in line.options if name in ("X", "Y", "x")]
    if not letters:
        return []
    trusted = [("ForwardX11Trusted", "yes")] if letters[-1] == "Y" else []
    return [("ForwardX11", "no" if letters[-1] == "x" else "yes"), *trusted]


_DIRECTIONS: Final = {"localforward": "L", "remoteforward": "R", "dynamicforward": "D"}


def _described(settings: HostOptions) -> str:
    """Returns a line for each setting (-G), in the style of ``ssh -G``."""
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
    """Sends the command of -O to the master; returns the exit status."""
    from ..client.control_client import COMMANDS, ControlClient

    if command not in COMMANDS:
        raise UsageError(f"-O {command}: expected one of {', '.join(COMMANDS)}")
    if settings.control_path is None:
        raise UsageError("-O needs a ControlPath; give one with -S")
    return ControlClient(settings).command(command)
