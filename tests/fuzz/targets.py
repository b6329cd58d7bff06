"""What is fuzzed: functions of bytes that return, whatever the bytes are.

A target swallows the errors that its parser may raise for bad input, and lets everything else
pass: that is what the fuzzer looks for.
"""

import contextlib
import io
import os
import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

from appliance.aio import proxy
from appliance.client import control_messages
from appliance.client.ssh_config import Person, load
from appliance.config import forwards, hosts
from appliance.crypto import authorized_keys, key_files, keys, known_hosts, offered_keys, revoked
from appliance.errors import CulvertError, MalformedMessage, UsageError
from appliance.files import wildcards
from appliance.files.old_scp.protocol import Entry, parse
from appliance.files.old_scp.request import wanted
from appliance.files.shell.commands import find
from appliance.files.shell.completion import completions
from appliance.files.shell.state import CommandFailed
from appliance.files.shell.words import split
from appliance.server import requests
from appliance.services.agent_client import Agent
from appliance.services.terminal import apply_modes
from appliance.services.tunnel.virtio_header import (
    has_extension_headers,
    header_is_sound,
    segments,
)
from appliance.services.tunnel.writer import Writer
from appliance.sftp import requests as sftp_requests
from appliance.sftp import server as sftp_server
from appliance.sftp.file_attributes import pack
from appliance.sftp.journal import DEBUG, Journal
from appliance.sftp.open_files import OpenFile
from appliance.sftp.session import Row, Session, Settings
from appliance.ssh.order import Role
from appliance.wire import (
    codec,
    forward,
    host_keys,
    messages,
    session,
    sftp,
    sftp_report,
    socks,
    tun,
    x11,
)
from appliance.x11.display import display
from appliance.x11.filter import Filter
from appliance.x11.set_up import SetUp
from tests.protocol.test_arbitrary import OPEN, REACHABLE, assert_sound, reach
from tests.protocol.test_before_authentication import against
from tests.unit.x11.server import set_up_reply

Target = Callable[[bytes], None]

_NULL = os.open(os.devnull, os.O_WRONLY)
_PHASES = {role: [each for each in (*OPEN, *REACHABLE) if each[0] is role] for role in Role}
_LENGTH = struct.Struct(">H")

MESSAGES = [
    kind
    for module in (messages, control_messages, requests, sftp)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, codec.Message) and kind is not codec.Message
]
RECORDS = [
    kind
    for module in (forward, host_keys, session, tun, requests, sftp, sftp_report, x11)
    for kind in vars(module).values()
    if isinstance(kind, type)
    and issubclass(kind, codec.Record)
    and kind not in (codec.Record, codec.Message)
]


def _machine(role: Role) -> Target:
    """A connection in a phase that the first byte chooses, and messages behind their lengths."""

    def target(data: bytes) -> None:
        if not data:
            return
        _, phase = _PHASES[role][data[0] % len(_PHASES[role])]
        script = reach(role, phase)
        is_open = data[0] % len(_PHASES[role]) == 0
        at = 1
        while at + _LENGTH.size < len(data):
            (size,) = _LENGTH.unpack_from(data, at)
            at += _LENGTH.size
            payload = data[at : at + size]
            at += size
            if payload and not (payload[0] == 52 and role is Role.CLIENT):
                script.send(payload)
        assert_sound(script.peer, is_open)

    return target


def version(data: bytes) -> None:
    """A connection from its first byte on, in pieces whose size the first byte gives."""
    for role in Role:
        peer = against(role).peer
        step = data[0] + 1 if data else 1
        for at in range(1, len(data), step):
            peer.transport.receive_data(data[at : at + step], 0.0)
        assert_sound(peer)


def wire(data: bytes) -> None:
    """Every message and record; what is read is written as it was."""
    for kind in (*MESSAGES, *RECORDS):
        with contextlib.suppress(MalformedMessage):
            kind.decode(data).encode()
    with contextlib.suppress(MalformedMessage):
        host_keys.read_strings(data)


def socks_client(data: bytes) -> None:
    """A SOCKS client, at once and byte by byte: both come to the same place."""
    places = []
    for step in (len(data) or 1, 1):
        dialogue = socks.Dialogue()
        with contextlib.suppress(MalformedMessage):
            for at in range(0, len(data), step):
                if dialogue.place is None:
                    dialogue.receive(data[at : at + step])
        places.append(dialogue.place)
    assert places[0] == places[1]


