"""What a confined process may do: nothing as root, nothing new, and nothing that it inherited."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.process import sandbox
from tests.processes import descriptors, status
from tests.unit.server.conftest import Dial, Serve, worker_of


@pytest.mark.root
@pytest.mark.parametrize("authenticated", [False, True])
def test_a_worker_never_runs_as_root_and_cannot_become_it(
    our_server: Serve, dial: Dial, authenticated: bool
) -> None:
    groups = os.getgroups()
    os.setgroups([*groups, 4711])  # as a server has that is started from a root's shell
    try:
        server = our_server()
    finally:
        os.setgroups(groups)
    client = dial(server)
    if authenticated:
        client.log_in()
    else:
        assert client.until(lambda connection: connection.transport.peer_version)
    (worker,) = worker_of(server)
    own = next(
        pwd.getpwnam(name) for name in sandbox.USERS if name in {u.pw_name for u in pwd.getpwall()}
    )
    fields = status(worker)
    assert fields["Uid"] == [str(own.pw_uid)] * 4
    assert fields["Gid"] == [str(own.pw_gid)] * 4
    assert fields["Groups"] == []
    assert fields["NoNewPrivs"] == ["1"]
    for name in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
        assert int(fields[name][0], 16) == 0


@pytest.mark.root
def test_a_workers_root_directory_is_empty_and_nobody_can_write_there(
    our_server: Serve, dial: Dial
) -> None:
    server = our_server()
    dial(server).log_in()
    (worker,) = worker_of(server)
    root = Path(f"/proc/{worker}/root")
    assert list(root.iterdir()) == []
    assert "(deleted)" in os.readlink(root)
    assert "(deleted)" in os.readlink(f"/proc/{worker}/cwd")
    with pytest.raises(OSError, match="No such file"):  # a directory that was removed takes nothing
        (root / "file").touch()


@pytest.mark.root
def test_a_workers_limits_leave_no_new_process_no_core_and_little_memory(
    our_server: Serve, dial: Dial
) -> None:
    server = our_server()
    dial(server).log_in()
    (worker,) = worker_of(server)
    lines = Path(f"/proc/{worker}/limits").read_text().splitlines()
    limits = {line[:26].strip(): line[26:].split()[:2] for line in lines}
    assert limits["Max processes"] == ["0", "0"]
    assert limits["Max core file size"] == ["0", "0"]
    assert limits["Max data size"] == [str(sandbox.DATA_LIMIT)] * 2
    assert limits["Max open files"][0] == limits["Max open files"][1]


@pytest.mark.root
def test_a_worker_holds_nothing_but_its_connection_and_its_monitor(
    our_server: Serve, dial: Dial
) -> None:
    server = our_server()
    dial(server).log_in()
    (worker,) = worker_of(server)
    rest = [name for fd, name in sorted(descriptors(worker).items()) if fd > 2]
    sockets = [name for name in rest if name.startswith("socket:")]
    others = [name for name in rest if not name.startswith("socket:")]
    assert len(sockets) == 2, rest
    assert [name for name in others if name != "anon_inode:[eventpoll]"] == []


def test_a_server_of_an_ordinary_user_gives_up_what_it_can() -> None:
    """In a process of its own, which enters the sandbox without being root."""
    code = (
        "import os\n"
        "from appliance.process import sandbox\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "assert sandbox.prepare() is None\n"
        "sandbox.enter(None)\n"
        "print(open('/proc/self/status').read())\n"
        "try: os.fork()\n"
        "except BlockingIOError: print('no fork')\n"
    )
    folder = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, cwd=folder, timeout=30, env={"PYTHONPATH": str(folder)},
    )  # fmt: skip
    assert "NoNewPrivs:\t1" in done.stdout, done.stderr
    if os.geteuid() == 0:
        assert "no fork" in done.stdout


def test_entering_the_sandbox_fails_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise PermissionError(1, "no")

    monkeypatch.setattr(os, "fchdir", broken)
    with pytest.raises(PermissionError):
        sandbox.enter(sandbox.SandboxUser(65534, 65534, -1))
