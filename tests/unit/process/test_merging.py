"""Who has a part in the kernel's samepage merging: those who are logged in, where it is wanted."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.process import merging
from tests.conftest import lacking
from tests.peers import CLIENTS, Account, Keyring, Login
from tests.processes import family
from tests.unit.server.conftest import Dialler, Serve


def merges(pid: int) -> bool:
    """Whether pages of a process may be merged (proc(5), smaps, VmFlags)."""
    flags = re.findall(r"^VmFlags: (.*)", Path(f"/proc/{pid}/smaps").read_text(), re.MULTILINE)
    return any("mg" in line.split() for line in flags)


@pytest.fixture
def able() -> None:
    if merging.obstacle().startswith("the kernel"):
        lacking(merging.obstacle())


@pytest.mark.root
@pytest.mark.usefixtures("able")
@pytest.mark.parametrize("wanted", [True, False])
def test_a_connection_has_a_part_in_it_once_it_is_logged_in(
    our_server: Serve,
    dial: Callable[..., Dialler],
    account: Account,
    user_keys: Keyring,
    wanted: bool,
) -> None:
    server = our_server(f"merge_memory = {str(wanted).lower()}\n")
    listener = server.process.pid
    assert (merging.obstacle() in server.log) == (wanted or not merging.obstacle())
    dialler = dial(server)
    assert dialler.until(lambda connection: connection.transport.peer_version)
    assert len(family(listener)) == 3
    assert not any(merges(pid) for pid in family(listener))
    dialler.log_in()
    _, *connection = family(listener)
    assert [merges(pid) for pid in connection] == [wanted, wanted]
    assert not merges(listener)
    login = Login(account, user_keys.key())
    done = CLIENTS["openssh"].run(server, login, "grep VmFlags /proc/self/smaps")
    assert b"VmFlags" in done.stdout and b" mg" not in done.stdout


@pytest.mark.parametrize(
    ("switch", "told"), [("1\n", ""), ("0\n", "ksmd does not run"), (None, "ksmd does not run")]
)
@pytest.mark.usefixtures("able")
def test_what_is_missing_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, switch: str | None, told: str
) -> None:
    monkeypatch.setattr(merging, "_SWITCH", str(tmp_path / "run"))
    if switch is not None:
        (tmp_path / "run").write_text(switch)
    assert merging.obstacle().startswith(told) and bool(merging.obstacle()) == bool(told)


def test_an_old_kernel_is_told_and_served(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        @staticmethod
        def prctl(*_: int) -> int:
            return -1

    monkeypatch.setattr(merging, "_libc", Old)
    assert merging.obstacle().startswith("the kernel cannot")
    merging.begin()
    merging.end()
