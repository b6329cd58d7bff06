"""Paramiko's SFTP server, for the files of this machine, on standard input and output."""

import os
from typing import Any

import paramiko
from paramiko import SFTPAttributes, SFTPHandle, SFTPServer


class Files(paramiko.SFTPServerInterface):  # type: ignore[misc]
    """The files of this machine; what fails is told by its errno."""

    def list_folder(self, path: str) -> Any:
        found = []
        for name in os.listdir(path):
            attributes = SFTPAttributes.from_stat(os.lstat(os.path.join(path, name)))
            attributes.filename = name
            found.append(attributes)
        return found

    def stat(self, path: str) -> Any:
        try:
            return SFTPAttributes.from_stat(os.stat(path))
        except OSError as error:
            return SFTPServer.convert_errno(error.errno or 0)

    def lstat(self, path: str) -> Any:
        return self.stat(path)

    def open(self, path: str, flags: int, attr: SFTPAttributes) -> Any:
        try:
            fd = os.open(path, flags, 0o666 if attr.st_mode is None else attr.st_mode)
        except OSError as error:
            return SFTPServer.convert_errno(error.errno or 0)
        file = os.fdopen(fd, "wb" if flags & os.O_WRONLY else "rb")
        handle = SFTPHandle(flags)
        handle.filename = path
        handle.readfile = file
        handle.writefile = file
        return handle

    def mkdir(self, path: str, attr: SFTPAttributes) -> Any:
        try:
            os.mkdir(path)
        except OSError as error:
            return SFTPServer.convert_errno(error.errno or 0)
        return paramiko.SFTP_OK


class Pipes:
    """What the server takes for a channel."""

    def recv(self, count: int) -> bytes:
        return os.read(0, count)

    def send(self, data: bytes) -> int:
        return os.write(1, data)

    def get_name(self) -> str:
        return "pipes"

    get_id = get_name

    def get_log_channel(self) -> str:
        return "pipes"

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


class Server(SFTPServer):  # type: ignore[misc]
    """The server without the transport from which it takes its log."""

    def __init__(self) -> None:
        self.sock = self.channel = Pipes()
        self.logger = paramiko.util.get_logger("sftp")
        self.ultra_debug = False
        self.next_handle = 1
        self.file_table: dict[bytes, SFTPHandle] = {}
        self.folder_table: dict[bytes, Any] = {}
        self.server = Files(paramiko.ServerInterface())


if __name__ == "__main__":
    pipes: Any = Pipes()
    Server().start_subsystem("sftp", pipes, pipes)
