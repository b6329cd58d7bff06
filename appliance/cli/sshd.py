"""culvert sshd, also dropbear: the server's command line."""

import contextlib
import logging
import os
import stat
import sys
from dataclasses import replace
from typing import Any, Final

from .. import __version__
from ..config.server import Forwarding, ServerConfig, load_server_config
from ..errors import UsageError
from .options import Option, Options, help_text, parse
from .queries import answer as answer_query

SPEC: Final = (
    Option("p", "[address:]port", "listen there (default 22 on every address)", True),
    Option("r", "file", "a host key (default /etc/culvert/ssh_host_ed25519_key)", True),
    Option("R", None, "make the host keys that are missing"),
    Option("F", None, "stay in the foreground"),
    Option("E", None, "log to standard error, not to syslog"),
    Option("i", None, "serve one connection on standard input, as inetd starts it"),
    Option("P", "file", "write the process id there (default /run/culvert.pid)"),
    Option("w", None, "no logins as root"),
    Option("s", None, "no passwords"),
    Option("g", None, "no passwords for root"),
    Option("B", None, "allow accounts with an empty password"),
    Option("t", None, "require a key and a password, both"),
    Option("T", "number", "failed attempts before the connection ends (default 6)"),
    Option("D", "directory", "where authorized_keys stands (default ~/.ssh)"),
    Option("G", "group", "only members of this group may log in"),
    Option("c", "command", "run this whatever the client asks for"),
    Option("b", "file", "show its text before the login"),
    Option("m", None, "no message of the day"),
    Option("e", None, "pass the server's environment on to programs"),
    Option("W", "bytes", "receive window of a channel (default 2097152)"),
    Option("K", "seconds", "ask a silent client whether it is there (default 0: never)"),
    Option("I", "seconds", "end a connection that is idle so long (default 0: never)"),
    Option("j", None, "no local port forwarding"),
    Option("k", None, "no remote port forwarding"),
    Option("a", None, "the client says which hosts may reach the ports that it forwards"),
    Option("permit-tunnel", "mode", "no (default), point-to-point, ethernet or yes"),
    Option("profile", "name", "default, or hardened: post-quantum key exchange only"),
    Option("config", "file", "settings in TOML; options on the command line win"),
    Option("check", None, "only check the settings and the host keys"),
    Option("Q", "what", "list what is supported: cipher, mac, kex, key, compression"),
    Option("v", None, "log more; -vvv names each message as well", True),
    Option("V", None, "show the version"),
)
_USAGE: Final = "culvert sshd [options]"
_ABOUT: Final = "An SSH server. Dropbear's options have Dropbear's meaning."

# option -> field of ServerConfig and its value
_FLAGS: Final[dict[str, tuple[str, Any]]] = {
    "R": ("make_host_keys", True),
    "w": ("permit_root_login", "no"),
    "s": ("password_authentication", False),
    "g": ("permit_root_login", "prohibit-password"),
    "B": ("permit_empty_passwords", True),
    "t": (
        "authentication_methods",
        ("publickey,password", "publickey,keyboard-interactive"),
    ),
    "m": ("print_motd", False),
    "e": ("pass_environment", True),
    "a": ("gateway_ports", "clientspecified"),
}
# option -> what it leaves of allow_tcp_forwarding, by the value before
_LESS: Final[dict[str, dict[Forwarding, Forwarding]]] = {
    "j": {"yes": "remote", "local": "no"},
    "k": {"yes": "local", "remote": "no"},
}
_TEXTS: Final = {
    "P": "pid_file",
    "D": "authorized_keys_directory",
    "c": "force_command",
    "b": "banner",
}
_NUMBERS: Final = {
    "T": ("max_auth_tries", 1, 100),
    "W": ("receive_window", 32 << 10, 64 << 20),
    "K": ("client_alive_interval", 0, 86400),
    "I": ("idle_timeout", 0, 864000),
}
_CHOICES: Final = {
    "permit-tunnel": ("permit_tunnel", ("no", "point-to-point", "ethernet", "yes")),
    "profile": ("profile", ("default", "hardened")),
}


def main(arguments: list[str], name: str) -> int:
    """Runs the server; returns its exit status."""
    command = f"culvert {name}" if name == "sshd" else name
    try:
        options = parse(arguments, SPEC, command)
        if options.operands:
            raise UsageError(f"unexpected argument '{options.operands[0]}'")
        if "help" in options:
            print(help_text(_USAGE, _ABOUT, SPEC))
            return 0
        if "V" in options:
            print(f"Culvert {__version__}")
            return 0
        if (what := options.value("Q")) is not None:
            return answer_query(what)
        return _serve(options)
    except UsageError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 1


