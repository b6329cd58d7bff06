"""What declarations become: settings of a login, and options of a mount."""

import os
from pathlib import Path
from typing import Any

import pytest

from appliance.config.links import DeclaredMount, Link
from appliance.crypto.keys import generate
from appliance.errors import UsageError
from appliance.links.declarations import options_of, read, settings_of, source_of
from appliance.mount.mounting import MS_RDONLY
from tests.unit.config.toml import write

PHOTOS = {"name": "photos", "host": "office.example.org", "mountpoint": "/mnt/photos"}
HOST_KEY = generate("ssh-ed25519").public.line()


def mount(**keys: Any) -> DeclaredMount:
    return DeclaredMount(**(PHOTOS | keys))


def test_a_link_and_a_mount_log_in_by_the_same_settings() -> None:
    way: dict[str, Any] = {
        "user": "joe", "port": 2222, "identity_file": "/key", "host_key": "ssh-ed25519 AAAA",
        "proxy_jump": ("a", "b"), "connect_timeout": 7,
        "server_alive_interval": 8, "server_alive_count_max": 9,
    }  # fmt: skip
    settings = settings_of(mount(**way))
    assert settings == settings_of(Link(name="office", host="office.example.org", **way))
    assert dict(settings) == {
        "BatchMode": "yes", "StrictHostKeyChecking": "yes", "ConnectTimeout": "7",
        "ServerAliveInterval": "8", "ServerAliveCountMax": "9", "IdentityFile": "/key",
        "IdentitiesOnly": "yes", "Port": "2222", "User": "joe", "HostKeyLine": "ssh-ed25519 AAAA",
        "ProxyJump": "a,b",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "source"),
    [
        ({}, "office.example.org:"),
        ({"directory": "/srv/a:b"}, "office.example.org:/srv/a:b"),
        ({"user": "joe", "host": "fd00::1", "directory": "x"}, "joe@[fd00::1]:x"),
    ],
)
def test_a_source_is_what_sshfs_takes(keys: dict[str, Any], source: str) -> None:
    assert source_of(mount(**keys)) == source


def test_options_are_those_of_sshfs() -> None:
    line = options_of(mount(options=("allow_other,ro", "ControlPath=/run/c", "timeout=5")))
    assert line.kernel.flags & MS_RDONLY
    assert line.kernel.words == ("allow_other",)
    assert (line.ssh, line.mount.timeout) == (("ControlPath=/run/c",), 5.0)


@pytest.mark.parametrize("word", ["passive", "slave", "password_stdin"])
def test_options_that_need_a_caller_are_refused(word: str) -> None:
    with pytest.raises(UsageError, match="needs a program that calls culvert sshfs"):
        options_of(mount(options=(word,)))


def refusal(tmp_path: Path, **keys: Any) -> str:
    path = write(tmp_path / "links.toml", {"mount": [PHOTOS | keys]})
    os.chmod(path, 0o600)
    with pytest.raises(UsageError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: mount 'photos': ")
    return message


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"options": ["alow_other"]}, "unknown option(s): `-o alow_other'"),
        ({"options": ["timeout=0"]}, "invalid parameter in option `timeout=0'"),
        ({"options": ["idmap=file"]}, "idmap=file needs a uidfile or a gidfile"),
        ({"options": ["Ciphers=none-such"]}, "none-such"),
        ({"options": ["ssh_command=ssh"], "proxy": "http://a:1"}, "does not know proxy"),
        ({"options": ["ssh_command=ssh"], "host_key": HOST_KEY}, "does not know host_key"),
        (
            {"options": ["ControlMaster=auto,ControlPath=/run/c"], "proxy": "http://a:b@c:1"},
            "would show the proxy's password",
        ),
        ({"host_key": "ssh-ed25519 AAAA"}, "the host key of office.example.org"),
    ],
)
def test_a_mistake_is_found_before_anything_is_mounted(
    tmp_path: Path, keys: dict[str, Any], words: str
) -> None:
    assert words in refusal(tmp_path, **keys)


def test_mounts_alone_are_declarations(tmp_path: Path) -> None:
    path = write(tmp_path / "links.toml", {"mount": [PHOTOS]})
    os.chmod(path, 0o600)
    assert [each.name for each in read(path).mount] == ["photos"]
    path = write(tmp_path / "links.toml", {})
    with pytest.raises(UsageError, match=r"no \[\[link\]\] and no \[\[mount\]\] is declared"):
        read(path)
