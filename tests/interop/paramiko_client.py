"""An SSH client made with Paramiko, as a peer for Culvert's server.

Standard input, output and error are those of the remote command; so is the exit status.
"""

import argparse
import os
import socket
import stat
import sys
import threading
from collections.abc import Callable

import paramiko
from paramiko.agent import AgentRequestHandler

from tests.interop.library_options import parse


def main() -> int:
    chosen = parse()
    transport = paramiko.Transport(socket.create_connection((chosen.address, chosen.port)))
    options = transport.get_security_options()
    if chosen.kex:
        options.kex = (chosen.kex,)
    if chosen.host_key:
        options.key_types = (chosen.host_key,)
    if chosen.cipher:
        options.ciphers = (chosen.cipher,)
    if chosen.mac:
        options.digests = (chosen.mac,)
    if chosen.compression:
        transport.use_compression(True)
    if chosen.rekey_bytes:
        transport.packetizer.REKEY_BYTES = chosen.rekey_bytes
    try:
        transport.start_client(timeout=20)
        known = paramiko.HostKeys(chosen.known_hosts)
        key = transport.get_remote_server_key()
        if not known.check(f"[{chosen.address}]:{chosen.port}", key):
            raise paramiko.SSHException("the host key is not the known one")
        _authenticate(transport, chosen.user, chosen.method, chosen.key)
        if chosen.N:
            return _forward(transport, chosen)
        if chosen.sftp:
            return _copy(transport, *chosen.sftp)
        return _run(transport, chosen)
    finally:
        transport.close()


def _authenticate(transport: paramiko.Transport, user: str, method: str, key: str) -> None:
    password = os.environ.get("TEST_PASSWORD", "")
    if method == "publickey":
        left = transport.auth_publickey(user, paramiko.PKey.from_path(key))
    elif method == "password":
        left = transport.auth_password(user, password, fallback=False)
    else:
        left = transport.auth_interactive(
            user, lambda _title, _text, prompts: [password for _ in prompts]
        )
    if left:
        raise paramiko.AuthenticationException(f"the server wants more: {left}")


def _copy(transport: paramiko.Transport, way: str, source: str, target: str) -> int:
    """Copy a tree to the server, or from there."""
    sftp = paramiko.SFTPClient.from_transport(transport)

    def put(here: str, there: str) -> None:
        if os.path.isdir(here):
            sftp.mkdir(there)
            for name in os.listdir(here):
                put(f"{here}/{name}", f"{there}/{name}")
        else:
            sftp.put(here, there)
            sftp.chmod(there, os.stat(here).st_mode & 0o777)

    def get(there: str, here: str) -> None:
        if stat.S_ISDIR(sftp.stat(there).st_mode):
            os.mkdir(here)
            for name in sftp.listdir(there):
                get(f"{there}/{name}", f"{here}/{name}")
        else:
            sftp.get(there, here)

    put(source, target) if way == "put" else get(source, target)
    return 0


def _forward(transport: paramiko.Transport, chosen: argparse.Namespace) -> int:
    """Forward ports of the loopback until the connection is over."""
    for spec in chosen.L:
        port, host, target = spec.split(":")
        listener = socket.create_server(("127.0.0.1", int(port)))
        _in_background(_leave, transport, listener, (host, int(target)))
    for spec in chosen.R:
        port, host, target = spec.split(":")

        def arrived(
            channel: paramiko.Channel, _origin: object, _server: object,
            place: tuple[str, int] = (host, int(target)),
        ) -> None:  # fmt: skip
            _splice(channel, socket.create_connection(place))

        transport.request_port_forward("127.0.0.1", int(port), arrived)
    transport.join()
    return 0


def _leave(transport: paramiko.Transport, listener: socket.socket, place: tuple[str, int]) -> None:
    while True:
        sock, origin = listener.accept()
        _splice(transport.open_channel("direct-tcpip", place, origin), sock)


def _splice(channel: paramiko.Channel, sock: socket.socket) -> None:
    """Carry both directions, of which each ends on its own."""

    def receive() -> None:
        while data := channel.recv(65536):
            sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    def send() -> None:
        while data := sock.recv(65536):
            channel.sendall(data)
        channel.shutdown_write()

    _in_background(receive)
    _in_background(send)


def _in_background(work: Callable[..., None], *args: object) -> threading.Thread:
    thread = threading.Thread(target=work, args=args, daemon=True)
    thread.start()
    return thread


def _run(transport: paramiko.Transport, chosen: argparse.Namespace) -> int:
    channel = transport.open_session(timeout=20)
    if chosen.A:
        AgentRequestHandler(channel)
    for pair in chosen.env:
        channel.set_environment_variable(*pair.split("=", 1))
    if chosen.pty:
        term, rows, columns = chosen.pty.split(",")
        channel.get_pty(term, int(columns), int(rows))
    if chosen.subsystem:
        channel.invoke_subsystem(chosen.command)
    else:
        channel.exec_command(chosen.command)

    def send() -> None:
        while data := os.read(0, 65536):
            channel.sendall(data)
        channel.shutdown_write()

    def receive_errors() -> None:
        while data := channel.recv_stderr(65536):
            sys.stderr.buffer.write(data)

    _in_background(send)
    errors = _in_background(receive_errors)
    while data := channel.recv(65536):
        sys.stdout.buffer.write(data)
    status = channel.recv_exit_status()
    errors.join(5)
    sys.stdout.flush()
    sys.stderr.flush()
    return status if status >= 0 else 255


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, paramiko.SSHException) as error:
        sys.exit(f"{type(error).__name__}: {error}")
