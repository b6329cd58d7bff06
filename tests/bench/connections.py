"""The one client of the rows that measure a server: logins in parallel, or connections held open.

AsyncSSH makes a login cheaply enough to keep a server busy, and it is the same for every server.
`logins` prints how many a second succeeded; `hold` says `ready` and holds its connections until
its standard input ends; `attack` opens `--count` a second, from another address, and closes each
once the server has said its name, until its standard input ends.
"""

import argparse
import asyncio
import contextlib
import sys
import time
from typing import Any

import asyncssh

AT_ONCE = 4


async def logins(count: int, connect: dict[str, Any]) -> None:
    """Log in `count` times, AT_ONCE at a time, and print logins per second."""
    limit = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with limit, asyncssh.connect(**connect):
            pass

    await one()  # what is done once only, on either side
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(one())
    print(count / (time.perf_counter() - began))


async def hold(count: int, connect: dict[str, Any]) -> None:
    """Hold `count` connections, logged in and idle, until standard input ends."""
    connections = [await asyncssh.connect(**connect) for _ in range(count)]
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for connection in connections:
        connection.close()


ATTACKER = "127.0.0.2"


async def attack(rate: int, connect: dict[str, Any]) -> None:
    """Open `rate` connections a second, as regularly as one can, until standard input ends."""

    async def one() -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(5):
                reader, writer = await asyncio.open_connection(
                    connect["host"], connect["port"], local_addr=(ATTACKER, 0)
                )
                await reader.read(1)
                writer.close()

    loop = asyncio.get_running_loop()
    over = loop.run_in_executor(None, sys.stdin.read)
    attempts: set[asyncio.Task[None]] = set()
    due = loop.time()
    print("ready", flush=True)
    while not over.done():
        attempt = loop.create_task(one())
        attempts.add(attempt)
        attempt.add_done_callback(attempts.discard)
        due += 1 / rate
        await asyncio.sleep(max(0.0, due - loop.time()))
    await asyncio.gather(*attempts)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=("logins", "hold", "attack"))
    parser.add_argument("--count", type=int, required=True)
    for name in ("--address", "--known-hosts", "--user", "--key"):
        parser.add_argument(name, required=True)
    parser.add_argument("--port", type=int, required=True)
    chosen = parser.parse_args()
    connect = {
        "host": chosen.address,
        "port": chosen.port,
        "username": chosen.user,
        "known_hosts": chosen.known_hosts,
        "client_keys": [chosen.key],
        "agent_path": None,
        "config": None,
    }
    work = {"logins": logins, "hold": hold, "attack": attack}[chosen.work]
    asyncio.run(work(chosen.count, connect))


if __name__ == "__main__":
    main()
