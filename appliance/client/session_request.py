"""The session that a command line asks for: its program, terminal and environment."""

import fnmatch
import os

from ..services.session_client import Wanted
from .host_options import HostOptions
from .raw_terminal import pty_request


def session_request(options: HostOptions, command: str) -> Wanted:
    """Returns the session to request; ``command`` is a command line or a subsystem's name."""
    kind = "shell"
    if options.session_type == "subsystem":
        kind = "subsystem"
    elif command:
        kind = "exec"
    terminal = options.request_tty == "force" or (
        os.isatty(0)
        and (
            options.request_tty == "yes"
            or (options.request_tty == "auto" and kind == "shell" and not options.stdin_null)
        )
    )
    return Wanted(
        kind,
        os.fsencode(command),
        _environment_to_send(options),
        pty_request() if terminal else None,
        not options.stdin_null and not options.fork_after_authentication,
        (options.escape_char or "").encode("latin-1"),
        bool(options.forward_agent),
        ("trusted" if options.forward_x11_trusted else "untrusted")
        if options.forward_x11
        else "no",
        options.x11_refused,
    )


def _environment_to_send(options: HostOptions) -> tuple[tuple[bytes, bytes], ...]:
    """Returns the variables of SendEnv and SetEnv; the values of SetEnv win."""
    sent = {
        name: value
        for name, value in os.environ.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in options.send_env)
    }
    sent.update(dict(options.set_env))
    return tuple((os.fsencode(name), os.fsencode(value)) for name, value in sent.items())
