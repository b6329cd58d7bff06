"""A monitor, and a worker that was taken over: the test speaks for it."""

import contextlib
import os
import pwd
import signal
import socket
from collections.abc import Callable
from dataclasses import replace

import pytest

from appliance.config.server import Match, ServerConfig
from appliance.crypto.authorized_keys import parse
from appliance.crypto.keys import PrivateKey, generate
from appliance.server import authentication, passwords, session_grants, tunnel_grants, user_files
from appliance.server.display_numbers import DisplayNumbers
from appliance.server.host_keys import HostKey, HostKeys
from appliance.server.monitor import Monitor
from appliance.server.peer import Peer
from appliance.server.requests import (
    DATAGRAM,
    GRANTED,
    REFUSED,
    LogLine,
    OpenTunnel,
    OutcomeReply,
    ShowKey,
    Sign,
    UseKey,
    UsePassword,
)
from appliance.ssh.auth_server import Offer, signed_data
from appliance.wire.codec import Message

HOST_KEY = generate("ssh-ed25519")
SPARE_KEY = generate("ssh-rsa", 2048)  # of the server, and not shown yet
KEY = generate("ssh-ed25519")
OTHER = generate("ssh-ed25519")
RSA = generate("ssh-rsa", 2048)
ME = pwd.getpwuid(os.geteuid())
USER = ME.pw_name
SESSION = b"s" * 32
CONFIG = ServerConfig(print_motd=False)
BOTH = ("publickey,password", "publickey,keyboard-interactive")
WORKER = 4711  # a process id that nothing is sent to: os.kill only takes notes here


class Office:
    """A monitor, and the worker's end of the socket between them."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        lines: str = "",
        address: str = "192.0.2.7",
        **changes: object,
    ) -> None:
        monkeypatch.setattr(authentication, "FAILURE_SECONDS", 0.0001)
        lines = lines or KEY.public.line()
        entries = list(parse(lines.encode(), lambda text: None))
        monkeypatch.setattr(user_files, "authorized_keys", lambda user, config: entries)
        monkeypatch.setattr(passwords, "has_no_password", lambda user: user is not None)
        monkeypatch.setattr(
            passwords,
            "is_right",
            lambda user, password, _: user and password == b"right",
        )
        ours, self.worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with socket.socket() as nothing:
            peer = Peer(nothing)
        peer.address, peer.port = address, 4711
        self.told = 0
        self.ours = ours
        self.killed: list[tuple[int, int]] = []
        monkeypatch.setattr(os, "kill", lambda *what: self.killed.append(what))
        self.display_numbers = DisplayNumbers()
        self.monitor = Monitor(
            replace(CONFIG, **changes),  # type: ignore[arg-type]
            HostKeys(
                {"ssh-ed25519": HostKey(HOST_KEY, HOST_KEY.public)},
                {key.public.blob: key for key in (HOST_KEY, SPARE_KEY)},
            ),
            self.display_numbers,
            peer,
            ours,
            WORKER,
            self._tell,
        )

    def _tell(self) -> None:
        self.told += 1

    def raw(self, data: bytes, descriptors: int = 4) -> tuple[bytes, list[int]] | None:
        """What a datagram is answered with; None when the monitor ends the connection."""
        self.worker.send(data)
        if not self.monitor._serve():
            assert self.killed == [(WORKER, signal.SIGKILL)]
            self.worker.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                assert self.worker.recv(DATAGRAM) == b""
            return None
        if data[:1] == bytes([LogLine.number]):
            return GRANTED, []  # it is not answered
        answer, fds, _, _ = socket.recv_fds(self.worker, DATAGRAM, descriptors)
        return answer, fds

    def ask(self, request: Message) -> bytes:
        """The answer to a request that is granted, and has no descriptors."""
        answer = self.raw(request.encode())
        assert answer is not None and answer[0][:1] == GRANTED, answer
        assert not answer[1]
        return answer[0][1:]

    def outcome(self, request: Message) -> OutcomeReply:
        return OutcomeReply.decode(self.ask(request))

    def denied(self, request: Message) -> str:
        """The text of a refusal."""
        answer = self.raw(request.encode())
        assert answer is not None and answer[0][:1] == REFUSED, answer
        return answer[0][1:].decode()

    def ends(self, request: Message) -> bool:
        """Whether the monitor ends the connection over a request."""
        return self.raw(request.encode()) is None

    def start(self) -> "Office":
        """A session id, by the first exchange."""
        self.ask(Sign("ssh-ed25519", SESSION))
        return self

    def log_in(self) -> "Office":
        self.start()
        assert self.outcome(use_key()).success
        assert self.told == 1
        return self

    @property
    def is_in(self) -> bool:
        return self.monitor._authentication.is_done

    @property
    def sessions(self) -> session_grants.SessionGrants:
        assert self.monitor._sessions is not None
        return self.monitor._sessions

    @property
    def tunnels(self) -> tunnel_grants.TunnelGrants:
        grants = getattr(self.monitor._handlers[OpenTunnel], "__self__", None)
        assert isinstance(grants, tunnel_grants.TunnelGrants)
        return grants

    def become(self, name: str) -> pwd.struct_passwd:
        """Go on as if somebody else had logged in."""
        user = pwd.getpwnam(name)
        for grants in (self.sessions, self.tunnels):
            grants._login = grants._login._replace(user=user)
        return user

    def close(self) -> None:
        if self.monitor._forwards is not None:
            self.monitor._forwards.close()
        if self.is_in:
            for claim in filter(None, self.tunnels._tunnels.values()):
                claim.close()
        if self.monitor._displays is not None:
            self.monitor._displays.close()
        self.display_numbers.close()
        self.ours.close()
        self.worker.close()


Make = Callable[..., Office]


def use_key(
    key: PrivateKey = KEY,
    user: str = USER,
    algorithm: str = "",
    session: bytes = SESSION,
    host_key: bytes = b"",
) -> UseKey:
    """A key with its signature."""
    algorithm = algorithm or key.public.signature_algorithms[0]
    offer = Offer(user, algorithm, key.public.blob, host_key)
    signature = key.sign(algorithm, signed_data(session, offer))
    return UseKey(user, algorithm, key.public.blob, host_key, signature)


def show_key(key: PrivateKey = KEY, algorithm: str = "") -> ShowKey:
    algorithm = algorithm or key.public.signature_algorithms[0]
    return ShowKey(USER, algorithm, key.public.blob, b"")


def password(user: str = USER, method: str = "password", secret: bytes = b"right") -> UsePassword:
    return UsePassword(user, method, secret)


def for_me(**keys: object) -> tuple[Match, ...]:
    """A table for the user who runs this test, coming from the usual address."""
    keys |= {"user": USER, "address": "192.0.2.0/24"}
    return (Match(**keys, given=frozenset(keys)),)  # type: ignore[arg-type]
