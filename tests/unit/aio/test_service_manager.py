"""sd_notify: told to whoever asked, and nobody else."""

import socket
from pathlib import Path

import pytest

from appliance.aio.service_manager import notify


@pytest.mark.parametrize("abstract", [False, True])
def test_a_service_manager_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    name = f"@culvert-test-{tmp_path}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0", 1) if abstract else name)
        manager.settimeout(2)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify("READY=1", "STATUS=2 of 2 links up")
        assert manager.recv(4096) == b"READY=1\nSTATUS=2 of 2 links up"


@pytest.mark.parametrize("where", ["", "/nowhere/at/all", "not-a-path"])
def test_without_a_service_manager_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", where)
    notify("READY=1")
