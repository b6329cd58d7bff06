"""Host keys are read, or made on first use: whole, or not at all."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.crypto.certificates import NONCE_BYTES, CertType, Terms, issue
from appliance.crypto.key_files import dump_openssh
from appliance.crypto.keys import PrivateKey, generate
from appliance.errors import UsageError
from appliance.server import host_keys
from tests.netns import wait_until
from tests.peers import CULVERT, environment, free_port

AUTHORITY = generate("ssh-ed25519")


def test_a_key_is_made_once_and_read_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "new/folder/ssh_host_ed25519_key"
    (made,) = host_keys.load([str(path)], True)
    assert path.stat().st_mode & 0o777 == 0o600
    assert host_keys.load([str(path)], True)[0].public == made.public
    assert host_keys.load([str(path)], False)[0].public == made.public
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("name", "key_type"),
    [
        ("ssh_host_ed25519_key", "ssh-ed25519"),
        ("ssh_host_ecdsa_key", "ecdsa-sha2-nistp256"),
        ("ssh_host_rsa_key", "ssh-rsa"),
        ("key", "ssh-ed25519"),
    ],
)
def test_the_kind_of_a_key_follows_from_its_files_name(
    tmp_path: Path, name: str, key_type: str
) -> None:
    assert host_keys.load([str(tmp_path / name)], True)[0].public.key_type == key_type


def test_a_missing_key_is_named_with_the_ways_to_get_one(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(UsageError, match=f"{path} is missing.*keygen.*-R"):
        host_keys.load([str(path)], False)
    assert not path.exists()


@pytest.mark.parametrize("step", ["write", "fsync", "link"])
def test_a_key_that_cannot_be_finished_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "key"

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if step == "write":
        monkeypatch.setattr(host_keys, "dump_openssh", fail)
    else:
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(UsageError, match=f"{path} cannot be made: No space"):
        host_keys.load([str(path)], True)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_killed_while_it_makes_a_key_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next start makes it."""
    path = tmp_path / "key"
    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr(os, "fsync", lambda fd: os.kill(os.getpid(), 9))
        host_keys.load([str(path)], True)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 9
    assert not path.exists()
    assert host_keys.load([str(path)], True)
    assert path.stat().st_size > 300


def test_of_two_servers_the_faster_ones_key_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key"
    faster = generate("ssh-ed25519")
    link = os.link

    def late(source: str, target: str) -> None:
        path.write_bytes(dump_openssh(faster, None, ""))
        path.chmod(0o600)
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    assert host_keys.load([str(path)], True)[0].public == faster.public
    assert [each.name for each in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    host_keys.load([str(path)], True)
    path.chmod(mode)
    with pytest.raises(UsageError, match=f"chmod 600 {path}"):
        host_keys.load([str(path)], True)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"-----BEGIN OPENSSH PRIVATE KEY-----\n"])
def test_a_key_that_is_none_is_named_and_not_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(UsageError, match=str(path)):
        host_keys.load([str(path)], True)
    assert path.read_bytes() == content


def test_a_folder_in_place_of_a_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=str(tmp_path)):
        host_keys.load([str(tmp_path)], True)


# Certificates


@pytest.fixture
def certificate(tmp_path: Path) -> Callable[..., str]:
    """A function that writes a certificate of a key and returns its path."""

    def write(key: PrivateKey, kind: CertType = CertType.HOST, **terms: Any) -> str:
        said = Terms(kind, "host", ("host.example",), **terms)
        made = issue(AUTHORITY, "ssh-ed25519", key.public, said, bytes(NONCE_BYTES))
        path = tmp_path / "key-cert.pub"
        path.write_text(made.line("comment") + "\n")
        return str(path)

    return write


def test_a_certificate_is_offered_beside_its_key_under_names_of_its_own(
    certificate: Callable[..., str],
) -> None:
    rsa, ed25519 = generate("ssh-rsa", 2048), generate("ssh-ed25519")
    found, _ = host_keys.arrange([ed25519, rsa], [certificate(rsa)], 2048)
    assert set(found) == {
        "ssh-ed25519",
        "rsa-sha2-512",
        "rsa-sha2-256",
        "rsa-sha2-512-cert-v01@openssh.com",
        "rsa-sha2-256-cert-v01@openssh.com",
    }
    for name, key in found.items():
        assert key.public.verify(name, key.sign(name, b"data"), b"data")


def test_a_certificate_that_is_of_no_use_is_a_mistake(
    certificate: Callable[..., str], tmp_path: Path
) -> None:
    key = generate("ssh-ed25519")
    (tmp_path / "plain").write_text(key.public.line())
    (tmp_path / "junk").write_text("junk")
    for path, text in [
        (certificate(generate("ssh-ed25519")), "none of the host keys"),
        (str(tmp_path / "plain"), "not a host certificate"),
        (str(tmp_path / "junk"), "not a public key"),
        (str(tmp_path / "nothing"), "No such file"),
        (str(tmp_path), "directory"),
    ]:
        with pytest.raises(UsageError, match=text) as raised:
            host_keys.arrange([key], [path], 2048)
        assert path in str(raised.value)
    with pytest.raises(UsageError, match="not a host certificate"):
        host_keys.arrange([key], [certificate(key, CertType.USER)], 2048)


def test_a_certificate_that_has_expired_is_named_in_the_log(
    certificate: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    key = generate("ssh-ed25519")
    assert len(host_keys.arrange([key], [certificate(key, valid_before=1)], 2048)[0]) == 2
    assert "is not valid now" in caplog.text


def test_a_short_rsa_host_key_is_refused_where_a_longer_one_is_wanted() -> None:
    with pytest.raises(UsageError, match="3072 bits"):
        host_keys.arrange([generate("ssh-rsa", 2048)], [], 3072)


def test_two_servers_that_start_at_once_agree_on_one_host_key(tmp_path: Path) -> None:
    key = tmp_path / "keys/ssh_host_ed25519_key"
    servers = [
        subprocess.Popen(
            [*CULVERT, "sshd", "-F", "-E", "-R", "-r", str(key), "-P", "",
             "-p", f"127.0.0.1:{free_port()}"],
            env=environment(tmp_path), stderr=subprocess.PIPE,
        )
        for _ in range(3)
    ]  # fmt: skip
    assert wait_until(key.exists, 20)
    time.sleep(0.3)
    logs = []
    for server in servers:
        server.terminate()
        logs.append(server.communicate(timeout=20)[1].decode())
    assert sum("made host key" in log for log in logs) == 1, logs
    assert [path.name for path in key.parent.iterdir()] == [key.name]
    assert key.stat().st_mode & 0o777 == 0o600
