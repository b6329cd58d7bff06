"""An SSH server made with AsyncSSH, as a peer for Culvert's client.

It runs what it is asked to run as the user who started it, whoever logs in.
"""

import argparse
import asyncio
import contextlib
import fcntl
import os
import pty
import struct
import sys
import termios
from collections.abc import Sequence

import asyncssh

from tests.interop import algorithms


class Accounts(asyncssh.SSHServer):
    """Lets the given users in: by key, by password, or by the password as an answer."""

    def __init__(self, accounts: Sequence[tuple[str, str, str]]) -> None:
        self._passwords = {name: password for name, password, _ in accounts}
        self._keys = {name: keys for name, _, keys in accounts}
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> bool:
        return True

    def server_requested(self, listen_host: str, listen_port: int) -> bool:
        return True

    def unix_connection_requested(self, dest_path: str) -> bool:
        return True

    def unix_server_requested(self, listen_path: str) -> bool:
        return True

    def begin_auth(self, username: str) -> bool:
        assert self._connection is not None
        if username in self._keys:
            self._connection.set_authorized_keys(self._keys[username])
        return True

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return bool(password) and self._passwords.get(username) == password

    def kbdint_auth_supported(self) -> bool:
        return True

    def get_kbdint_challenge(
        self, username: str, lang: str, submethods: str
    ) -> tuple[str, str, str, list[tuple[str, bool]]]:
        return "", "", "", [("Password: ", False)]

    def validate_kbdint_response(self, username: str, responses: Sequence[str]) -> bool:
        return len(responses) == 1 and self.validate_password(username, responses[0])


async def run(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Run what the client asked for, on a terminal if it asked for one."""
    if process.subsystem is not None:
        command = ["cat"] if process.subsystem == "echo" else ["false"]
    elif process.command is not None:
        command = ["/bin/sh", "-c", process.command]
    else:
        command = ["/bin/sh"]
    env = {"PATH": os.environ["PATH"], **process.env}
    if agent := process.channel.get_agent_path():
        env["SSH_AUTH_SOCK"] = agent
    if process.term_type is None:
        await _run_on_pipes(process, command, env)
    else:
        await _run_on_terminal(process, command, env | {"TERM": process.term_type})


async def _run_on_pipes(
    process: asyncssh.SSHServerProcess[bytes], command: list[str], env: dict[str, str]
) -> None:
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        *command, stdin=pipe, stdout=pipe, stderr=pipe, env=env
    )
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    feeding = asyncio.create_task(_feed(process, child.stdin))
    async with asyncio.TaskGroup() as copying:
        copying.create_task(_copy(child.stdout, process.stdout))
        copying.create_task(_copy(child.stderr, process.stderr))
    status = await child.wait()
    feeding.cancel()
    _report(process, status)


async def _feed(
    process: asyncssh.SSHServerProcess[bytes], standard_input: asyncio.StreamWriter
) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while data := await process.stdin.read(65536):
            standard_input.write(data)
            await standard_input.drain()
        standard_input.close()


async def _copy(source: asyncio.StreamReader, target: asyncssh.SSHWriter[bytes]) -> None:
    while data := await source.read(65536):
        target.write(data)
        await target.drain()


async def _run_on_terminal(
    process: asyncssh.SSHServerProcess[bytes], command: list[str], env: dict[str, str]
) -> None:
    master, slave = pty.openpty()
    columns, rows, width, height = process.term_size
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, width, height))

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    child = await asyncio.create_subprocess_exec(
        *command, stdin=slave, stdout=slave, stderr=slave, env=env, preexec_fn=take_terminal
    )
    os.close(slave)

    def show(size: tuple[int, int, int, int]) -> None:
        columns, rows, width, height = size
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, width, height))

    async def type_in() -> None:
        while not process.stdin.at_eof():
            try:
                os.write(master, await process.stdin.read(4096))
            except asyncssh.TerminalSizeChanged as change:
                show(change.term_size)

    typing = asyncio.create_task(type_in())
    loop = asyncio.get_running_loop()
    while data := await loop.run_in_executor(None, _read_terminal, master):
        process.stdout.write(data)
    typing.cancel()
    os.close(master)
    _report(process, await child.wait())


def _read_terminal(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # EIO: nobody has it open any more
        return b""


def _report(process: asyncssh.SSHServerProcess[bytes], status: int) -> None:
    if status < 0:
        names = {9: "KILL", 15: "TERM", 2: "INT", 1: "HUP"}
        process.exit_with_signal(names.get(-status, "TERM"))
    else:
        process.exit(status)


async def serve() -> None:
    """Listen as the command line says, until a signal ends the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host-key", action="append", required=True)
    parser.add_argument("--account", nargs=3, action="append", default=[])
    chosen = parser.parse_args()
    accounts = [tuple(words) for words in chosen.account]
    await asyncssh.listen(
        chosen.address,
        chosen.port,
        server_host_keys=chosen.host_key,
        server_factory=lambda: Accounts(accounts),
        process_factory=run,
        sftp_factory=True,
        encoding=None,
        line_editor=False,
        kex_algs=list(algorithms.KEY_EXCHANGES),
        compression_algs=["zlib@openssh.com", "zlib", "none"],
    )
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncssh.set_log_level("INFO")
    sys.exit(asyncio.run(serve()))
