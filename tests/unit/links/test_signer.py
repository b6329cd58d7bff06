"""Keys in a process of their own: named to the login, used for it, and gone after it."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from appliance import log
from appliance.errors import CulvertError, UsageError
from appliance.links.signer import SIGNATURES, Signer
from appliance.process.sandbox import Confinement
from appliance.ssh.auth_client import Identity
from appliance.wire.codec import write_string
from appliance.wire.messages import UserauthRequest
from tests.netns import wait_until

FREE = Confinement(None, None, None)


@pytest.fixture(autouse=True)
def log_of_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in memory, and has no descriptors."""
    monkeypatch.setattr(log, "descriptors", set)


def identity(name: str, answer: bytes | None = b"signature") -> Identity:
    def sign(algorithm: str, data: bytes) -> bytes | None:
        return None if answer is None else answer + algorithm.encode() + data

    return Identity(name.encode(), ("ssh-ed25519", "other"), sign, name == "costly", name)


def started(identities: Sequence[Identity]) -> Iterator[Signer]:
    made = Signer(lambda: identities, FREE)
    yield made
    made.close()
    os.wait()


@pytest.fixture
def keys() -> Iterator[Signer]:
    yield from started([identity("first"), identity("costly"), identity("locked", None)])


def test_the_keys_are_named_and_sign(keys: Signer) -> None:
    assert [(each.blob, each.name, each.costs_the_user) for each in keys.identities] == [
        (b"first", "first", False), (b"costly", "costly", True), (b"locked", "locked", False),
    ]  # fmt: skip
    first, _, locked = keys.identities
    assert first.algorithms == ("ssh-ed25519", "other")
    assert first.sign("other", signed()) == b"signatureother" + signed()
    assert locked.sign("other", signed()) is None


def signed(session: bytes = b"session", number: int = UserauthRequest.number) -> bytes:
    """What a login signs begins so."""
    return write_string(session) + bytes([number]) + b"and so on"


@pytest.mark.parametrize("wrong", [b"anything at all", signed(number=51), signed(b"another")])
def test_nothing_is_signed_but_one_sessions_login(keys: Signer, wrong: bytes) -> None:
    first = keys.identities[0]
    assert first.sign("a", signed())
    assert first.sign("a", wrong) is None
    with pytest.raises(BrokenPipeError):
        first.sign("a", signed())


def test_there_are_only_so_many_signatures(keys: Signer) -> None:
    first = keys.identities[0]
    for _ in range(SIGNATURES):
        assert first.sign("a", signed())
    with pytest.raises(OSError):
        for _ in range(2):
            if first.sign("a", signed()) is None:
                raise ConnectionResetError


def test_what_is_wrong_with_the_keys_is_told() -> None:
    def load() -> Sequence[Identity]:
        raise UsageError("no such file")

    with pytest.raises(CulvertError, match=r"^no such file$"):
        Signer(load, FREE)
    os.wait()


def test_a_process_that_dies_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    def load() -> Sequence[Identity]:
        os._exit(1)

    with pytest.raises(CulvertError, match=r"has ended$"):
        Signer(load, FREE)
    os.wait()


def test_without_a_process_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_fork() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("os.fork", no_fork)
    with pytest.raises(CulvertError, match=r"^no process: Resource temporarily unavailable$"):
        Signer(list, FREE)


def children() -> set[str]:
    """Orphans of other tests may be among them."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_it_ends_with_its_login() -> None:
    before = children()
    made = Signer(lambda: [identity("first")], FREE)
    (child,) = children() - before
    made.close()

    def has_ended() -> bool:
        return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    assert wait_until(has_ended)
    os.waitpid(int(child), 0)
