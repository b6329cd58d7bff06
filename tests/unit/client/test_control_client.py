"""A control socket that nobody answers at, or somebody else."""

import os
import pwd
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.aio.listening import identity
from appliance.client.control_client import ControlClient, NoMaster, _remove_dead
from appliance.client.host_options import HostOptions
from tests.peers import private_folder


@pytest.mark.parametrize("is_new", [False, True])
def test_a_dead_socket_is_removed_but_not_the_one_that_took_its_place(
    tmp_path: Path, is_new: bool
) -> None:
    """Of two clients that find a dead one, the slower must not remove the faster one's."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as living:
        dead.bind(str(path))
        found = identity(bytes(path))
        if is_new:
            path.unlink()
            living.bind(str(path))
            living.listen()
        _remove_dead(str(path), found)
        assert os.listdir(tmp_path) == (["s"] if is_new else [])
        if is_new:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))


def share(path: Path) -> ControlClient:
    """What a client with this ControlPath does first."""
    options = HostOptions()
    options.control_path = str(path)
    return ControlClient(options)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where everybody may make files, as in /tmp."""
    with private_folder("shared") as path:
        path.chmod(0o1777)
        yield path


@pytest.mark.root
@pytest.mark.parametrize("is_given_away", [False, True])
def test_a_socket_that_somebody_else_listens_at_gets_nothing(
    folder: Path, is_given_away: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "s"
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:  # nobody's process
        os.setresuid(*(pwd.getpwnam("nobody").pw_uid,) * 3)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as planted:
            planted.bind(str(path))
            planted.listen()
            os.write(told, b"x")
            client, _ = planted.accept()
            os._exit(bool(client.recv(100)))
    os.read(ready, 1)
    for fd in (ready, told):
        os.close(fd)
    if is_given_away:  # the file is ours, and the listener is not
        os.chown(path, 0, 0)
    with pytest.raises(NoMaster):
        share(path)
    assert f"{path} is not used: it belongs to somebody else" in capsys.readouterr().err
    assert os.waitpid(pid, 0)[1] == 0


def test_a_link_to_another_socket_is_not_followed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may lead to the master of another host."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(str(folder / "other"))
        other.listen()
        (folder / "s").symlink_to(folder / "other")
        with pytest.raises(NoMaster):
            share(folder / "s")
        assert "is not used: it is a link" in capsys.readouterr().err
        ours = share(folder / "other")
        ours._socket.close()
