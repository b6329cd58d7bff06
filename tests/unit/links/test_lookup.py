"""A name is looked up by a process without privileges, whose answer proves nothing."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance import log
from appliance.links import lookup
from appliance.links.lookup import ADDRESSES_LIMIT, look_up, name_servers
from appliance.process import sandbox
from tests.processes import descriptors


@pytest.fixture(autouse=True)
def log_of_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in memory, and has no descriptors."""
    monkeypatch.setattr(log, "descriptors", set)


def answering(answer: Callable[[], list[str]]) -> Callable[..., Any]:
    """A resolver of the system's."""

    def getaddrinfo(host: str, port: int, **_: object) -> list[Any]:
        return [(0, 0, 0, "", (address, port)) for address in answer()]

    return getaddrinfo


def test_the_addresses_of_a_name_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ["192.0.2.1", "2001:db8::1%eth0", "192.0.2.1"]
    monkeypatch.setattr(socket, "getaddrinfo", answering(lambda: found))
    assert look_up("office.example.org", 22, None) == ["192.0.2.1", "2001:db8::1"]


@pytest.mark.parametrize("answer", [["evil"], ["192.0.2.1", "1.2.3.4/8"]])
def test_an_answer_that_is_no_address_is_none(
    monkeypatch: pytest.MonkeyPatch, answer: list[str]
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", answering(lambda: answer))
    assert look_up("office.example.org", 22, None) == []


def test_a_name_has_no_more_addresses_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [f"192.0.2.{number}" for number in range(ADDRESSES_LIMIT + 5)]
    monkeypatch.setattr(socket, "getaddrinfo", answering(lambda: many))
    assert len(look_up("office.example.org", 22, None)) == ADDRESSES_LIMIT


def test_who_asks_has_nothing_of_the_carriers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a resolver's answer takes over finds no signer, no device and no reports."""
    mine = os.open(os.devnull, os.O_RDONLY)

    def found() -> list[str]:
        return [f"2001:db8::{len(descriptors()):x}"]

    monkeypatch.setattr(socket, "getaddrinfo", answering(found))
    assert look_up("office.example.org", 22, None) == ["2001:db8::4"]  # standard ones, the answer
    os.close(mine)


@pytest.mark.root
def test_who_asks_is_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    uids = [f"10.0.{os.getuid()}.{os.geteuid()}"]  # an address that says who asked
    monkeypatch.setattr(
        socket, "getaddrinfo", answering(lambda: [f"2001:db8::{os.getuid():x}:{os.geteuid():x}"])
    )
    identity = sandbox.prepare((), 61197)
    assert identity is not None
    try:
        number = f"{identity.uid:x}"
        assert look_up("office.example.org", 22, identity) == [f"2001:db8::{number}:{number}"]
    finally:
        os.close(identity.directory)
    assert uids == ["10.0.0.0"]


def test_a_resolver_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang() -> list[str]:
        while True:
            pass

    monkeypatch.setattr(socket, "getaddrinfo", answering(hang))
    monkeypatch.setattr(lookup, "SECONDS", 0.1)
    assert look_up("office.example.org", 22, None) == []


def test_the_name_servers_are_those_of_other_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 192.0.2.53\nnameserver 127.0.0.53\nnameserver x\nnameserver ::1\n")
    monkeypatch.setattr(lookup, "_RESOLVERS", (str(path), "/nowhere"))
    assert name_servers() == ["192.0.2.53"]
