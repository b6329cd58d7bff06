"""The steps of a login, and how the ways to a host become sockets and commands."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.aio.dial import DialFailed
from appliance.aio.proxy import ProxyFailed
from appliance.client import login as login_module
from appliance.client.host_options import HostOptions
from appliance.client.host_trust import HostTrust
from appliance.client.login import Login
from appliance.client.ssh_config import load
from appliance.crypto.key_files import dump_openssh
from appliance.crypto.keys import generate
from appliance.errors import CulvertError, HostKeyRejected, UsageError
from appliance.ssh.connection import ConnectionHandler

ED25519 = generate("ssh-ed25519")


def options(*given: str | tuple[str, str], config_file: str = "none") -> HostOptions:
    return load("host", (*given, ("AddressFamily", "inet")), config_file)


@contextmanager
def used(login: Login) -> Iterator[socket.socket]:
    """The socket of a login that is closed at the end, with what serves it."""
    try:
        with login.dial() as sock:
            yield sock
    finally:
        login.close()


# -- where it leads ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "hop"),
    [
        ((), ("host", 22)),
        (("HostName other", "Port 7"), ("other", 7)),
        (("Proxy http://p:3128",), ("p", 3128)),
        (("ProxyCommand x",), None),
        (("ProxyJump a,b",), ("a", 22)),
        (("ProxyJump u@a:7,b",), ("a", 7)),
    ],
)
def test_the_first_hop_is_what_is_dialled(given: tuple[str, ...], hop: object) -> None:
    assert Login(options(*given)).first_hop == hop


def test_a_host_is_dialled_by_the_addresses_that_are_known() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        login = Login(options(f"Port {port}", "HostName not-a-host.invalid"))
        with login.dial(["127.0.0.9", "127.0.0.1"]) as sock:
            assert sock.getpeername() == ("127.0.0.1", port)
        with pytest.raises(DialFailed, match="Could not resolve hostname"):
            login.dial()


def jump(*given: str | tuple[str, str], config_file: str = "none") -> list[str]:
    """The words for the client that connects us, behind the interpreter's."""
    argv = login_module._jump(options(*given, config_file=config_file))
    return argv[argv.index("ssh") + 1 :]


def test_a_jump_is_this_program_with_minus_w(tmp_path: Path) -> None:
    assert jump("ProxyJump a") == ["-F", "none", "-W", "[host]:22", "a"]
    words = jump("ProxyJump a,u@b:5,v@[::1]:6", "Port 7", "HostName h", "LogLevel DEBUG2")
    assert words == [
        *("-l", "v", "-p", "6", "-J", "a,u@b:5", "-F", "none", "-vv", "-W", "[h]:7", "::1")
    ]
    config = tmp_path / "a file"
    config.touch()
    assert jump("ProxyJump a", config_file=str(config))[:2] == ["-F", str(config)]


def test_a_jump_over_the_host_itself_is_refused() -> None:
    with pytest.raises(UsageError, match="ProxyJump: u@host is the host itself"):
        jump("ProxyJump u@host", "User u")
    with pytest.raises(UsageError, match="ProxyJump: host is the host itself"):
        jump("ProxyJump host", "Port 7")
    assert jump("ProxyJump host:7")
    assert jump("ProxyJump other@host", "User u")


# -- commands ----------------------------------------------------------------------------


def test_a_proxy_command_is_the_connection() -> None:
    with used(Login(options("ProxyCommand sed -u s/$/.%h.%p/"))) as sock:
        sock.sendall(b"hello\n")
        assert sock.recv(100) == b"hello.host.22\n"


def test_a_proxy_command_is_run_by_the_users_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = tmp_path / "shell"
    shell.write_text('#!/bin/sh\necho "$1" "$2"\n')
    shell.chmod(0o700)
    monkeypatch.setenv("SHELL", str(shell))
    with used(Login(options("ProxyCommand a  b"))) as sock:
        assert sock.recv(100) == b"-c exec a  b\n"


