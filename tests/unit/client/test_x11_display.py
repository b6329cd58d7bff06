"""Which display programs are shown on, and with which cookie."""

import os
import socket
from pathlib import Path

import pytest

from appliance.client.x11_display import NoDisplay, local_display
from appliance.wire.x11 import (
    COOKIE_PROTOCOL,
    FAMILY_INTERNET6,
    FAMILY_LOCAL,
    FAMILY_WILD,
    XauthorityEntry,
)
from appliance.x11.cookies import FILE_LIMIT
from appliance.x11.set_up import Authorization

HERE = socket.gethostname().encode()


def entry(family: int, address: bytes, number: bytes, data: bytes) -> bytes:
    return XauthorityEntry(family, address, number, COOKIE_PROTOCOL, data).encode()


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "authority"
    path.write_bytes(
        entry(FAMILY_LOCAL, HERE, b"5", b"local")
        + entry(FAMILY_INTERNET6, b"\x20\1\x0d\xb8" + bytes(11) + b"\1", b"5", b"six")
        + entry(FAMILY_WILD, b"", b"6", b"wild")
    )
    monkeypatch.setenv("XAUTHORITY", str(path))
    return path


@pytest.mark.parametrize(
    ("name", "data"),
    [
        (":5", b"local"),
        ("unix:5.0", b"local"),
        ("localhost:5.0", b"local"),  # as OpenSSH and Xlib have it
        ("127.0.0.1:5", b"local"),
        ("[::1]:5", b"local"),
        ("::ffff:127.0.0.1:5", b"local"),
        ("[2001:db8::1]:5", b"six"),
        ("[2001:db8::2]:5", b""),
        ("[2001:db8::2]:6", b"wild"),
        (":6", b"wild"),
        (":7", b""),
    ],
)
def test_a_display_has_the_cookie_of_its_entry(
    name: str, data: bytes, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPLAY", name)
    wanted = Authorization(COOKIE_PROTOCOL, data) if data else Authorization()
    assert local_display()[1] == wanted


def test_the_usual_file_is_in_the_home_directory(
    authority: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.rename(tmp_path / ".Xauthority")
    monkeypatch.delenv("XAUTHORITY")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DISPLAY", ":5")
    assert local_display()[1].data == b"local"


@pytest.mark.parametrize("name", [None, "", "$(id)", ":0; id", "x" * 10000, "nowhere.invalid:0"])
def test_there_may_be_no_display(
    name: str | None, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    if name is not None:
        monkeypatch.setenv("DISPLAY", name)
    with pytest.raises(NoDisplay, match="DISPLAY"):
        local_display()


@pytest.mark.parametrize("what", ["missing", "fifo", "folder", "cut", "huge", "unreadable"])
def test_a_file_that_is_none_of_cookies_is_as_none(
    what: str, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The display may have no access control; and nobody waits for a pipe."""
    monkeypatch.setenv("DISPLAY", ":5")
    data = authority.read_bytes()
    if what in ("missing", "fifo", "folder"):
        authority.unlink()
    if what == "fifo":
        os.mkfifo(authority)
    elif what == "folder":
        authority.mkdir()
    elif what == "cut":
        authority.write_bytes(data[:-1])
    elif what == "huge":
        authority.write_bytes(data + bytes(FILE_LIMIT))
    elif what == "unreadable":
        authority.write_bytes(data)
        authority.unlink()
        authority.symlink_to("/proc/self/mem")
    assert local_display()[1] == Authorization()
