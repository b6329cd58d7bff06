"""Ansible's own way with ssh: ControlPersist, a terminal or none, files by each of its methods."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.hard_names import HARD_NAMES, is_utf8
from tests.interop.conftest import BESIDE_OPENSSH, OURS, logins, pair_of, words_of, write_program
from tests.netns import wait_until
from tests.peers import (
    ClientKind,
    Login,
    Server,
    environment,
    find_program,
    private_folder,
)

PLAYBOOK = [
    {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [
            {"name": "answers", "ansible.builtin.ping": {}},
            {
                "name": "takes",
                "ansible.builtin.copy": {"src": "{{ here }}/file", "dest": "{{ there }}/file"},
            },
            {
                "name": "gives",
                "ansible.builtin.fetch": {
                    "src": "{{ there }}/file", "dest": "{{ here }}/back", "flat": True,
                },
            },
            {
                "name": "fails",
                "ansible.builtin.command": "sh -c 'echo said; exit 7'",
                "register": "done",
                "failed_when": "done.rc != 7 or done.stdout != 'said'",
            },
        ],
    }
]  # fmt: skip


def play(
    playbook: list[dict[str, Any]],
    client: ClientKind,
    server: Server,
    login: Login,
    there: Path,
    tmp_path: Path,
    method: str,
) -> tuple[str, int]:
    """Run a playbook that succeeds; return what it told, and its control sockets."""
    find_program("ansible-playbook")
    program = write_program(tmp_path / "ssh", words_of(client, server, login))
    (tmp_path / "ansible.cfg").touch()
    (tmp_path / "playbook.json").write_text(json.dumps(playbook))
    host = {
        "ansible_host": server.address,
        "ansible_port": server.port,
        "ansible_user": login.user,
        "ansible_ssh_executable": str(program),
        "ansible_ssh_transfer_method": method,
        "ansible_sftp_extra_args": f"-S {program}",
        "ansible_scp_extra_args": f"-S {program}",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_remote_tmp": str(there / "tmp"),
        "here": str(tmp_path),
        "there": str(there),
    }
    inventory = {"all": {"hosts": {"far": host}}}
    (tmp_path / "inventory.json").write_text(json.dumps(inventory))
    argv = [find_program("ansible-playbook"), "-i", str(tmp_path / "inventory.json")]

    with private_folder("ansible") as control:
        env = {
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(control),
            "ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg"),
        }
        env |= {"ANSIBLE_NOCOLOR": "1"}
        done = subprocess.run(
            [*argv, str(tmp_path / "playbook.json")],
            env=environment(tmp_path, env), stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=60, check=False, start_new_session=True,
        )  # fmt: skip
        sockets = list(control.iterdir())
        for path in sockets:  # the master stays for a minute otherwise
            client.run(server, login, None, options=["-S", str(path), "-O", "exit"])
            assert wait_until(lambda path=path: not path.exists())  # type: ignore[misc]
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, len(sockets)


@pytest.mark.parametrize(
    ("client", "server", "method"),
    [
        *(pair_of(*names, "piped") for names in BESIDE_OPENSSH),
        *(
            pair_of(client, OURS, method, name=method)
            for client in ("openssh", OURS)
            for method in ("sftp", "scp")
        ),
    ],
    indirect=["client", "server"],
)
def test_a_playbook_by_one_connection(
    client: ClientKind, server: Server, login: Login, there: Path, tmp_path: Path, method: str
) -> None:
    (tmp_path / "file").write_bytes(os.urandom(1 << 20))
    before = logins(server)
    told, sockets = play(PLAYBOOK, client, server, login, there, tmp_path, method)
    assert "ok=4" in told
    assert (there / "file").read_bytes() == (tmp_path / "file").read_bytes()
    assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()
    assert sockets == 1
    assert logins(server) == before + 1


@pytest.mark.parametrize(
    ("client", "server", "method"),
    [pair_of("openssh", OURS, method, name=method) for method in ("sftp", "scp", "piped")],
    indirect=["client", "server"],
)
def test_hard_names_arrive(
    client: ClientKind, server: Server, login: Login, there: Path, tmp_path: Path, method: str
) -> None:
    # Ansible itself expands a '$', and quotes a backslash for a shell, which is not how sftp reads
    # it. A third of the names takes time enough: each costs four sessions.
    names = [name for name in HARD_NAMES if is_utf8(name) and not set(name) & set(b"\\$")][::3]
    (tmp_path / "hard").mkdir()
    for number, name in enumerate(names):
        (tmp_path / "hard" / os.fsdecode(name)).write_text(str(number))
    copied = {"src": "{{ here }}/hard/", "dest": "{{ there }}/hard/"}
    tasks = [{"name": "takes", "ansible.builtin.copy": copied}]
    playbook = [{"hosts": "all", "gather_facts": False, "tasks": tasks}]
    play(playbook, client, server, login, there, tmp_path, method)
    found = {path.name: path.read_text() for path in (there / "hard").iterdir()}
    assert found == {os.fsdecode(name): str(number) for number, name in enumerate(names)}
