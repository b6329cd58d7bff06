"""What the fuzzer begins with: a few good inputs of each target, so that it finds its way."""

import struct

from appliance.crypto import key_files
from appliance.crypto.keys import generate
from appliance.wire import messages, sftp
from appliance.wire.codec import write_string, write_uint32
from appliance.wire.x11 import COOKIE_PROTOCOL, SetUpRequest
from tests.fuzz.targets import MESSAGES
from tests.unit.x11.server import OWN, Talk

_KEY = generate("ssh-ed25519")
_LINE = _KEY.public.line()


_SFTP = (
    sftp.Write(1, bytes(4), 5, b"data"),
    sftp.Read(2, bytes(4), 0, 9),
    sftp.FStat(3, bytes(4)),
    sftp.Open(4, b"/a", sftp.READ, sftp.Attributes(5, (1, 2), 0o644, (3, 4), (5, 6))),
    sftp.Rename(5, b"/a", b"/b"),
    sftp.Extended(6, sftp.POSIX_RENAME, sftp.TwoPaths(b"a", b"b").encode()),
    sftp.Close(7, bytes(4)),
    sftp.Read(8, bytes(4), 0, 9),
)


def _packets(phase: int, *payloads: bytes) -> bytes:
    return bytes([phase]) + b"".join(struct.pack(">H", len(each)) + each for each in payloads)


def _machine() -> list[bytes]:
    said = [
        messages.ChannelOpen("session", 1, 1 << 20, 1 << 15).encode(),
        messages.ChannelRequest(0, "exec", True, write_string(b"true")).encode(),
        messages.ChannelData(0, b"data").encode(),
        messages.ChannelWindowAdjust(0, 100).encode(),
        messages.ChannelEof(0).encode(),
        messages.ChannelClose(0).encode(),
        messages.GlobalRequest("yes", True).encode(),
        messages.ServiceRequest("ssh-userauth").encode(),
        messages.UserauthRequest("user", "ssh-connection", "none", b"").encode(),
    ]
    return [_packets(phase, *said) for phase in (0, 1, 3, 5, 6)]


def _x11(mode: int) -> bytes:
    """A program that asks for an extension, uses it, and looks at a window."""
    talk = Talk("<>"[mode & 1])
    name = struct.pack(talk.order + "BBHHxx", 98, 0, 4, 6) + b"RENDER\0\0"
    use = talk.request(140, 4, OWN, OWN, 1, 0) + talk.request(73, 2, OWN, 0, 0, 0)
    convert = talk.request(24, 0, OWN, 1, 300, 301, 0)
    said = name + talk.request(16, 0, 0, 0) + use + convert + talk.request(99, 0)
    talk.sequence = 1
    answered = talk.reply(bytes((1, 140, 70, 130))) + talk.event(31, 0, OWN, 45, 300, 0)
    return bytes((mode, len(said))) + said + answered


def seeds() -> dict[str, list[bytes]]:
    """For each target, inputs that it takes."""
    blob = _KEY.public.blob
    return {
        "server": _machine(),
        "client": _machine(),
        "version": [b"\x10SSH-2.0-OpenSSH_9.2\r\n" + bytes(200), b"\x03line\r\nSSH-1.99-x\n"],
        "wire": [bytes([kind.number]) + bytes(40) for kind in MESSAGES],
        "socks": [
            b"\4\1\0\x50\xc0\0\2\1user\0",
            b"\4\1\0\x50\0\0\0\1\0host\0",
            b"\5\1\0\5\1\0\3\4host\0\x50",
            b"\5\1\0\5\1\0\4" + bytes(16) + b"\0\x50",
        ],
        "x11": [
            *(_x11(mode) for mode in range(16)),
            SetUpRequest("<", 11, 0, COOKIE_PROTOCOL, b"cookie").encode(),
            b"unix:/path:1.2",
        ],
        "sftp": [
            b"".join(write_string(request.encode()) for request in _SFTP),
            *(write_string(sftp.Extended(1, name, bytes(40)).encode()) for name in sftp.EXTENSIONS),
        ],
        "public-key": [blob],
        "signature": [_KEY.sign("ssh-ed25519", b"x")],
        "private-key": [key_files.dump_openssh(_KEY, None, "c"), key_files.dump_pem(_KEY)],
        "public-line": [_LINE.encode()],
        "authorized-keys": [
            f"{_LINE}\n".encode(),
            f'restrict,command="a \\"b\\"",from="192.0.2.0/24,!x",permitopen="h:80",'
            f'tunnel="1",expiry-time="20300101Z",environment="A=b" {_LINE} c\n'.encode(),
            f'cert-authority,principals="a,b" {_LINE}\n'.encode(),
        ],
        "known-hosts": [
            f"[host]:2222 {_LINE}\nhost,*.x,!y {_LINE}\n@revoked * {_LINE}\n".encode(),
            f"|1|AAAAAAAAAAAAAAAAAAAAAAAAAAA=|AAAAAAAAAAAAAAAAAAAAAAAAAAA= {_LINE}\n".encode(),
        ],
        "revocations": [
            f"{_LINE}\n".encode(),
            b"SSHKRL\n\0" + write_uint32(1) + bytes(24) + bytes(8),
        ],
        "ssh-config": [
            b"LocalForward 8080 host:80\nUser x\nHostName %h.y\nSetEnv A=b\nProxyJump a@b:22,c",
            b"Match host x\nSendEnv -A\nRekeyLimit 1G 1h\nControlPath ~/%C\nCiphers +aes*",
        ],
        "places": [b"8080:host:80", b"[::1]:8080:/x", b"user@host:22", b"socks5://a:b@c:1", b"*:*"],
        "packet": [
            bytes(10) + b"\x45" + bytes(40),
            b"\1\1" + bytes(8) + b"\x60" + bytes(60),
            # TCP over IPv6 behind an extension header, to be cut into segments of 20 bytes
            struct.pack("<BBHHHH", 1, 4, 68, 20, 48, 16)
            + b"\x60\0\0\0\0\x78\x3c\x40"
            + bytes(32)
            + b"\6\0\1\4"
            + bytes(4)
            + bytes(12)
            + b"\x50\x10"
            + bytes(6)
            + bytes(100),
        ],
        "modes": [b"\1\0\0\0\3\x35\0\0\0\1\0"],
        "agent": [
            write_string(b"\x0c" + write_uint32(1) + write_string(blob) + write_string(b"c"))
            + write_string(b"\x0e" + write_string(b"sig"))
        ],
        "scp-records": [
            b"T1700000000 0 1700000000 999999\nC0644 5 name\nD4755 0 dir\nE\n\1scp: no\n\2end",
            b"C0644 9223372036854775807 a b\nC0644 1 ..\nD0755 0 a/b",
        ],
        "sftp-lines": [
            b"get -r 'a b' c\\ d # x\nls -1 *[a-z]?\nput \"it's\" tw\nget 'two\n",
            b"mk\nchmod 600 fi\nrename a fo\n-@rm \\*\n!x",
        ],
        "scp-names": [b"dir/{a,b}*[!x-z]?\nabc1", b"'a b' \"c\\d\" e\\ f\na b"],
        "proxy": [b"HTTP/1.1 200 OK\r\n\r\n", b"\5\2\1\0\5\0\0\1" + bytes(6)],
    }