def x11_program(data: bytes) -> None:
    """A forwarded program and a display, at once and byte by byte: both come to the same.

    The first byte chooses the byte order, the trust and the clipboard's policy, the second one how
    much of the rest the program says.
    """
    if len(data) < 2:
        return
    said, answered = data[2 : 2 + data[1]], data[2 + data[1] :]
    order = "<>"[data[0] & 1]
    clipboard = ("none", "out", "in", "both")[data[0] >> 1 & 3]
    outcomes = []
    for step in (len(data), 1):
        program = Filter(order, clipboard, trusted=bool(data[0] & 8))
        program.from_server(set_up_reply(order))
        passed = b""
        try:
            for at in range(0, len(said), step):
                passed += b"".join(map(bytes, program.from_client(said[at : at + step])))
            for at in range(0, len(answered), step):
                passed += program.from_server(answered[at : at + step])
            for at in range(0, len(said), step):
                passed += b"".join(map(bytes, program.from_client(said[at : at + step])))
        except MalformedMessage:
            passed = b""
        outcomes.append(passed)
    assert outcomes[0] == outcomes[1]
    set_up = SetUp({b"cookie": None})
    set_up.receive(data)
    with contextlib.suppress(ValueError):
        display(data.decode("latin-1"))


def _answered(session: Session, request: int, asked: codec.Record) -> None:
    session.replies.attributes(request, pack(_STATUS))


# The requests of an SFTP client, but none that names a file: the fuzzer may run as root
_STATUS = os.stat("/")
_HARMLESS = {
    number: row if number in (4, 5, 6) else Row(row.name, row.record, _answered, paths=row.paths)
    for number, row in sftp_requests.REQUESTS.items()
}
_EXTENSIONS = {
    name: Row(row.name, row.record, _answered, paths=row.paths)
    for name, row in sftp_server.EXTENSIONS.items()
}


def sftp_client(data: bytes) -> None:
    """An SFTP client after its INIT, at once and byte by byte: both get the same answers."""
    sent = [bytearray(), bytearray()]
    for step, replies in zip((len(data) or 1, 1), sent, strict=True):
        journal = Journal(DEBUG, lambda level, text: None, lambda report: None)
        its = Session(Settings(), journal, replies.extend)
        its.files.add(OpenFile(b"file", os.memfd_create("fuzz"), os.O_RDWR))
        server = sftp_server.Server(its)
        with (
            mock.patch.dict(sftp_requests.REQUESTS, _HARMLESS),
            mock.patch.dict(sftp_server.EXTENSIONS, _EXTENSIONS),
            contextlib.suppress(sftp_server.Unanswerable),
        ):
            server.receive(memoryview(_SFTP_INIT))
            left = b""
            for at in range(0, len(data), step):
                left += data[at : at + step]
                left = left[server.receive(memoryview(left)) :]
        server.close()
    assert sent[0] == sent[1]


_SFTP_INIT = codec.write_string(sftp.Init(3).encode())


def public_key(data: bytes) -> None:
    """A key or certificate, and a signature by it."""
    with contextlib.suppress(MalformedMessage):
        key = offered_keys.load_offered_key(data)
        key.fingerprint()
        for algorithm in key.signature_algorithms:
            assert not key.verify(algorithm, data, b"")


def signature(data: bytes) -> None:
    """A signature by keys of every type."""
    for key in _KEYS:
        for algorithm in key.signature_algorithms:
            assert not key.verify(algorithm, data, b"signed")


_KEYS = [
    keys.generate(kind).public
    for kind in ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp521")
]
_KEYS.append(keys.generate("ssh-rsa", 2048).public)


def private_key(data: bytes) -> None:
    """A private key's file, with a passphrase."""
    # The work factor of bcrypt is the file's choice: a slow file is no fault.
    if b"bcrypt" not in data:
        with contextlib.suppress(key_files.KeyFileError):
            key_files.load_private_key(data, lambda: b"passphrase")
    with contextlib.suppress(key_files.KeyFileError):
        key_files.load_public_part(data)


def public_line(data: bytes) -> None:
    """A .pub file."""
    with contextlib.suppress(key_files.KeyFileError):
        key_files.load_offered_line(data.decode(errors="replace"))


def authorized(data: bytes) -> None:
    """An authorized_keys file; every line that lets nobody in is told once at most."""
    for entry in authorized_keys.parse(data, lambda text: None, lambda moment: 0.0):
        entry.key.fingerprint()


def known(data: bytes) -> None:
    """A known_hosts file, and one host in it."""
    text = data.decode(errors="surrogateescape")
    found = known_hosts.lookup(text, "host", 2222, "192.0.2.1")
    found.decide(_KEYS[0])
    known_hosts.update(text, "host", 2222, _KEYS, True, iter([bytes(20)] * 9))
    known_hosts.remove(text, "host", 22)


def revocations(data: bytes) -> None:
    """A revocation list, of either kind."""
    with contextlib.suppress(MalformedMessage):
        revoked.load(data).revokes(_KEYS[0])


