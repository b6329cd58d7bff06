"""Ansible's own way with ssh: ControlPersist, a terminal or none, files by SFTP or through pipes.

The OpenSSH of these tests has no SFTP subsystem, so that Ansible has to pipe the files there.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

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
    find_program("ansible-playbook")
    program = write_program(tmp_path / "ssh", words_of(client, server, login))
    (tmp_path / "file").write_bytes(os.urandom(1 << 20))
    (tmp_path / "ansible.cfg").touch()
    (tmp_path / "playbook.json").write_text(json.dumps(PLAYBOOK))
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

    before = logins(server)
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
    assert "ok=4" in done.stdout
    assert (there / "file").read_bytes() == (tmp_path / "file").read_bytes()
    assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()
    assert len(sockets) == 1
    assert logins(server) == before + 1
