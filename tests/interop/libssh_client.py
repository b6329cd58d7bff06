"""An SSH client made with libssh, as a peer for Culvert's server.

Standard output is that of the remote command; so is the exit status.
"""

import ctypes
import os
import sys
from typing import Any

from tests.interop.library_options import parse

LIBRARY = "libssh.so.4"

# libssh.h
_HOST, _PORT, _USER, _KNOWN_HOSTS, _PROCESS_CONFIG = 0, 1, 4, 8, 38
_OK = 0
_CIPHERS_TO_SERVER, _CIPHERS_TO_CLIENT = 15, 16


class Failed(Exception):
    """What libssh says."""


class _Library:
    """The functions that the client calls, which all take a pointer first."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(LIBRARY)

    def pointer(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        function = getattr(self._library, name)
        function.restype = ctypes.c_void_p
        return ctypes.c_void_p(function(*arguments))

    def number(self, name: str, *arguments: Any) -> int:
        function = getattr(self._library, name)
        function.restype = ctypes.c_int
        return int(function(*arguments))

    def error(self, session: ctypes.c_void_p) -> Failed:
        function = self._library.ssh_get_error
        function.restype = ctypes.c_char_p
        return Failed(function(session).decode(errors="replace"))


def copy(library: _Library, session: ctypes.c_void_p, way: str, source: str, target: str) -> None:
    """Copy a file to the server, or from there."""

    def check(good: bool) -> None:
        if not good:
            raise library.error(session)

    sftp = library.pointer("sftp_new", session)
    check(library.number("sftp_init", sftp) == _OK)
    remote = (target if way == "put" else source).encode()
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC if way == "put" else os.O_RDONLY
    file = library.pointer("sftp_open", sftp, remote, flags, 0o644)
    check(bool(file))
    if way == "put":
        with open(source, "rb") as local:
            while data := local.read(1 << 15):
                count = library.number("sftp_write", file, data, ctypes.c_size_t(len(data)))
                check(count == len(data))
    else:
        buffer = ctypes.create_string_buffer(1 << 15)
        with open(target, "wb") as made:
            while count := library.number("sftp_read", file, buffer, ctypes.c_size_t(1 << 15)):
                check(count > 0)
                made.write(buffer.raw[:count])
    check(library.number("sftp_close", file) == _OK)
    library.pointer("sftp_free", sftp)


def main() -> int:
    chosen = parse()
    library = _Library()
    session = library.pointer("ssh_new")

    def check(status: int) -> None:
        if status != _OK:
            raise library.error(session)

    def set_option(option: int, value: Any) -> None:
        check(library.number("ssh_options_set", session, option, value))

    set_option(_PROCESS_CONFIG, ctypes.byref(ctypes.c_bool(False)))
    set_option(_HOST, chosen.address.encode())
    set_option(_PORT, ctypes.byref(ctypes.c_int(chosen.port)))
    set_option(_USER, chosen.user.encode())
    set_option(_KNOWN_HOSTS, chosen.known_hosts.encode())
    if chosen.cipher:
        for option in (_CIPHERS_TO_SERVER, _CIPHERS_TO_CLIENT):
            set_option(option, chosen.cipher.encode())
    check(library.number("ssh_connect", session))
    if library.number("ssh_session_is_known_server", session) != 1:
        raise Failed("the host key is not the known one")
    if chosen.method == "publickey":
        key = ctypes.c_void_p()
        path = chosen.key.encode()
        check(
            library.number("ssh_pki_import_privkey_file", path, None, None, None, ctypes.byref(key))
        )
        check(library.number("ssh_userauth_publickey", session, None, key))
    else:
        password = os.environ["TEST_PASSWORD"].encode()
        check(library.number("ssh_userauth_password", session, None, password))
    if chosen.sftp:
        copy(library, session, *chosen.sftp)
        library.number("ssh_disconnect", session)
        return 0
    channel = library.pointer("ssh_channel_new", session)
    check(library.number("ssh_channel_open_session", channel))
    check(library.number("ssh_channel_request_exec", channel, chosen.command.encode()))
    buffer = ctypes.create_string_buffer(1 << 16)
    while (count := library.number("ssh_channel_read", channel, buffer, len(buffer), 0)) > 0:
        sys.stdout.buffer.write(buffer.raw[:count])
    if count < 0:
        raise library.error(session)
    sys.stdout.flush()
    status = library.number("ssh_channel_get_exit_status", channel)
    library.number("ssh_disconnect", session)
    return status if status >= 0 else 255


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as error:
        sys.exit(f"libssh: {error}")