def _settings(options: Options, path: str | None) -> ServerConfig:
    """Returns the file's settings, which those of the command line override."""
    config = ServerConfig()
    if path is not None:
        config = load_server_config(path, config)
    changes: dict[str, Any] = {}
    for option, value in options:
        if option in _FLAGS:
            field, fixed = _FLAGS[option]
            if changes.get(field) != "no":  # -w is stricter than -g
                changes[field] = fixed
        elif option in _LESS:
            before = changes.get("allow_tcp_forwarding", config.allow_tcp_forwarding)
            changes["allow_tcp_forwarding"] = _LESS[option].get(before, before)
        elif option in _TEXTS:
            changes[_TEXTS[option]] = value
        elif option in _NUMBERS:
            field, low, high = _NUMBERS[option]
            if not value.isascii() or not value.isdigit() or not low <= int(value) <= high:
                raise UsageError(f"-{option} {value}: expected a number from {low} to {high}")
            changes[field] = int(value)
        elif option in _CHOICES:
            field, choices = _CHOICES[option]
            if value not in choices:
                raise UsageError(f"--{option} {value}: expected one of {', '.join(choices)}")
            changes[field] = value
    if "p" in options:
        changes["listen"] = tuple(options.values("p"))
    if options.count("v") >= 3:
        changes["trace"] = True
    if "G" in options:
        changes["allow_groups"] = tuple(options.values("G"))
    if "r" in options:
        changes["host_keys"] = tuple(options.values("r"))
    elif config.host_keys == ServerConfig().host_keys:
        changes["make_host_keys"] = True
    matches = (replace(each, given=each.given - changes.keys()) for each in config.match)
    return replace(config, **changes, match=tuple(matches))


def _serve(options: Options) -> int:
    from .. import log
    from ..process.daemon import daemonize
    from ..server.listener import Listener, bind

    if (path := options.value("config")) is not None:
        path = os.path.abspath(path)  # a daemon changes its directory, and may read the file again

    def settings() -> ServerConfig:
        return _settings(options, path)

    config = settings()
    to_stderr = "E" in options
    level = logging.DEBUG if "v" in options else logging.INFO
    inetd = "i" in options
    connection = _take_standard_descriptors() if inetd else None
    # errors at the start go to the caller's standard error
    log.set_up("culvert", level, to_stderr)
    if connection is not None:
        try:
            with contextlib.closing(Listener(config, settings)) as listener:
                listener.serve_one(*connection)
        except UsageError as error:  # nobody may see standard error, so the log has it, too
            logging.getLogger(__name__).error("%s", error)
            raise
        return 0
    if "check" in options:
        Listener(config, settings).close()
        return 0
    sockets = bind(config.listen)  # before a host key is made for a server that cannot start
    listener = Listener(config, settings)
    log.tell_if_missing()
    if "F" not in options:
        daemonize()
        log.set_up("culvert", level, to_stderr)
    wrote_pid = _write_pid(config.pid_file)
    try:
        listener.run(sockets)
    except UsageError as error:
        if "F" in options:
            raise
        logging.getLogger(__name__).error("%s", error)  # nobody reads standard error any more
        return 1
    if wrote_pid:
        _remove_pid(config.pid_file)
    return 0


def _take_standard_descriptors() -> tuple[int, int]:
    """Returns the descriptors to read and write the connection of -i; nothing else uses it then.

    Standard error may be the connection, too (inetd): no message must be written there.
    """
    taken = os.dup(0), os.dup(1)
    error = os.fstat(2)
    is_shared = stat.S_ISSOCK(error.st_mode) and os.path.samestat(error, os.fstat(1))
    with open(os.devnull, "r+b", buffering=0) as null:
        for fd in (0, 1, 2) if is_shared else (0, 1):
            os.dup2(null.fileno(), fd)
    return taken


def _write_pid(path: str) -> bool:
    """Writes the pid file, and returns whether that worked; the server starts without it, too."""
    if not path:
        return False
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")
    except OSError as error:
        is_expected = path == ServerConfig().pid_file and os.geteuid()  # of an ordinary user
        level = logging.DEBUG if is_expected else logging.WARNING
        logging.getLogger(__name__).log(level, "pid file %s: %s", path, error.strerror)
        return False
    return True


def _remove_pid(path: str) -> None:
    """Removes the pid file, unless a newer server has written its own pid there."""
    with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:
        if int(file.read()) == os.getpid():
            os.unlink(path)
