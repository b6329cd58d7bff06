"""A control socket that nobody answers at."""

import os
import socket
from pathlib import Path

import pytest

from appliance.aio.listening import identity
from appliance.cli.control_client import _remove_dead


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
