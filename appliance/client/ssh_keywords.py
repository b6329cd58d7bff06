"""The keywords of ssh_config(5), and how the value of each is read.

A keyword is one of four kinds:

    SETTINGS       sets a field of HostOptions
    TUNING         accepted with a debug line: it has no important effect
    NOT_YET        OpenSSH has it, Culvert does not: an error unless it is set to its off value
    anything else  'Bad configuration option', unless IgnoreUnknown names it
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from ..config.forwards import Forward
    from ..config.hosts import Proxy

# OpenSSH's
TUNNEL_ANY: Final = 0x7FFFFFFF  # misc.h, SSH_TUNID_ANY
_TUNNEL_MAXIMUM: Final = TUNNEL_ANY - 2
_REKEY_MINIMUM: Final = 16  # bytes


class BadValue(Exception):
    """A value is invalid; the text says what was expected, and the caller names the keyword."""


def _one_of(*choices: str, **aliases: str) -> Callable[[str], str]:
    table = {choice: choice for choice in choices} | aliases

    def read(text: str) -> str:
        if text.lower() not in table:
            raise BadValue(f"expected {', '.join(choices[:-1])} or {choices[-1]}")
        return table[text.lower()]

    return read


def _flag(text: str) -> bool:
    return _one_of("yes", "no", true="yes", false="no")(text) == "yes"


def _pubkey(text: str) -> bool:
    choice = _one_of("yes", "no", "unbound", "host-bound", true="yes", false="no")(text)
    return choice != "no"


def _number(minimum: int, maximum: int, what: str) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit() or len(text) > 12:
            raise BadValue(f"expected {what}")
        if not minimum <= int(text) <= maximum:
            raise BadValue(f"expected {what} from {minimum} to {maximum}")
        return int(text)

    return read


def _text(text: str) -> str:
    return text


def _time(text: str) -> int:
    """Returns the seconds of text such as '90', '1m30', '2h' or '1w'.

    sshd_config(5), TIME FORMATS.
    """
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
    total = 0
    digits = ""
    for letter in text.lower():
        if letter.isascii() and letter.isdigit() and len(digits) < 12:
            digits += letter
        elif letter in units and digits:
            total += int(digits) * units[letter]
            digits = ""
        else:
            raise BadValue("expected a time such as 30 or 1m30s")
    total += int(digits or 0)
    if not text or total > 0x7FFFFFFF:
        raise BadValue("expected a time such as 30 or 1m30s")
    return total


def _timeout(text: str) -> int | None:
    return None if text.lower() == "none" else _time(text) or None


def _persist(text: str) -> int | None:
    if text.lower() in ("no", "false"):
        return None
    return 0 if text.lower() in ("yes", "true") else _time(text)


class AddKeys(NamedTuple):
    """Whether keys that are used are added to the agent, and for how many seconds."""

    how: str  # no, yes, ask, confirm
    lifetime: int  # 0: no limit

    def __str__(self) -> str:
        return f"{self.how} {self.lifetime}" if self.lifetime else self.how


def _add_keys(words: Sequence[str]) -> AddKeys:
    how, *times = words
    if len(times) > 1:
        raise BadValue("expected yes, no, ask or confirm, and perhaps a time")
    if not times and how[:1].isdigit():
        return AddKeys("yes", _time(how))
    how = _one_of("yes", "no", "ask", "confirm", true="yes", false="no")(how)
    return AddKeys(how, _time(times[0]) if times else 0)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _algorithm_list(text: str) -> str:
    if not text.lstrip("+-^") or any(c.isspace() for c in text):
        raise BadValue("expected algorithms separated by commas, perhaps behind +, - or ^")
    return text


def _escape(text: str) -> str | None:
    if text.lower() == "none":
        return None
    if len(text) == 2 and text[0] == "^" and 64 <= ord(text[1]) < 128:
        return chr(ord(text[1]) & 31)
    if len(text) != 1 or ord(text) > 127:
        raise BadValue("expected one character, ^ and a letter, or none")
    return text


def _size(text: str) -> int:
    """Returns the bytes of text such as '1G', '500M' or '4096'; 0 for 'default'."""
    if text.lower() == "default":
        return 0
    scale = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}.get(text[-1:].lower(), 1)
    digits = text[:-1] if scale > 1 else text
    if not digits.isascii() or not digits.isdigit() or len(digits) > 18:
        raise BadValue("expected a size such as 500M or 1G, or default")
    if int(digits) * scale < _REKEY_MINIMUM:
        raise BadValue(f"expected at least {_REKEY_MINIMUM} bytes")
    return int(digits) * scale


def _rekey(words: Sequence[str]) -> tuple[int, int]:
    size = _size(words[0])
    if len(words) > 2:
        raise BadValue("expected a size and perhaps a time")
    return size, 0 if len(words) == 1 or words[1].lower() == "none" else _time(words[1])


def _unit(text: str) -> int:
    if text.lower() == "any":
        return TUNNEL_ANY
    if not text.isascii() or not text.isdigit() or len(text) > 10 or int(text) > _TUNNEL_MAXIMUM:
        raise BadValue("expected the number of a device or any, and perhaps :number or :any")
    return int(text)


def tunnel_devices(text: str) -> tuple[int, int]:
    """Returns the local and remote unit of ``local[:remote]``, the value of -w and TunnelDevice."""
    local, colon, remote = text.partition(":")
    return _unit(local), _unit(remote) if colon else TUNNEL_ANY


def _set_env(words: Sequence[str]) -> tuple[tuple[str, str], ...]:
    pairs: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise BadValue("expected NAME=value")
        pairs.setdefault(name, value)
    return tuple(pairs.items())


def _send_env(words: Sequence[str]) -> tuple[str, ...]:
    if any("=" in word for word in words):
        raise BadValue("expected names of variables, without values")
    return tuple(words)


def _proxy(text: str) -> Proxy | None:
    if text.lower() == "none":
        return None
    from ..config import hosts

    try:
        return hosts.proxy(text)
    except ValueError as error:
        raise BadValue(str(error)) from error


def _jumps(text: str) -> tuple[str, ...]:
    if text.lower() == "none":
        return ()
    from ..config import hosts

    jumps = tuple(text.split(","))
    try:
        for jump in jumps:
            hosts.destination(jump)
    except ValueError as error:
        raise BadValue(f"{error}, more of them behind commas, or none") from error
    return jumps


def _forward(direction: str) -> Callable[[Sequence[str]], Forward]:
    """Returns a function that reads a forward of this direction.

    It takes one word as on the command line, or two: where to listen, and the target.
    """

    def read(words: Sequence[str]) -> Forward:
        from ..config import forwards

        try:
            return forwards.forward(direction, ":".join(words))
        except ValueError as error:
            raise BadValue(str(error)) from error

    return read


def _mask(text: str) -> int:
    if not text or len(text) > 4 or not set(text) <= set("01234567") or int(text, 8) > 0o777:
        raise BadValue("expected an octal mask such as 0177")
    return int(text, 8)


def _remote_places(words: Sequence[str]) -> tuple[tuple[str, int], ...] | None:
    if len(words) == 1 and words[0].lower() in ("any", "none"):
        return None if words[0].lower() == "any" else ()
    from ..config import hosts

    try:
        return tuple(hosts.endpoint(word) for word in words)
    except ValueError as error:
        raise BadValue(f"{error}; or any, or none") from error


def _files(words: Sequence[str]) -> tuple[str, ...]:
    if "none" in map(str.lower, words):
        if len(words) > 1:
            raise BadValue("expected 'none' to stand alone")
        return ()
    return tuple(words)


class Setting(NamedTuple):
    """How the value of a keyword becomes a field of HostOptions."""

    keyword: str  # as ssh_config(5) spells it; ssh -G prints it in lower case
    field: str  # of HostOptions; its name cannot be derived from the keyword
    read: Callable[[Any], Any]
    takes: str = "word"  # 'word', 'words', or 'line': the unparsed rest of the line
    secret: bool = False  # whether errors must not show the value


_LOG_LEVEL = _one_of(
    *("quiet", "fatal", "error", "info", "verbose", "debug", "debug1", "debug2", "debug3")
)

SETTINGS: Final[dict[str, Setting]] = {
    row.keyword.lower(): row
    for row in (
        Setting("HostName", "host_name", _text),
        Setting("User", "user", _text),
        Setting("Port", "port", _number(1, 65535, "a port")),
        Setting("HostKeyAlias", "host_key_alias", _text),
        Setting("HostKeyLine", "host_key_line", _text, "line"),  # Culvert's own
        Setting("AddressFamily", "address_family", _one_of("any", "inet", "inet6")),
        Setting("BindAddress", "bind_address", _text),
        Setting("ConnectTimeout", "connect_timeout", _timeout),
        Setting("ConnectionAttempts", "connection_attempts", _number(1, 1 << 31, "a number")),
        Setting("Proxy", "proxy", _proxy, secret=True),
        Setting("ProxyJump", "proxy_jump", _jumps),
        Setting("ProxyCommand", "proxy_command", _text, "line"),
        Setting("TCPKeepAlive", "tcp_keep_alive", _flag),
        Setting("ServerAliveInterval", "server_alive_interval", _time),
        Setting("ServerAliveCountMax", "server_alive_count_max", _number(0, 1 << 31, "a number")),
        Setting("IdentityFile", "identity_files", _text),
        Setting("CertificateFile", "certificate_files", _text),
        Setting("IdentitiesOnly", "identities_only", _flag),
        Setting("AddKeysToAgent", "add_keys_to_agent", _add_keys, "words"),
        Setting("IdentityAgent", "identity_agent", _text),
        Setting("UserKnownHostsFile", "user_known_hosts_files", _files, "words"),
        Setting("GlobalKnownHostsFile", "global_known_hosts_files", _files, "words"),
        Setting(
            "StrictHostKeyChecking",
            "strict_host_key_checking",
            _one_of("yes", "accept-new", "ask", "no", true="yes", false="no", off="no"),
        ),
        Setting("RevokedHostKeys", "revoked_host_keys", _text),
        Setting("HashKnownHosts", "hash_known_hosts", _flag),
        Setting(
            "UpdateHostKeys",
            "update_host_keys",
            _one_of("yes", "no", "ask", true="yes", false="no"),
        ),
        Setting("FingerprintHash", "fingerprint_hash", _one_of("sha256", "md5")),
        Setting("PreferredAuthentications", "preferred_authentications", _names),
        Setting("PasswordAuthentication", "password_authentication", _flag),
        Setting("PubkeyAuthentication", "pubkey_authentication", _pubkey),
        Setting("KbdInteractiveAuthentication", "kbd_interactive_authentication", _flag),
        Setting(
            "NumberOfPasswordPrompts",
            "number_of_password_prompts",
            _number(1, 1 << 31, "a number"),
        ),
        Setting("BatchMode", "batch_mode", _flag),
        Setting("RequiredRSASize", "required_rsa_size", _number(0, 16384, "a number of bits")),
        Setting("Ciphers", "ciphers", _algorithm_list),
        Setting("MACs", "macs", _algorithm_list),
        Setting("KexAlgorithms", "kex_algorithms", _algorithm_list),
        Setting("HostKeyAlgorithms", "host_key_algorithms", _algorithm_list),
        Setting("PubkeyAcceptedAlgorithms", "pubkey_accepted_algorithms", _algorithm_list),
        Setting("CASignatureAlgorithms", "ca_signature_algorithms", _algorithm_list),
        Setting("Compression", "compression", _flag),
        Setting("RekeyLimit", "rekey_limit", _rekey, "words"),
        Setting(
            "RequestTTY",
            "request_tty",
            _one_of("auto", "no", "yes", "force", true="yes", false="no"),
        ),
        Setting("RemoteCommand", "remote_command", _text, "line"),
        Setting("SendEnv", "send_env", _send_env, "words"),
        Setting("SetEnv", "set_env", _set_env, "words"),
        Setting("SessionType", "session_type", _one_of("default", "none", "subsystem")),
        Setting("StdinNull", "stdin_null", _flag),
        Setting("ForkAfterAuthentication", "fork_after_authentication", _flag),
        Setting("EscapeChar", "escape_char", _escape),
        Setting("EnableEscapeCommandline", "enable_escape_commandline", _flag),
        Setting(
            "ControlMaster",
            "control_master",
            _one_of("yes", "no", "ask", "auto", "autoask", true="yes", false="no"),
        ),
        Setting("ControlPath", "control_path", _text),
        Setting("ControlPersist", "control_persist", _persist),
        Setting("ForwardAgent", "forward_agent", _text),
        Setting("ForwardX11", "forward_x11", _flag),
        Setting("ForwardX11Trusted", "forward_x11_trusted", _flag),
        Setting("ForwardX11Timeout", "forward_x11_timeout", _time),
        Setting("X11Clipboard", "x11_clipboard", _one_of("none", "out", "in", "both")),
        Setting("LocalForward", "forwards", _forward("L"), "words"),
        Setting("RemoteForward", "forwards", _forward("R"), "words"),
        Setting("DynamicForward", "forwards", _forward("D"), "words"),
        Setting("GatewayPorts", "gateway_ports", _flag),
        Setting("ExitOnForwardFailure", "exit_on_forward_failure", _flag),
        Setting("ClearAllForwardings", "clear_all_forwardings", _flag),
        Setting("StreamLocalBindMask", "stream_local_bind_mask", _mask),
        Setting("StreamLocalBindUnlink", "stream_local_bind_unlink", _flag),
        Setting("PermitRemoteOpen", "permit_remote_open", _remote_places, "words"),
        Setting(
            "Tunnel",
            "tunnel",
            _one_of(
                "no",
                "point-to-point",
                "ethernet",
                "yes",
                yes="point-to-point",
                true="point-to-point",
                false="no",
            ),
        ),
        Setting("TunnelDevice", "tunnel_device", tunnel_devices),
        Setting("LogLevel", "log_level", lambda text: _LOG_LEVEL(text).upper()),
        Setting("profile", "profile", _one_of("default", "hardened")),
    )
}

ALIASES: Final = {
    "challengeresponseauthentication": "kbdinteractiveauthentication",
    "skeyauthentication": "kbdinteractiveauthentication",
    "tisauthentication": "kbdinteractiveauthentication",
    "dsaauthentication": "pubkeyauthentication",
    "pubkeyacceptedkeytypes": "pubkeyacceptedalgorithms",
    "identityfile2": "identityfile",
}

# Accepted without effect: they tune or log, or belong to a feature that is off.
_TUNING_KEYWORDS: Final = """
    canonicaldomains canonicalizefallbacklocal canonicalizemaxdots
    canonicalizepermittedcnames channeltimeout checkhostip cipher
    compressionlevel enablesshkeysign fallbacktorsh globalknownhostsfile2
    gssapiauthentication gssapiclientidentity gssapidelegatecredentials gssapikexalgorithms
    gssapikeyexchange gssapirenewalforcesrekey
    gssapiserveridentity gssapitrustdns hostbasedacceptedalgorithms hostbasedauthentication
    hostbasedkeytypes ipqos kbdinteractivedevices localcommand logverbose obscurekeystroketiming
    protocol rhostsauthentication rhostsrsaauthentication rsaauthentication securitykeyprovider
    smartcarddevice syslogfacility tag useprivilegedport useroaming usersh
    userknownhostsfile2 verifyhostkeydns visualhostkey warnweakcrypto xauthlocation
"""
TUNING: Final = frozenset(_TUNING_KEYWORDS.split())

# OpenSSH has these keywords, Culvert does not; a value of OFF is accepted.
OFF: Final = ("no", "none", "false", "off")
_NOT_YET_KEYWORDS: Final = """
    BindInterface CanonicalizeHostname KnownHostsCommand NoHostAuthenticationForLocalhost
    PermitLocalCommand PKCS11Provider ProxyUseFdpass RefuseConnection X11Security
"""
NOT_YET: Final = {name.lower(): name for name in _NOT_YET_KEYWORDS.split()}
REST_OF_LINE: Final = ("localcommand", "knownhostscommand")

WAYS: Final = frozenset(("proxy", "proxy_jump", "proxy_command"))  # only the first one set counts
