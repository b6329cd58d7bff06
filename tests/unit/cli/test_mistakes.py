"""Mistakes of the person at the keyboard: one line that says what and what to do, and a status."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from appliance.server import host_keys
from tests.peers import CULVERT, environment, find_program, free_port

# Another user may not be able to read the interpreter's files, so all is imported before.
AS_NOBODY = """
import os, sys, encodings.idna, logging.handlers
import appliance.cli.ssh, appliance.cli.sshd, appliance.client.tunnel
import appliance.server.listener, appliance.services.tunnel.device, cattrs, tomllib, difflib
os.setgroups([]); os.setgid(65534); os.setuid(65534)
module = getattr(appliance.cli, sys.argv[1])
raise SystemExit(module.main(sys.argv[2:], sys.argv[1]))
"""


def run(tmp_path: Path, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        start_new_session=True,
        cwd=tmp_path,
    )


def culvert(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run(tmp_path, [*CULVERT, *words])


def as_nobody(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run(tmp_path, [sys.executable, "-c", AS_NOBODY, *words])


def assert_told(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """One line on standard error with all of the words, and this status."""
    assert done.returncode == status, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0]
    assert done.stdout == ""


@pytest.fixture
def key(tmp_path: Path) -> str:
    path = tmp_path / "host_key"
    host_keys.load([str(path)], True)
    return str(path)


# The client


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-@", "host"], "unknown option -@"),
        (["--no-such", "host"], "unknown option --no-such"),
        (["host", "-@", "true"], "unknown option -@"),
        (["-L", "1:a", "host"], "expected [address:]port:host:port"),
        (["-D", "a", "host"], "expected [address:]port"),
        (["-R", "1:a:0", "host"], "expected [address:]port:host:port"),
        (["-w", "x", "host"], "x"),
        (["-w", "0:1:2", "host"], "0:1:2"),
        (["-w", "-1", "host"], "-1"),
        (["-w", "99999999999", "host"], "99999999999"),
        (["-oTunnel=perhaps", "host"], "perhaps"),
        (["-f", "host"], "-f needs a command"),
        (["-s", "host"], "-s needs the name of a subsystem"),
        (["-Q", "nothing"], "expected one of"),
        (["-E", "/nonexistent/log", "host"], "/nonexistent/log"),
        (["-p", "0", "host"], "0"),
        (["-J", "a,,b", "host"], "expected [user@]host[:port]"),
        (["-J", "a;b", "host"], "expected [user@]host[:port]"),
        (["-J", "host", "host"], "ProxyJump: host is the host itself"),
        (["-W", "a", "host"], "-W a: expected host:port, with an IPv6 address in brackets"),
        (["-W", "::1:22", "host"], "-W ::1:22: expected host:port"),
        (["-W", "u@a:22", "host"], "-W u@a:22: expected host:port"),
        (["-oProxy=http://u:secret@a", "host"], "Proxy: expected http://[user:password@]host:p"),
        ([], "no host given"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_option_of_the_client(tmp_path: Path, words: list[str], told: str) -> None:
    assert_told(culvert(tmp_path, "ssh", "-F", "none", *words), 255, told)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "no host given; try 'culvert x11 --help'"),
        (["--", "xterm"], "no host given"),
        (["a", "b", "xterm"], "'--' is missing before the command: culvert x11 HOST... --"),
        (["a;b", "--", "xterm"], "a;b: expected [user@]host[:port]"),
        (["a,b", "--", "xterm"], "a,b: expected [user@]host[:port]"),
        (["a:0", "--", "xterm"], "a:0: expected [user@]host[:port]"),
        (["--chekc", "a"], "unknown option --chekc; try 'culvert x11 --help'"),
        (["-x", "a"], "unknown option -x"),
        (["--check", "a", "--", "xterm"], "--check runs no command"),
        (["a", "--", "xterm"], "DISPLAY is not set"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_in_the_call_of_x11(tmp_path: Path, words: list[str], told: str) -> None:
    done = run(tmp_path, ["env", "DISPLAY=", *CULVERT, "x11", "-F", "none", *words])
    assert_told(done, 255, told)


def test_a_display_without_a_name_is_found_before_the_logins(tmp_path: Path) -> None:
    words = ["x11", "-F", "none", "127.0.0.1:1", "--", "xterm"]
    done = run(tmp_path, ["env", "DISPLAY=$(id)", *CULVERT, *words])
    assert_told(done, 255, "DISPLAY: expected the name of a display")


def test_an_unknown_option_of_dbclient(tmp_path: Path) -> None:
    assert_told(
        culvert(tmp_path, "dbclient", "-Q", "x", "host"), 255, "unknown option -Q", "--help"
    )


def test_an_applet_that_does_not_exist(tmp_path: Path) -> None:
    assert_told(culvert(tmp_path, "shh"), 1, "'shh'", "--help")


@pytest.mark.root
def test_a_configuration_of_the_client_that_cannot_be_read(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.touch(mode=0o600)
    done = as_nobody(tmp_path, "ssh", "-F", str(config), "host")
    assert_told(done, 255, str(config), "denied")


@pytest.mark.root
def test_a_machine_without_tun_devices(tmp_path: Path) -> None:
    script = 'mount -t tmpfs none /dev/net && exec "$@"'
    argv = [find_program("unshare"), "-m", "sh", "-c", script, "sh", *CULVERT]
    words = ["ssh", "-F", "none", "-N", "-w", "0:0", "127.0.0.1"]
    assert_told(run(tmp_path, [*argv, *words]), 255, "/dev/net/tun is missing", "modprobe tun")


@pytest.mark.root
def test_a_tunnel_without_permission(tmp_path: Path) -> None:
    done = as_nobody(tmp_path, "ssh", "-F", "none", "-N", "-w", "7:0", "127.0.0.1")
    assert_told(done, 255, "tun", "root", "permission" if "permission" in done.stderr else "denied")


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    port = str(free_port())
    done = culvert(tmp_path, "ssh", "-F", "none", "-p", port, "127.0.0.1", "true")
    assert_told(done, 255, "127.0.0.1", port, "refused")


def test_a_server_that_hangs_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = str(listening.getsockname()[1])
        process = subprocess.Popen(
            [*CULVERT, "ssh", "-F", "none", "-p", port, "127.0.0.1", "true"],
            env=environment(tmp_path), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        listening.accept()[0].close()
        output, errors = process.communicate(timeout=30)
    done = subprocess.CompletedProcess([], process.returncode, output, errors)
    assert_told(done, 255, "127.0.0.1", port)


# The server


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-@"], "unknown option -@"),
        (["-p", "x"], "'x' is not [address:]port"),
        (["-p", "0"], "'0' is not"),
        (["-p", "65536"], "'65536' is not"),
        (["-p", "no-such-host.invalid:22"], "no-such-host.invalid"),
        (["operand"], "unexpected argument 'operand'"),
        (["-W", "1"], "-W 1: expected a number from"),
        (["-T", "0"], "-T 0: expected a number from"),
        (["-K", "x"], "-K x"),
        (["--permit-tunnel", "maybe"], "expected one of no, point-to-point"),
        (["--profile", "x"], "expected one of default, hardened"),
        (["-Q", "x"], "expected one of"),
        (["-b", "/nonexistent"], "/nonexistent"),
        (["-r", "/nonexistent/key"], "/nonexistent/key is missing"),
        (["--config", "/nonexistent"], "/nonexistent"),
        (["-p"], "-p needs an argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_option_of_the_server(tmp_path: Path, key: str, words: list[str], told: str) -> None:
    port = ["-p", f"127.0.0.1:{free_port()}"]
    assert_told(culvert(tmp_path, "sshd", "-F", "-r", key, *port, *words), 1, told)


def test_a_port_in_use(tmp_path: Path, key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = culvert(tmp_path, "sshd", "-F", "-r", key, "-p", f"127.0.0.1:{port}")
    assert_told(done, 1, "127.0.0.1", port, "another server")


@pytest.mark.root
def test_a_server_without_permission(tmp_path: Path, key: str) -> None:
    config = tmp_path / "sshd.toml"
    config.touch(mode=0o600)
    os.chmod(tmp_path, 0o755)
    done = as_nobody(tmp_path, "sshd", "-F", "--config", str(config))
    assert_told(done, 1, str(config), "denied")
    port = f"127.0.0.1:{free_port()}"
    assert_told(as_nobody(tmp_path, "sshd", "-F", "-r", key, "-p", port), 1, key, "denied")
    done = as_nobody(tmp_path, "sshd", "-F", "-r", key, "-p", "127.0.0.1:1")
    assert_told(done, 1, "denied")


def test_a_broken_configuration(tmp_path: Path, key: str) -> None:
    config = tmp_path / "sshd.toml"
    for text, told in (("x", "not a TOML file"), ("listen = 7", "expected a list of strings"),
                       ("lisen = ['22']", "did you mean 'listen'?")):  # fmt: skip
        config.write_text(text)
        assert_told(culvert(tmp_path, "sshd", "-F", "--config", str(config)), 1, str(config), told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("authentication_methods = ['x']", "match number 2: authentication_methods: 'x' is none"),
        ("pubkey_accepted_algorithms = ['x']", "match number 2: pubkey_accepted_algorithms: 'x'"),
    ],
)
def test_a_table_for_some_that_lets_nobody_in(
    tmp_path: Path, key: str, text: str, told: str
) -> None:
    config = tmp_path / "sshd.toml"
    config.write_text(f"[[match]]\nuser = 'a'\n[[match]]\nuser = 'b'\n{text}\n")
    done = culvert(tmp_path, "sshd", "--check", "-r", key, "--config", str(config))
    assert_told(done, 1, told)


def test_the_settings_can_be_checked_without_a_server(tmp_path: Path, key: str) -> None:
    done = culvert(tmp_path, "sshd", "--check", "-r", key)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
