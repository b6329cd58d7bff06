"""What every client does with what a server sends around a session: banner and host keys."""

import contextlib
import logging

from ..errors import MalformedMessage, PeerError
from ..log import harmless
from ..ssh.connection import Connection, ConnectionHandler
from ..wire.host_keys import HOSTKEYS
from .host_options import HostOptions
from .prompts import show

_log = logging.getLogger(__name__)


class Greeting(ConnectionHandler):
    """Shows the banner, and keeps the server's other host keys (UpdateHostKeys)."""

    def __init__(self, options: HostOptions, quiet: bool) -> None:
        self._options = options
        self._quiet = quiet
        self._connection: Connection | None = None
        self._told_keys = False
        self._host_keys = b""  # an announcement that came before logged_in()

    def logged_in(self, connection: Connection) -> None:
        """Takes the connection that the login has returned."""
        self._connection = connection
        if self._host_keys:
            self._update_host_keys(connection, self._host_keys)

    def global_request(self, name: str, data: bytes) -> bytes | None:
        wanted = self._options.update_host_keys != "no" and self._options.user_known_hosts_files
        if name == HOSTKEYS and wanted and not self._told_keys:
            self._told_keys = True
            if self._connection is None:
                self._host_keys = data
            else:
                self._update_host_keys(self._connection, data)
        return None

    def _update_host_keys(self, connection: Connection, data: bytes) -> None:
        from .host_keys_update import HostKeysUpdate

        with contextlib.suppress(MalformedMessage):  # only the update is skipped
            HostKeysUpdate(self._options, connection).announced(data)

    def banner(self, text: str) -> None:
        if not self._quiet:
            show(harmless(text))

    def closed(self, error: PeerError | None) -> None:
        if error is not None:
            _log.debug("connection closed: %s", error)