def ssh_config(data: bytes) -> None:
    """Settings of ssh_config, a line each, as -o takes them."""
    lines = data.decode(errors="replace").split("\n")
    person = Person("user", 1000, "/nonexistent", "machine")
    for line in lines:
        with contextlib.suppress(UsageError):
            load("host", [line], "none", person)


def places(data: bytes) -> None:
    """Forwards, hosts and proxies as people write them."""
    text = data.decode(errors="replace")
    for direction in "LRD":
        with contextlib.suppress(ValueError):
            wanted = forwards.forward(direction, text)
            assert forwards.forward(direction, str(wanted)) == wanted
    for read in (hosts.destination, hosts.proxy, hosts.endpoint):
        with contextlib.suppress(ValueError):
            read(text)


def _refused(error: OSError, packets: int) -> None:
    raise error


def packet(data: bytes) -> None:
    """Packets with a virtio header, as tun-offload brings them, and without one."""
    view = memoryview(data)
    for ethernet in (False, True):
        if header_is_sound(view, ethernet) and has_extension_headers(view, ethernet):
            for _ in segments(view, ethernet):
                pass
        writer = Writer(_NULL, ethernet, _refused)
        for at in range(0, len(data), 64):
            writer.add(view[at : at + 64])
        writer.add(view)
        writer.flush()


def modes(data: bytes) -> None:
    """The modes of a terminal."""
    with contextlib.suppress(MalformedMessage):
        apply_modes(_TERMINAL, data)


_, _TERMINAL = os.openpty()


class _Answers(io.BytesIO):
    """A socket that says what the fuzzer wants."""

    def sendall(self, data: bytes) -> None:
        """Nobody listens."""

    def settimeout(self, seconds: float) -> None:
        """Nobody waits."""

    def recv(self, count: int, flags: int = 0) -> bytes:
        """What comes next; with MSG_PEEK it stays."""
        at = self.tell()
        data = self.read(count)
        if flags:
            self.seek(at)
        return data


def agent(data: bytes) -> None:
    """An agent's answers."""
    it = object.__new__(Agent)
    it._sock = _Answers(data)  # type: ignore[assignment]
    with contextlib.suppress(OSError):
        held_keys = it.keys()  # a method, and no dict's
        for held in held_keys:
            it.sign(held.public, "ssh-ed25519", b"data")


def proxies(data: bytes) -> None:
    """What proxies answer."""
    for scheme in ("http", "socks5"):
        to = hosts.Proxy(scheme, "proxy", 1080, b"user", b"password")
        with contextlib.suppress(CulvertError):
            proxy.ProxyHandshake(to, "host", 22).run(_Answers(data), 1.0)  # type: ignore[arg-type]


def scp_records(data: bytes) -> None:
    """A source's records, a line each: what is read is written as it was, but for leading zeros."""
    for line in data.split(b"\n"):
        with contextlib.suppress(MalformedMessage):
            record = parse(line)
            again = parse(record.encode()[:-1])
            assert again.encode() == record.encode()
            if isinstance(record, Entry):
                assert os.path.basename(record.name) == record.name


def sftp_lines(data: bytes) -> None:
    """Lines of sftp: words, what a command makes of them, and what completes them."""
    for line in data.split(b"\n"):
        with contextlib.suppress(CulvertError, CommandFailed):
            words = split(line)
            for word in words:
                wildcards.compiled(word).fullmatch(wildcards.plain(word))
            if words:
                find(words[0].decode(errors="replace"), words[1:], b"")
        for completed in completions(_SFTP_STATE, line, lambda path: _LISTED):
            with contextlib.suppress(UsageError):  # the quote of a directory stays open
                split(completed)


_LISTED = [(b"file", False), (b"two words", False), (b"folder", True), (b"it's", False)]
_SFTP_STATE: Any = SimpleNamespace(absolute=lambda path: path)


def scp_names(data: bytes) -> None:
    """A request for files, and a name that a source gives."""
    request, _, name = data.partition(b"\n")
    if request.count(b"{") < 6:  # each pair of braces may double the number of words
        wanted(request)(name)


TARGETS: dict[str, Target] = {
    "server": _machine(Role.SERVER),
    "client": _machine(Role.CLIENT),
    "version": version,
    "wire": wire,
    "socks": socks_client,
    "x11": x11_program,
    "sftp": sftp_client,
    "public-key": public_key,
    "signature": signature,
    "private-key": private_key,
    "public-line": public_line,
    "authorized-keys": authorized,
    "known-hosts": known,
    "revocations": revocations,
    "ssh-config": ssh_config,
    "places": places,
    "packet": packet,
    "modes": modes,
    "agent": agent,
    "proxy": proxies,
    "scp-records": scp_records,
    "sftp-lines": sftp_lines,
    "scp-names": scp_names,
}
