"""A server's session in memory: a real loop and real programs, no socket and no other identity."""

import contextlib
import fcntl
import os
import pty
import socket
import subprocess
import termios
import threading
import time
from collections.abc import Callable
from typing import Unpack

from appliance.aio.loop import Loop
from appliance.services.base import Listening, Process, Refused
from appliance.services.session import Session
from appliance.services.x11_server import X11Display
from appliance.ssh.channels import Channel
from appliance.ssh.connection import Connection
from appliance.wire.session import X11Request
from tests.protocol.harness import Event, Limits, Pair, Recording


class FakeDriver:
    """What services ask of a driver: its loop, and to send what waits."""

    def __init__(self, pair: Pair, connection: Connection) -> None:
        self.loop = Loop()
        self.connection = connection
        self.pair = pair
        self.flushed = 0

    def flush(self) -> None:
        self.flushed += 1

    def run_until(self, condition: Callable[[], object], seconds: float = 10) -> None:
        """Serve, and move bytes between the two sides, until `condition` holds."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it does not happen"
            self.loop.call_later(0.005, lambda: None)
            self.loop._turn()
            self.pair.pump()


def _take_terminal() -> None:
    """In the child: its input becomes its controlling terminal."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class FakePrivileges:
    """Programs of whoever runs the test."""

    def __init__(self) -> None:
        self.asked: list[Event] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.displays: list[int] = []  # of each program
        self.slave = -1
        self.refuses: set[str] = set()
        self.loses_status = False

    def _ask(self, name: str, *values: object) -> None:
        if name in self.refuses:
            raise Refused("no")
        self.asked.append((name, *values))

    def open_pty(self) -> int:
        self._ask("open_pty")
        master, self.slave = pty.openpty()
        return master

    def close_pty(self, master: int) -> None:
        os.fstat(master)
        self._ask("close_pty")
        os.close(self.slave)

    def spawn(
        self,
        kind: str,
        command: bytes,
        environment: tuple[tuple[bytes, bytes], ...],
        master: int | None,
        display: int,
    ) -> Process:
        self._ask("spawn", kind, command, environment, master is not None)
        self.displays.append(display)
        status_read, status_write = os.pipe()
        stderr_read: int | None
        argv = ["/bin/sh", "-c", command.decode() or "exec cat"]
        if master is None:
            (stdin, stdin_write), (stdout_read, stdout) = os.pipe(), os.pipe()
            stderr_read, stderr = os.pipe()
        else:
            stdin = stdout = stderr = self.slave
            stdin_write = stdout_read = master
            stderr_read = None
        process = subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=None if master is None else _take_terminal,
        )
        for fd in {stdin, stdout, stderr}:
            os.close(fd)
        self.processes.append(process)

        def watch() -> None:
            code = process.wait()
            status = -code if code < 0 else code << 8
            with contextlib.suppress(BrokenPipeError):  # the session is over
                if not self.loses_status:
                    os.write(status_write, status.to_bytes(4, "big"))
            os.close(status_write)

        self.watcher = threading.Thread(target=watch)
        self.watcher.start()
        return Process(process.pid, stdin_write, stdout_read, stderr_read, status_read)

    def signal(self, process: int, name: str) -> None:
        self._ask("signal", name)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            self.watcher.join()


class SessionTest:
    """A session and the client's end of its channel."""

    def __init__(self, **settings: Unpack[Limits]) -> None:
        self.pair = Pair(**settings).log_in()
        self.channel, accepted = self.pair.open()
        self.accepted: Channel = accepted
        self.driver = FakeDriver(self.pair, self.pair.server)
        self.privileges = FakePrivileges()
        self.ended = self.agents = 0
        self.no_agent = self.no_display = False
        self.display_port = 0
        self.display_requests: list[X11Request] = []
        self.offered: list[socket.socket] = []
        self.closed_displays: list[int] = []
        self.session = Session(
            accepted,
            self.privileges,
            self.driver,  # type: ignore[arg-type]
            ("LANG", "LC_*"),
            self._forward_agent,
            self._forward_x11,
            self._end,
        )
        accepted.handler = self.session
        self.replies: list[bool] = []

    def _forward_agent(self) -> None:
        if self.no_agent:
            raise Refused("no")
        self.agents += 1

    def _forward_x11(self, request: X11Request) -> X11Display:
        if self.no_display:
            raise Refused("no")
        sock = socket.create_server(("127.0.0.1", 0))
        self.display_port = sock.getsockname()[1]
        listening = Listening(7, self.display_port, [sock])
        self.display_requests.append(request)
        return X11Display(
            self.driver.loop,
            listening,
            request.single_connection,
            self.offered.append,
            self.closed_displays.append,
        )

    def _end(self) -> None:
        self.ended += 1

    @property
    def client(self) -> Recording:
        handler = self.channel.handler
        assert isinstance(handler, Recording)
        return handler

    def request(self, name: str, data: bytes = b"") -> bool:
        """A request of the client's, and its answer."""
        count = len(self.replies)
        self.channel.request(name, data, self.replies.append)
        self.pair.pump()
        assert len(self.replies) == count + 1, self.pair.server.transport.error
        return self.replies[-1]

    def output(self) -> bytes:
        """What the client has received so far."""
        return b"".join(e[1] for e in self.client.events if e[0] == "data")

    def errors(self) -> bytes:
        events = self.client.events
        return b"".join(e[2] for e in events if e[0] == "extended_data")

    def has(self, *event: object) -> bool:
        return event in self.client.events

    def run_until(self, condition: Callable[[], object], seconds: float = 10) -> None:
        self.driver.run_until(condition, seconds)

    def close(self) -> None:
        self.pair.server.transport.close()
        self.pair.pump()
        self.privileges.close()
        self.driver.loop.close()
