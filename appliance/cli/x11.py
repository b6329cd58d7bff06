"""culvert x11: runs a graphical program of a host that is any number of hops away.

It is ``culvert ssh -X`` to the last host, with those before it as -J: the connection is encrypted
from end to end, so that the hosts between see nothing of it and need nothing for X11.
"""

from typing import Final

from ..client.x11_display import NoDisplay, local_display
from ..config import hosts as host_names
from ..errors import UsageError
from . import client_command, client_log, ssh
from .client_command import CommandLine
from .options import Option, Options, help_text, parse

_NAME: Final = "culvert x11"
_USAGE: Final = f"""{_NAME} [options] HOST... -- [COMMAND [ARG...]]
{_NAME} --check [options] HOST..."""
_ABOUT: Final = """
Shows a program of the last host on our display. The way leads through the other hosts, which see
nothing of it. A HOST is [user@]host[:port], or a Host of ~/.ssh/config, whose settings count for
each of them. -i, -l, -p and -o are for the last one."""
_EXAMPLES: Final = f"""
  {_NAME} board -- xterm                  one hop
  {_NAME} gateway pi@board:2222 -- xclock two hops
  {_NAME} board                           a shell there, which can start programs
  {_NAME} --check gateway pi@board:2222   what is in the way, and how to mend it
The command is a line for the shell there, as with ssh. Exit status: the command's, or 255;
of --check: 0 if a program there can be shown, 1 if not.
"""

_OF_SSH: Final = {row.name: row for row in ssh.SPEC}
SPEC: Final = (
    Option("check", None, "go through the hosts and say what is in the way, and how to mend it"),
    Option("X", None, "keep the program off other programs here (default)"),
    *(_OF_SSH[name] for name in "YpliFoftTnCqvE46"),
)
_FOR_ALL_HOSTS: Final = "FqvE"  # as -J has them


def main(arguments: list[str], name: str) -> int:
    """Runs the applet; returns its exit status."""
    return client_command.reported(_NAME, lambda: _run(arguments))


def _run(arguments: list[str]) -> int:
    options, hosts, command = _parsed(arguments)
    if "help" in options:
        print(help_text(_USAGE, _ABOUT, SPEC, _EXAMPLES))
        return 0
    if not hosts:
        raise UsageError(f"no host given; try '{_NAME} --help'")
    if "check" in options:
        if command:
            raise UsageError("--check runs no command: give only hosts")
        return _check(options, hosts)
    if command is None and len(hosts) > 1:
        raise UsageError(f"'--' is missing before the command: {_NAME} HOST... -- [COMMAND]")
    line = _line(options, hosts, command or [])
    settings = ssh.settings_of(line)
    settings.x11_refused = "fail"
    client_log.set_up(settings.log_level, options.value("E"))
    try:
        local_display()  # before the logins
    except NoDisplay as error:
        raise NoDisplay(f"{error}; a graphical desktop sets it for its programs") from error
    return client_command.run(settings, line)


def _parsed(arguments: list[str]) -> tuple[Options, list[str], list[str] | None]:
    """Returns options, hosts and the words of the command, None without ``--``."""
    command = None
    if "--" in arguments:
        place = arguments.index("--")
        arguments, command = arguments[:place], arguments[place + 1 :]
    options = Options([], [])
    hosts: list[str] = []
    rest = arguments
    while True:  # options may also stand between the hosts
        parsed = parse(rest, SPEC, _NAME)
        options.given += parsed.given
        if not parsed.operands:
            return options, hosts, command
        host, *rest = parsed.operands
        try:
            host_names.destination(host)
        except ValueError as error:
            raise UsageError(f"{host}: {error}") from error
        hosts.append(host)


def _line(options: Options, hosts: list[str], command: list[str]) -> CommandLine:
    """Returns the command line of ssh that runs a command on the last host."""
    given = list(options.given)
    if not {"X", "Y"} & dict(given).keys():
        given.append(("X", ""))
    *jumps, last = hosts
    if jumps:
        given.append(("J", ",".join(jumps)))
    user, host, port = host_names.destination(last)
    at = f"{user}@" if user else ""
    destination = f"ssh://{at}[{host}]:{port}" if port else f"{at}{host}"
    return CommandLine(_NAME, Options(given, []), destination, command)


def _check(options: Options, hosts: list[str]) -> int:
    """Says for each host what is in the way; returns 0 if nothing is."""
    from ..client.x11_check import check

    hops = []
    for count in range(1, len(hosts) + 1):
        given = options.given
        if count < len(hosts):
            given = [(name, value) for name, value in given if name in _FOR_ALL_HOSTS]
        hops.append(ssh.settings_of(_line(Options(given, []), hosts[:count], [])))
    client_log.set_up(hops[-1].log_level, options.value("E"))
    return 0 if check(hops, print) else 1
