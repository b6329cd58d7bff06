"""An SSH client made with AsyncSSH, as a peer for Culvert's server.

Standard input, output and error are those of the remote command; so is the exit status, and a
signal that ended it is printed to standard error as `signal NAME`.
"""

import argparse
import asyncio
import os
import sys
from typing import Any

import asyncssh

from tests.interop.library_options import parse


async def forward(connection: asyncssh.SSHClientConnection, chosen: argparse.Namespace) -> None:
    """Forward ports of the loopback until the connection is over."""
    for spec in chosen.L:
        port, host, target = spec.split(":")
        await connection.forward_local_port("127.0.0.1", int(port), host, int(target))
    for spec in chosen.R:
        port, host, target = spec.split(":")
        await connection.forward_remote_port("127.0.0.1", int(port), host, int(target))
    for port in chosen.D:
        await connection.forward_socks("127.0.0.1", int(port))
    await connection.wait_closed()


async def main() -> int:
    chosen = parse()
    options: dict[str, Any] = {}
    for option, name in (
        ("kex_algs", chosen.kex),
        ("server_host_key_algs", chosen.host_key),
        ("encryption_algs", chosen.cipher),
        ("mac_algs", chosen.mac),
    ):
        if name is not None:
            options[option] = [name]
    if chosen.rekey_bytes is not None:
        options["rekey_bytes"] = chosen.rekey_bytes
    async with asyncssh.connect(
        chosen.address,
        chosen.port,
        config=None,
        username=chosen.user,
        known_hosts=chosen.known_hosts,
        client_keys=[chosen.key] if chosen.method == "publickey" else None,
        password=None if chosen.method == "publickey" else os.environ["TEST_PASSWORD"],
        preferred_auth=chosen.method,
        agent_path=os.environ["SSH_AUTH_SOCK"] if chosen.A else None,
        agent_forwarding=chosen.A,
        compression_algs=["zlib@openssh.com"] if chosen.compression else ["none"],
        **options,
    ) as connection:
        if chosen.N:
            await forward(connection, chosen)
            return 0
        if chosen.sftp:
            way, source, target = chosen.sftp
            async with connection.start_sftp_client() as sftp:
                copy = sftp.put if way == "put" else sftp.get
                await copy(source, target, recurse=True, preserve=True)
            return 0
        if chosen.pty:
            term, rows, columns = chosen.pty.split(",")
            options = {"term_type": term, "term_size": (int(columns), int(rows))}
        else:
            options = {}
        process = await connection.create_process(
            None if chosen.subsystem else chosen.command,
            subsystem=chosen.command if chosen.subsystem else None,
            env=dict(pair.split("=", 1) for pair in chosen.env),
            stdin=os.dup(0),  # it closes them
            stdout=asyncssh.PIPE if chosen.signal else os.dup(1),
            stderr=os.dup(2),
            encoding=None,
            **options,
        )
        if chosen.signal:
            os.write(1, await process.stdout.read(1))
            process.send_signal(chosen.signal)
        done = await process.wait()
    if done.exit_signal is not None:
        print(f"signal {done.exit_signal[0]}", file=sys.stderr)
        return 255
    return done.exit_status if done.exit_status is not None else 254


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except (OSError, asyncssh.Error) as error:
        sys.exit(f"{type(error).__name__}: {error}")