def test_a_shell_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/nonexistent/shell")
    login = Login(options("ProxyCommand password"))
    with pytest.raises(DialFailed) as caught:
        login.dial()
    assert str(caught.value) == "ProxyCommand: /nonexistent/shell: No such file or directory"


def test_a_command_that_cannot_be_watched_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(pid: int) -> int:
        (tmp_path / "pid").write_text(str(pid))
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", none_left)
    login = Login(options("ProxyCommand sleep 1000"))
    with pytest.raises(DialFailed, match="Too many open files"), used(login):
        pass
    assert not Path("/proc", (tmp_path / "pid").read_text()).exists()


@pytest.mark.parametrize("command", ["sleep 1000", "sh -c 'trap \"\" HUP; sleep 2; true'"])
def test_a_command_ends_with_the_login(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login_module, "COMMAND_GRACE", 0.1)
    with used(Login(options(f"ProxyCommand {command}"))):
        pass


@pytest.mark.parametrize(
    ("command", "how"),
    [("sh -c 'exit 7'", "exit status 7"), ("sh -c 'kill -9 $$'", "signal 9"), ("true", "status 0")],
)
def test_a_command_that_ends_is_told_with_its_status(command: str, how: str) -> None:
    login = Login(options(f"ProxyCommand {command}"))
    with pytest.raises(CulvertError) as caught, used(login) as sock:
        login.authenticate(sock, ConnectionHandler())
    text = str(caught.value)
    assert text.startswith("host port 22: ")
    assert "ProxyCommand ended with" in text and text.endswith(how)


def test_a_proxys_refusal_closes_the_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        login = Login(options(f"Proxy http://127.0.0.1:{port}"))
        sock = login.dial()
        with server.accept()[0] as theirs:
            theirs.sendall(b"HTTP/1.1 403 no\r\n\r\n")
            with pytest.raises(ProxyFailed, match="it refuses: 403 no"):
                login.authenticate(sock, ConnectionHandler())
    assert sock.fileno() == -1


# -- keys --------------------------------------------------------------------------------


def test_keys_that_were_loaded_need_no_files(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(dump_openssh(ED25519))
    path.chmod(0o600)
    given = options(f"IdentityFile {path}", "IdentityAgent none", "IdentitiesOnly yes")
    login, late = Login(given), Login(given)
    login.load_identities()
    path.unlink()
    (identity,) = login._credentials.identities()
    assert identity.blob == ED25519.public.blob
    signature = identity.sign("ssh-ed25519", b"data")
    assert signature is not None and ED25519.public.verify("ssh-ed25519", signature, b"data")
    assert list(late._credentials.identities()) == []


# -- the one host key --------------------------------------------------------------------


def trust(line: str, *given: str) -> HostTrust:
    found = options(*given)
    found.host_key_line = line
    return HostTrust(found)


def test_a_key_that_was_given_is_the_only_one(tmp_path: Path) -> None:
    other = generate("ssh-ed25519")
    known = tmp_path / "known_hosts"
    known.write_text(f"host {other.public.line()}\n")
    given = (f"UserKnownHostsFile {known}", "StrictHostKeyChecking no")
    trusting = trust(ED25519.public.line("a comment"), *given)
    assert trusting.known_types == ("ssh-ed25519",)
    trusting.check(ED25519.public)
    with pytest.raises(HostKeyRejected) as caught:
        trusting.check(other.public)
    text = str(caught.value)
    assert other.public.fingerprint("sha256") in text
    assert ED25519.public.fingerprint("sha256") in text
    assert known.read_text().count("\n") == 1


@pytest.mark.parametrize("line", ["x", "ssh-ed25519", "ssh-ed25519 AAAA", "host ssh-ed25519 AAAA"])
def test_a_given_host_key_that_is_none_is_told(line: str) -> None:
    with pytest.raises(UsageError, match="the host key of host: "):
        trust(line)
