"""The process that holds copies of kill switches: what it holds, for whom, and until when."""

import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.links import keeper
from appliance.links.keeper import Keeper, copy_of
from tests.netns import Namespace, wait_until

pytestmark = [pytest.mark.root, pytest.mark.netns]

TABLE = "culvert-link-office"


@pytest.fixture
def space(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Namespace]:
    """A network whose keeper has its files in the test's folder; it ends with the test."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(folder))
    made = Namespace("kept")
    try:
        yield made
        made.inside(Keeper().release_all)
        assert wait_until(lambda: not made.processes())
    finally:
        made.close()


def hold(space: Namespace, client: Keeper, table: str, chain: str) -> None:
    """Have a table held that has one chain."""
    space.inside(lambda: client.hold(table, f"\tchain {chain} {{\n\t}}\n"))


def held(space: Namespace) -> str:
    return space.run("nft", "list", "ruleset")


def test_a_copy_lasts_until_it_is_released_by_whomever(space: Namespace) -> None:
    hold(space, Keeper(), TABLE, "a")
    hold(space, Keeper(), TABLE, "b")
    hold(space, Keeper(), f"{TABLE}2", "c")
    space.run("nft", "flush", "ruleset")
    assert "chain a" not in held(space)
    assert "chain b" in held(space)
    assert len(space.processes()) == 1
    space.inside(lambda: Keeper().release(TABLE))
    space.inside(lambda: Keeper().release("culvert-link-unknown"))
    assert copy_of(TABLE) + " " not in held(space)
    assert "chain c" in held(space)


def test_a_copy_has_no_name_that_another_links_table_may_have(space: Namespace) -> None:
    """Or that link's switch could not be made."""
    hold(space, Keeper(), TABLE, "a")
    space.run("nft", "add", "table", "inet", f"{TABLE}-held")
    hold(space, Keeper(), f"{TABLE}-held", "b")
    assert "chain a" in held(space)
    assert "chain b" in held(space)
    space.run("nft", "delete", "table", "inet", f"{TABLE}-held")


def test_a_keeper_that_ends_is_followed_by_another_at_once(space: Namespace) -> None:
    client = Keeper()
    for _ in range(10):
        hold(space, client, TABLE, "a")
        assert "chain a" in held(space)
        space.inside(lambda: client.release(TABLE))
        assert copy_of(TABLE) not in held(space)


def a_table_that_is_none(sock: socket.socket) -> None:
    sock.sendall(f"{TABLE}\nchain is {{".encode())


def bytes_that_are_no_text(sock: socket.socket) -> None:
    sock.sendall(b"\xff\n\xff")


def too_many_bytes(sock: socket.socket) -> None:
    for _ in range(100):
        sock.sendall(bytes(65536))


@pytest.mark.parametrize(
    "send", [a_table_that_is_none, bytes_that_are_no_text, too_many_bytes], ids=lambda f: f.__name__
)
def test_a_bad_request_is_answered_and_changes_nothing(
    space: Namespace, folder: Path, send: Callable[[socket.socket], None]
) -> None:
    hold(space, Keeper(), TABLE, "a")
    before = held(space)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(folder / "keeper.sock"))
        try:
            send(sock)
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(4096) != keeper._DONE
        except ConnectionError:  # it reads no more
            pass
    assert held(space) == before
    hold(space, Keeper(), f"{TABLE}2", "b")
    assert "chain b" in held(space)


def test_only_root_reaches_it(space: Namespace, folder: Path) -> None:
    hold(space, Keeper(), TABLE, "a")
    status = os.stat(folder / "keeper.sock")
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o600)


def test_where_nothing_can_be_held_one_line_says_so(
    space: Namespace, caplog: pytest.LogCaptureFixture
) -> None:
    client = Keeper()
    space.inside(lambda: client.hold(TABLE, "\tno rules\n"))
    space.inside(lambda: client.hold(f"{TABLE}2", "\tno rules\n"))
    (line,) = caplog.messages
    assert "a flush of the ruleset opens kill switches for a moment: " in line
    assert wait_until(lambda: not space.processes())


def test_a_keeper_that_hangs_is_followed_by_another_that_holds_everything(
    space: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "_PATIENCE", 1.0)
    client = Keeper()
    hold(space, client, TABLE, "a")
    hold(space, client, f"{TABLE}2", "b")
    (old,) = space.processes()
    os.kill(old, signal.SIGSTOP)
    hold(space, client, TABLE, "c")
    assert old not in space.processes()
    assert "chain c" in held(space)
    assert "chain b" in held(space)


def test_a_keeper_that_hangs_keeps_nothing_closed(
    space: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "_PATIENCE", 1.0)
    hold(space, Keeper(), TABLE, "a")
    (old,) = space.processes()
    os.kill(old, signal.SIGSTOP)
    space.inside(lambda: Keeper().release(TABLE))
    assert copy_of(TABLE) not in held(space)


def test_a_keeper_that_cannot_start_is_not_waited_for(
    space: Namespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    began = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nowhere/python")  # as in the midst of an upgrade
        hold(space, Keeper(), TABLE, "a")
    assert time.monotonic() - began < 5
    assert "ends at once" in caplog.text
