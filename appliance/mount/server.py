"""The SFTP server of a mount: a session that is opened again whenever it was lost.

    await server.start()            the first session; raises whatever stands in its way
    await server.client()           the client of the session, once there is one
    await server.ask(operation)     runs it with a client, once more if the session was lost

Handles belong to one session; ``number`` tells sessions apart.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar

from ..aio.loop import Loop
from ..aio.tasks import Future, Task
from ..aio.threads import in_thread
from ..client.sftp_session import SftpSession
from ..errors import CulvertError, PeerError, system_error
from ..files.sftp_client import SftpClient
from ..wire import sftp

_log = logging.getLogger(__name__)

# Blocks until the server has let us in; the function that it returns makes the session.
Connect = Callable[[], Callable[[Loop], SftpSession]]
T = TypeVar("T")
# Takes a client, and whether this is a repetition.
Operation = Callable[[SftpClient, bool], Coroutine[Future[Any], None, T]]

# Our own choices
ATTEMPTS: Final = 3  # of a request with which the session was lost: it may be what breaks it
FIRST_PAUSE: Final = 0.5  # seconds between two attempts to connect; doubled up to ...
LONGEST_PAUSE: Final = 15.0


class Server:
    """Keeps a session with the server."""

    def __init__(self, loop: Loop, connect: Connect, patience: float) -> None:
        """``patience``: seconds that a request waits for a session."""
        self._loop = loop
        self._connect = connect
        self._patience = patience
        self._session: SftpSession | None = None
        self._client: SftpClient | None = None
        self._waiting: list[Future[None]] = []
        self._pause = FIRST_PAUSE
        self._is_closed = False
        self._on_session: list[Callable[[], None]] = []
        self.number = 0  # of the session, from 1
        self.read_limit = self.write_limit = sftp.PLAIN_DATA_LIMIT  # bytes of one request
        self._extensions: Mapping[str, bytes] = {}
        self.last_error = ""
        self._past_traffic = 0, 0  # of sessions that have ended

    async def start(self) -> SftpClient:
        """Opens the first session; raises CulvertError."""
        await self._begin(self._connect()(self._loop))
        return self.client_now()

    def close(self) -> None:
        """Ends the session for good."""
        self._is_closed = True
        session, self._session, self._client = self._session, None, None
        if session is not None:
            session.close()
        self._release()

    def on_session(self, callback: Callable[[], None]) -> None:
        """Calls ``callback`` for every session but the first."""
        self._on_session.append(callback)

    # -- sessions ----------------------------------------------------------------------

    async def _begin(self, session: SftpSession) -> None:
        self._session = session
        await session.start()
        self.number += 1
        self._client = session.client
        self._extensions = session.client.extensions
        self.read_limit, self.write_limit = session.client.read_limit, session.client.write_limit
        session.client.when_ended(self._lost)
        self._pause = FIRST_PAUSE
        self.last_error = ""

    def _lost(self, error: PeerError) -> None:
        """Takes note that the session has ended, before its requests fail."""
        if self._is_closed or self._client is None:
            return
        self.last_error = str(error)
        _log.warning("the connection was lost: %s", error)
        self._client = None
        self._loop.call_soon(self._reconnect)

    def _reconnect(self) -> None:
        if not self._is_closed:
            Task(self._loop, self._connect_again())

    async def _connect_again(self) -> None:
        self._end_session()
        try:
            attach = await in_thread(self._loop, self._connect)
            if self._is_closed:
                attach(self._loop).close()
                return
            await self._begin(attach(self._loop))
        except (CulvertError, OSError) as error:
            self._failed(error)
            return
        _log.warning("connected again")
        for callback in self._on_session:
            callback()
        self._release()

    def _failed(self, error: Exception) -> None:
        if str(error) != self.last_error:
            self.last_error = str(error)
            _log.warning("cannot connect: %s", error)
        self._end_session()
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        self._loop.call_later(pause, self._reconnect)

    def _end_session(self) -> None:
        self._past_traffic = self.traffic
        session, self._session = self._session, None
        if session is not None:
            session.close()

    # -- requests ----------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        """Whether there is a session."""
        return self._client is not None

    @property
    def traffic(self) -> tuple[int, int]:
        """Returns the bytes of SFTP from and to the server, of all sessions."""
        received, sent = self._past_traffic
        if self._session is None:
            return received, sent
        client = self._session.client
        return received + client.received_bytes, sent + client.sent_bytes

    def client_now(self) -> SftpClient:
        """Returns the client; raises OSError while there is no session."""
        if self._client is None:
            raise system_error(errno.ETIMEDOUT)
        return self._client

    def has(self, extension: str) -> bool:
        """Whether the server has announced the extension, in this session or the last one."""
        return extension in self._extensions

    async def client(self) -> SftpClient:
        """Waits for a session; raises OSError after ``patience``."""
        if self._client is not None:
            return self._client
        future: Future[None] = Future()
        self._waiting.append(future)
        timer = self._loop.call_later(self._patience, self._give_up, future)
        try:
            await future
        finally:
            timer.cancel()
        return self.client_now()

    def _give_up(self, future: Future[None]) -> None:
        if future in self._waiting:
            self._waiting.remove(future)
            future.resolve(None)

    def _release(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            future.resolve(None)

    async def ask(self, operation: Callable[[SftpClient], Coroutine[Future[Any], None, T]]) -> T:
        """Returns the result of an operation that may be done twice, if the session is lost."""
        return await self.change(lambda client, _: operation(client))

    async def insist(self, operation: Operation[T]) -> T:
        """As ``change``, however long the server cannot be reached."""
        attempt = 0
        while True:
            try:
                client = await self.client()
            except OSError:
                if self._is_closed:
                    raise
                continue
            try:
                return await operation(client, attempt > 0)
            except PeerError:
                attempt += 1
                if client is self._client or self._is_closed or attempt == ATTEMPTS:
                    raise

    async def change(self, operation: Operation[T]) -> T:
        """As ``ask``, for one that is told whether it may have been done already."""
        for attempt in range(ATTEMPTS):
            client = await self.client()
            try:
                return await operation(client, attempt > 0)
            except PeerError:
                if client is self._client or attempt == ATTEMPTS - 1:
                    raise  # a reply that this request cannot have, or it is what breaks sessions
        raise AssertionError
