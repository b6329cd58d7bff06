"""dbclient, Dropbear's client: its command line."""

import os
from typing import Final

from ..client.host_options import HostOptions
from ..client.ssh_config import Person, load
from ..errors import UsageError
from . import client_command, client_log
from .client_command import COMMON, KEYWORDS, NO_SESSION, CommandLine, Setting
from .options import Option, Options

SPEC: Final = (
    *COMMON,
    Option("y", None, "accept an unknown host key; -yy any host key", True),
    Option("K", "seconds", "ask a silent server whether it is there"),
    Option("L", "[address:]port:host:port", "a port here leads to a place of the server's", True),
    Option("R", "[address:]port:host:port", "a port of the server leads to a place of ours", True),
    Option("g", None, "let other hosts use the ports of -L"),
    Option("J", "command", "connect by a command's input and output: dbclient's ProxyCommand"),
    Option("A", None, "let programs there use our agent"),
    Option("I", "seconds", "end after so long without traffic"),
    Option("z", None, ""),  # disables traffic classes, which Culvert does not set
    Option("B", "host:port", "connect our input and output to this place, from the server"),
    Option("b", "address", "connect from this address of ours"),
    Option("W", "bytes", "receive window of a channel"),
)

_KEYWORDS: Final = {**KEYWORDS, "K": ("ServerAliveInterval", "")}


def main(arguments: list[str], name: str) -> int:
    """Runs the client; returns its exit status."""
    return client_command.main(arguments, name, SPEC, _call)


def _call(line: CommandLine) -> int:
    settings = _settings(line)
    client_log.set_up(settings.log_level, None)
    return client_command.run(settings, line, _window(line.options.value("W")))


def _settings(line: CommandLine) -> HostOptions:
    """Returns the settings of the command line, then those of the files."""
    hops, _, last = line.destination.rpartition(",")
    host, port = _hop(last)
    user, at, after = host.rpartition("@")
    if at:
        host = after
    destination: list[Setting] = []
    destination += [("Port", port)] if port else []
    destination += [("ProxyJump", _as_jumps(hops))] if hops else []
    destination += [("User", user)] if at else []
    given = line.given(destination, _KEYWORDS)
    given += [("ProxyCommand", each.replace("%", "%%")) for each in line.options.values("J")]
    if accepts := line.options.count("y"):
        given.append(("StrictHostKeyChecking", "accept-new" if accepts == 1 else "no"))
        if accepts > 1:
            given.append(("UserKnownHostsFile", os.devnull))
    person = _person()
    if "i" not in line.options:
        key = os.path.join(person.home, ".ssh", "id_dropbear")
        if os.path.exists(key):
            given.append(("IdentityFile", key))
    place = line.options.value("B")
    if place is not None:
        given = [*NO_SESSION, *given]
    settings = load(host, given, None, person)
    if (idle := line.options.value("I")) is not None:
        settings.idle_timeout = _seconds("-I", idle)
    if place is not None:
        settings.stdio_forward = client_command.host_and_port("-B", place)
    if hops:  # Dropbear has one set of options for all hosts
        there = f"[{settings.host_name}]:{settings.port}"
        settings.jump_command = ("dbclient", *_same_everywhere(line.options), "-B", there, hops)
    return settings


def _seconds(option: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 10 * 86400):
        raise UsageError(f"{option} {text}: expected a number from 0 to {10 * 86400}")
    return int(text)


def _hop(text: str) -> tuple[str, str]:
    """Returns ``[user@]host`` and the port of a hop; '^' is before the port, once '/' was."""
    user, at, place = text.rpartition("@")
    host, _, port = place.replace("^", "/").partition("/")
    return user + at + host, port


def _as_jumps(hops: str) -> str:
    """Returns Dropbear's list of hosts in the form of ssh's -J."""
    jumps = []
    for host, port in map(_hop, hops.split(",")):
        user, at, name = host.rpartition("@")
        jumps.append(f"{user}{at}[{name}]:{port}" if port else f"{user}{at}{name}")
    return ",".join(jumps)


def _same_everywhere(options: Options) -> list[str]:
    """Returns the options that apply to every hop."""
    keys = [word for key in options.values("i") for word in ("-i", key)]
    return keys + ["-y"] * options.count("y")


def _person() -> Person:
    """Returns the local user, with the home of $HOME as dbclient does; ssh uses the account's."""
    person = Person.current()
    return person._replace(home=os.environ.get("HOME") or person.home)


def _window(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdigit() or not 32 << 10 <= int(text) <= 64 << 20:
        raise UsageError(f"-W {text}: expected a number from {32 << 10} to {64 << 20}")
    return int(text)
