"""Locks of files by different handles, and requests that wait for one."""

import os
from pathlib import Path

import pytest

from appliance.sftp import locks
from appliance.wire import sftp
from tests.unit.sftp.conftest import Client, Make

BOTH = sftp.READ | sftp.WRITE
OK = sftp.Status(7, sftp.OK, "Success")


@pytest.fixture
def handles(client: Client, tmp_path: Path) -> list[bytes]:
    """Two handles of one file."""
    (tmp_path / "file").touch()
    return [client.open(bytes(tmp_path / "file"), BOTH) for _ in range(2)]


def lock(
    client: Client,
    handle: bytes,
    kind: int = sftp.LOCK_EXCLUSIVE,
    offset: int = 0,
    length: int = 0,
    waits: bool = False,
) -> object:
    """The reply, None if there is none yet."""
    data = sftp.Lock(handle, kind, offset, length, waits)
    request = sftp.Extended(7, sftp.LOCK, data.encode()).encode()
    replies = client.raw(len(request).to_bytes(4, "big") + request)
    return replies[0] if replies else None


def test_a_lock_keeps_other_handles_off_its_bytes(client: Client, handles: list[bytes]) -> None:
    first, second = handles
    assert lock(client, first, offset=0, length=10) == OK
    assert lock(client, second, offset=10, length=10) == OK
    refused = lock(client, second, offset=9, length=1)
    assert refused == sftp.Status(7, sftp.FAILURE, "Resource temporarily unavailable")
    assert lock(client, first, sftp.LOCK_NONE, 0, 10) == OK
    assert lock(client, second, offset=9, length=1) == OK


def test_shared_locks_go_together(client: Client, handles: list[bytes]) -> None:
    for handle in handles:
        assert lock(client, handle, sftp.LOCK_SHARED) == OK
    assert lock(client, handles[0]) != OK


def test_a_test_finds_a_lock_and_takes_none(client: Client, handles: list[bytes]) -> None:
    first, second = handles
    for kind in (sftp.LOCK_TEST_SHARED, sftp.LOCK_TEST_EXCLUSIVE):
        assert lock(client, first, kind) == OK
        assert lock(client, second, kind) == OK  # the first one took none
    assert lock(client, first, sftp.LOCK_SHARED) == OK
    assert lock(client, second, sftp.LOCK_TEST_SHARED) == OK
    refused = lock(client, second, sftp.LOCK_TEST_EXCLUSIVE)
    assert refused == sftp.Status(7, sftp.FAILURE, "Resource temporarily unavailable")


def test_another_handle_of_the_same_file_may_be_closed(
    client: Client, handles: list[bytes], tmp_path: Path
) -> None:
    assert lock(client, handles[0]) == OK
    third = client.open(bytes(tmp_path / "file"), BOTH)
    assert client.code(sftp.Close(1, third)) == sftp.OK
    assert lock(client, handles[1]) != OK


def test_one_that_waits_is_answered_when_it_is_its_turn(
    client: Client, handles: list[bytes]
) -> None:
    first, second = handles
    assert lock(client, first) == OK
    assert lock(client, second, waits=True) is None
    assert client.session.locks.are_waited_for
    assert client.names(sftp.RealPath(1, b"/")) == [b"/"]  # others are answered
    assert lock(client, first, sftp.LOCK_NONE) == OK
    client.session.locks.retry()
    client.session.replies.flush()
    assert client.replies() == [OK]
    assert not client.session.locks.are_waited_for
    assert lock(client, first) != OK


def test_close_ends_the_waiting_of_its_own_handle(client: Client, handles: list[bytes]) -> None:
    first, second = handles
    assert lock(client, first) == OK
    assert lock(client, second, waits=True) is None
    request = sftp.Close(1, second).encode()
    replies = client.raw(len(request).to_bytes(4, "big") + request)
    assert replies == [
        sftp.Status(1, sftp.OK, "Success"),
        sftp.Status(7, sftp.FAILURE, "Invalid handle"),
    ]


def test_only_so_many_may_wait(client: Client, handles: list[bytes]) -> None:
    assert lock(client, handles[0]) == OK
    for _ in range(locks.WAITING_LIMIT):
        assert lock(client, handles[1], waits=True) is None
    refused = lock(client, handles[1], waits=True)
    assert refused == sftp.Status(7, sftp.FAILURE, "No locks available")


@pytest.mark.parametrize(
    ("kind", "offset", "length"),
    [(5, 0, 0), (1, 1 << 63, 0), (1, (1 << 63) - 1, 1), (1, 0, (1 << 64) - 1)],
)
def test_what_is_no_lock_is_refused(
    client: Client, handles: list[bytes], kind: int, offset: int, length: int
) -> None:
    refused = lock(client, handles[0], kind, offset, length, waits=True)
    assert refused == sftp.Status(7, sftp.BAD_MESSAGE, "Invalid argument")


def test_two_clients_exclude_each_other(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    one, other = make(), make()
    ours, theirs = (each.open(bytes(tmp_path / "file"), BOTH) for each in (one, other))
    assert lock(one, ours) == OK
    assert lock(other, theirs) != OK
    assert os.path.exists(tmp_path / "file")
