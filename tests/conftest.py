"""What every test can rely on: nothing leaks, and the real peers are at hand.

- A process or a file descriptor that a test leaves behind fails it.
- A missing program (or privilege) is a skip that names it; where CI is set it is a failure.
- Tests that share servers, or take long, run file by file, each file in one worker.
"""

import contextlib
import ctypes
import gc
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns import Namespace
from tests.peers import (
    KEY_TYPES,
    Account,
    ClientKind,
    Keyring,
    Missing,
    Server,
    ServerKind,
    ServerSettings,
    private_folder,
    start,
    temporary_account,
)
from tests.processes import descriptors, hide_shell_files

PR_SET_CHILD_SUBREAPER = 36
LEAK_PATIENCE = 3  # seconds that what a test began may take to end by itself

# The servers that tests share; what they leave to this process, as key holders, has their command.
KEPT: dict[int, str] = {}
GROUPED = ("interop", "system", "bench")  # folders whose files keep to one worker each


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        hide_shell_files()
    # Orphans become children of this process, where the leak check sees them.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.parent.name
        if folder in GROUPED and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        lacking("this test needs root")
    if item.get_closest_marker("netns") and (reason := _no_namespaces()):
        lacking(reason)
    try:
        return (yield)
    except Missing as error:
        lacking(str(error))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    try:
        return (yield)
    except Missing as error:
        lacking(str(error))


def lacking(reason: str) -> None:
    """Skip the test for what this machine lacks; in CI, where nothing may lack, fail it."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (a failure because CI is set)", pytrace=False)
    pytest.skip(reason)


def _no_namespaces() -> str:
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "there is no /dev/net/tun"
    try:
        Namespace("probe").close()
    except OSError as error:
        return str(error)
    return ""


# Leaks


def _children() -> dict[int, str]:
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            for pid in (task / "children").read_text().split():
                with contextlib.suppress(OSError):
                    command = Path(f"/proc/{pid}/cmdline").read_bytes()
                    found[int(pid)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def _reap(pids: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _new_children(before: dict[int, str]) -> dict[int, str]:
    """Return the children that are new and have not ended within LEAK_PATIENCE seconds."""
    end = time.monotonic() + LEAK_PATIENCE
    while new := {
        pid: name
        for pid, name in _children().items()
        if pid not in before.keys() | KEPT.keys() and name not in KEPT.values()
    }:
        _reap(set(new))
        if time.monotonic() > end:
            return {pid: name for pid, name in new.items() if pid in _children()}
        time.sleep(0.01)
    return {}


def _end_new_children(before: dict[int, str]) -> dict[int, str]:
    """Kill the children that are new and do not end by themselves; return them."""
    left = _new_children(before)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
    return left


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail the test that leaves a process or a descriptor behind, and end the process."""
    children, before = _children(), descriptors()
    yield
    left = _end_new_children(children)
    opened = _left_open(before)
    assert not left, f"the test left processes behind: {left}"
    assert not opened, f"the test left file descriptors open: {opened}"


def _left_open(before: dict[int, str]) -> dict[int, str]:
    """Return the descriptors that are new and were not closed within LEAK_PATIENCE seconds.

    The threads of a test's own servers close theirs when the last peer's end has reached them.
    """
    end = time.monotonic() + LEAK_PATIENCE
    while opened := {
        number: target for number, target in descriptors().items() if before.get(number) != target
    }:
        gc.collect()
        if time.monotonic() > end:
            break
        time.sleep(0.01)
    return opened


# Accounts, keys and servers


@pytest.fixture(scope="session")
def worker(request: pytest.FixtureRequest) -> str:
    """A name that no other test process has, of this run or of another beside it."""
    name = getattr(request.config, "workerinput", {}).get("workerid", "main")
    return f"{name}-{os.getpid()}"


@pytest.fixture(scope="session")
def account(worker: str, user_keys: Keyring) -> Iterator[Account]:
    """A user who can log in with every key of `user_keys`, and with a password under root.

    Root gets a user made for the tests; anybody else is that user, and nothing in their home is
    touched: tests then name an authorized_keys file to the server.
    """
    if os.geteuid() != 0:
        yield Account.current()
        return
    with temporary_account(f"culvert-{worker}") as user:
        user.authorize([user_keys.public(key_type) for key_type in KEY_TYPES])
        yield user


@pytest.fixture(scope="session")
def user_keys(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    """Private keys of every type, each of which `account` accepts."""
    return Keyring(tmp_path_factory.mktemp("user-keys"))


@pytest.fixture(scope="session")
def host_keys(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    """Host keys of every type, for whatever server a test starts."""
    return Keyring(tmp_path_factory.mktemp("host-keys"))


@pytest.fixture(scope="session")
def authorized_keys(user_keys: Keyring) -> Iterator[Path]:
    """An authorized_keys file, alone in its folder, with every key of `user_keys`."""
    with private_folder("authorized") as folder:
        path = folder / "authorized_keys"
        path.write_text("".join(f"{user_keys.public(key_type)}\n" for key_type in KEY_TYPES))
        path.chmod(0o600)
        yield path


@pytest.fixture(scope="session")
def serve(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[ServerKind, ServerSettings], Server]]:
    """A function that starts a server, or hands out again the one with the same settings.

    They run until the last test of this process is over.
    """
    children = _children()
    running: dict[str, Server] = {}

    def run(kind: ServerKind, settings: ServerSettings) -> Server:
        key = f"{kind.name} {settings}"
        if key not in running:
            try:
                running[key] = start(kind, settings, tmp_path_factory.mktemp(kind.name))
            except Missing as error:
                lacking(str(error))
            pid = running[key].process.pid
            KEPT[pid] = _children()[pid]
        assert running[key].process.poll() is None, f"the server ended:\n{running[key].log}"
        return running[key]

    with contextlib.ExitStack() as stops:
        yield run
        for server in running.values():
            stops.callback(server.stop)
    KEPT.clear()
    left = _end_new_children(children)
    assert not left, f"processes outlived their server: {left}"


@pytest.fixture
def need() -> Callable[[ClientKind], None]:
    """A function that skips the test, or in CI fails it, when a client is not installed."""

    def require(client: ClientKind) -> None:
        try:
            client.require()
        except Missing as error:
            lacking(str(error))

    return require
