"""Several clients that write one known_hosts file at the same time."""

import os
import threading
from pathlib import Path

from appliance.client.known_hosts_file import locked


def test_no_line_is_lost_or_torn_between_who_adds_and_who_replaces(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"

    def add(name: str) -> None:
        for number in range(50):
            with locked(str(path)) as file:
                file.write(f"{name} {number}\n".encode())

    def replace() -> None:
        for _ in range(50):
            with locked(str(path)) as file:
                file.seek(0)
                (tmp_path / "new").write_bytes(file.read())
                os.replace(tmp_path / "new", path)

    work = [threading.Thread(target=add, args=(name,)) for name in ("a", "b", "c")]
    work.append(threading.Thread(target=replace))
    for each in work:
        each.start()
    for each in work:
        each.join()
    lines = path.read_text().splitlines()
    for name in ("a", "b", "c"):
        assert [line for line in lines if line.startswith(name)] == [
            f"{name} {number}" for number in range(50)
        ]


def test_a_file_that_is_removed_meanwhile_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    with locked(str(path)):
        waiting = threading.Thread(target=lambda: write(path))
        waiting.start()
        path.unlink()
    waiting.join()
    assert path.read_text() == "line\n"


def write(path: Path) -> None:
    with locked(str(path)) as file:
        file.write(b"line\n")
