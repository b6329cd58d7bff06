"""Workers that run an attacker's code under the real sandbox, against the real monitor.

What protects somebody is counted in the monitor, whatever the worker says.
"""

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest
from nacl.pwhash import argon2id

from tests.netns import wait_until
from tests.peers import Keyring, environment
from tests.processes import family
from tests.unit.process.test_seccomp import CRASH, ROOT, TAKEN_OVER

# What the attacker brings along: the user's name, and a key that lets in where that is meant.
PREPARED = """
import sys
from appliance.crypto.key_files import load_private_key
from appliance.server.requests import *
from appliance.ssh.auth_server import Offer, signed_data
user, key = sys.argv[4], load_private_key(open(sys.argv[5], "rb").read())
offer = Offer(user, "ssh-ed25519", key.public.blob, b"")
signature = key.sign("ssh-ed25519", signed_data(bytes(32), offer))
def outcome(sock, request):
    return OutcomeReply.decode(ask(sock, request)[0])
def guess(sock, password):
    return outcome(sock, UsePassword(user, "password", password))
def log_in(sock):
    ask(sock, Sign("ssh-ed25519", bytes(32)))
    return outcome(sock, UseKey(user, "ssh-ed25519", key.public.blob, b"", signature)).success
def refusal(sock, request, *descriptors):
    try:
        return "granted: %r" % (ask(sock, request, *descriptors),)
    except Denied as error:
        return str(error)
"""


@pytest.fixture
def take_over(
    host_keys: Keyring, user_keys: Keyring, authorized_keys: Path, tmp_path: Path
) -> "TakeOver":
    return TakeOver(host_keys.key(), user_keys.key(), authorized_keys, tmp_path)


class TakeOver:
    """Runs a worker's code; returns what it says, then the monitor's exit status."""

    def __init__(self, host_key: Path, key: Path, authorized_keys: Path, folder: Path) -> None:
        self._keys = host_key, key
        self._lines = authorized_keys
        self.folder = folder
        self.log = ""

    def __call__(self, code: str, **settings: object) -> str:
        user = pwd.getpwuid(os.geteuid()).pw_name
        if not os.geteuid():
            settings |= {"authorized_keys_directory": str(self._lines.parent)}
        host_key, key = map(str, self._keys)
        words = [sys.executable, "-c", PREPARED + TAKEN_OVER, host_key, code]
        done = subprocess.run(
            [*words, json.dumps(settings), user, key],
            cwd=ROOT, env=environment(self.folder), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        self.log = done.stderr
        return done.stdout


def test_a_key_lets_such_a_worker_in(take_over: TakeOver) -> None:
    """So that what follows is refused for no other reason."""
    assert take_over("os.write(1, b'in ' if log_in(to_monitor) else b'out ')") == "in done0 "


def passwords(folder: Path) -> dict[str, str]:
    """A setting by which 'right' is the password."""
    stored = argon2id.str(b"right", argon2id.OPSLIMIT_MIN, argon2id.MEMLIMIT_MIN)
    path = folder / "passwords"
    path.write_text(f"{pwd.getpwuid(os.geteuid()).pw_name}:{stored.decode()}\n")
    return {"password_file": str(path)}


@pytest.mark.parametrize(("tries", "said"), [(5, f"in {0} "), (6, CRASH), (95, CRASH)])
def test_a_worker_has_no_more_passwords_to_guess_than_max_auth_tries(
    take_over: TakeOver, tries: int, said: str
) -> None:
    code = (
        f"for _ in range({tries}): guess(to_monitor, b'wrong')\n"
        "if guess(to_monitor, b'right').success: os.write(1, b'in '); os._exit(0)"
    )
    assert take_over(code, **passwords(take_over.folder)) == said
    if said == CRASH:  # which its source pays for
        assert "it goes on after the last attempt to log in" in take_over.log


@pytest.mark.parametrize("request_", ["Spawn('shell', b'', (), 0)", "OpenPty()"])
def test_an_account_that_may_only_forward_gets_no_program(
    take_over: TakeOver, request_: str
) -> None:
    code = f"log_in(to_monitor); os.write(1, refusal(to_monitor, {request_}, 1, 4).encode())"
    assert take_over(code, max_sessions=0) == "too many sessionsdone0 "


def test_a_worker_runs_no_more_programs_than_max_sessions(take_over: TakeOver) -> None:
    code = (
        "log_in(to_monitor)\n"
        "for _ in range(2): ask(to_monitor, Spawn('exec', b'exec cat', (), 0), 4)\n"
        "os.write(1, refusal(to_monitor, Spawn('exec', b'', (), 0), 4).encode())"
    )
    before = set(family(os.getpid()))
    assert take_over(code, max_sessions=2) == "too many sessionsdone0 "
    # The programs see the end of their input once their shell has read its own files, which wait
    # for each other where they change something (pyenv's give up after 60 s).
    assert wait_until(lambda: set(family(os.getpid())) <= before, 150)


@pytest.mark.parametrize(
    ("request_", "settings", "said"),
    [
        ("OpenPty()", {"permit_tty": False}, "this user may not have a terminal"),
        ("Listen('', 0)", {"allow_tcp_forwarding": "no"}, "port forwarding is not allowed"),
        ("Connect('127.0.0.1', 22)", {"disable_forwarding": True}, "port forwarding is not"),
        ("ConnectLocal(b'/s')", {"disable_forwarding": True}, "forwarding of sockets is not"),
        ("ListenLocal(b'/s')", {"disable_forwarding": True}, "forwarding of sockets is not"),
        ("ListenAgent()", {"allow_agent_forwarding": False}, "agent forwarding is not allowed"),
        ("OpenTunnel(1, 0)", {}, "this server does not permit such a tunnel"),
        ("OpenTunnel(1, 0)", {"disable_forwarding": True}, "this server does not forward"),
        ("Spawn('exec', b'', (b'LD_PRELOAD', b'x'), 0)", {}, "such a variable is not accepted"),
        ("Spawn('exec', b'', (), 1)", {}, "no terminal"),
        ("SendSignal(1, 'KILL')", {}, "no such process"),
        ("ListenX11(b'a', b'00', 0)", {"x11_forwarding": False}, "X11 forwarding is not allowed"),
        ("ListenX11(b'a', b'00', 0)", {"max_sessions": 0}, "too many displays"),
        ("ListenX11(b'a', b'00\\nadd', 0)", {}, "the X11 authentication cookie is malformed"),
        ("Spawn('exec', b'', (), 0, 1)", {}, "no such display"),
        ("CloseX11(1)", {}, "no such display"),
    ],
)
def test_what_the_settings_forbid_is_refused_by_the_monitor(
    take_over: TakeOver, request_: str, settings: dict[str, object], said: str
) -> None:
    code = f"log_in(to_monitor); os.write(1, refusal(to_monitor, {request_}, 1, 2, 4).encode())"
    output = take_over(code, **settings)
    assert output.startswith(said)
    assert output.endswith("done0 ")
