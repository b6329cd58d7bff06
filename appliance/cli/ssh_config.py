"""ssh_config: what is set for one host, from -o, ~/.ssh/config and /etc/ssh/ssh_config.

The first value found for a keyword counts, so what is given on the command line is read
first and the system's file last; only IdentityFile, CertificateFile and SendEnv collect.
Lines count while the ``Host`` or ``Match`` above them applies. A ``Match final`` makes
everything be read a second time, now with the host name that the first turn found.

A keyword is one of four kinds:

    a setting      a row of _SETTINGS: field of HostOptions and how its value is read
    _TUNING        accepted with a debug line: leaving it out changes nothing that matters
    _NOT_YET       OpenSSH has it, Culvert has not: an error unless it is set to its off value
    anything else  'Bad configuration option', unless IgnoreUnknown names it
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..crypto.patterns import matches_list
from ..errors import UsageError

if TYPE_CHECKING:
    from ..config.forwards import Forward
    from ..config.hosts import Proxy

log = logging.getLogger(__name__)

# Of OpenSSH
SYSTEM_FILE: Final = "/etc/ssh/ssh_config"
TUNNEL_ANY: Final = 0x7FFFFFFF  # misc.h, SSH_TUNID_ANY
INCLUDE_DEPTH: Final = 16
_TUNNEL_MAXIMUM: Final = TUNNEL_ANY - 2
_REKEY_MINIMUM: Final = 16  # bytes

# Our own choices
FILE_LIMIT: Final = 1 << 20  # bytes of one file

Tunnel = str  # 'no', 'point-to-point' or 'ethernet'


class HostOptions:
    """All settings for one host; a field that nothing sets keeps the default seen here.

    Paths are absolute, with ~, %-tokens and ${VARIABLES} resolved. Times are seconds.
    """

    host: str = ""  # as it was typed: %n
    host_name: str = ""  # where to connect to
    port: int = 22
    user: str = ""
    host_key_alias: str | None = None
    address_family: str = "any"  # any, inet, inet6
    bind_address: str | None = None
    connect_timeout: int | None = None
    connection_attempts: int = 1
    proxy: Proxy | None = None
    proxy_jump: tuple[str, ...] = ()  # [user@]host[:port], the first one first
    proxy_command: str | None = None  # for the shell
    tcp_keep_alive: bool = True
    server_alive_interval: int = 0  # 0: never
    server_alive_count_max: int = 3

    identity_files: tuple[str, ...] = ()  # the usual ones if none is set: see below
    identity_files_given: bool = False
    certificate_files: tuple[str, ...] = ()  # beside those that stand by the identity files
    identities_only: bool = False
    identity_agent: str | None = None  # None: SSH_AUTH_SOCK; '' : no agent

    user_known_hosts_files: tuple[str, ...] = ()
    global_known_hosts_files: tuple[str, ...] = (
        "/etc/ssh/ssh_known_hosts",
        "/etc/ssh/ssh_known_hosts2",
    )
    strict_host_key_checking: str = "ask"  # yes, accept-new, ask, no
    revoked_host_keys: str | None = None  # a revocation list, or public keys
    hash_known_hosts: bool = False
    update_host_keys: str = "yes"  # yes, no, ask
    fingerprint_hash: str = "sha256"

    preferred_authentications: tuple[str, ...] | None = None
    password_authentication: bool = True
    pubkey_authentication: bool = True
    kbd_interactive_authentication: bool = True
    number_of_password_prompts: int = 3
    batch_mode: bool = False
    required_rsa_size: int = 2048  # bits

    # Lists as they were written; algorithms() resolves them against what there is.
    ciphers: str | None = None
    macs: str | None = None
    kex_algorithms: str | None = None
    host_key_algorithms: str | None = None
    pubkey_accepted_algorithms: str | None = None
    ca_signature_algorithms: str | None = None
    compression: bool = False
    rekey_limit: tuple[int, int] = (0, 0)  # bytes and seconds; 0: the default, no time limit

    request_tty: str = "auto"  # auto, no, yes, force
    remote_command: str | None = None
    send_env: tuple[str, ...] = ()  # patterns
    set_env: tuple[tuple[str, str], ...] = ()
    session_type: str = "default"  # default, none, subsystem
    stdin_null: bool = False
    fork_after_authentication: bool = False
    escape_char: str | None = "~"  # one character; None: no escapes
    control_master: str = "no"  # yes, no, ask, auto, autoask
    control_path: str | None = None
    control_persist: int | None = None  # seconds; None: ends with its own session; 0: never
    forward_agent: str = ""  # the path of the agent to forward; '' for none
    forwards: tuple[Forward, ...] = ()  # in the order in which they were given
    gateway_ports: bool = False
    exit_on_forward_failure: bool = False
    clear_all_forwardings: bool = False
    stream_local_bind_mask: int = 0o177
    stream_local_bind_unlink: bool = False
    permit_remote_open: tuple[tuple[str, int], ...] | None = None  # None: any place
    enable_escape_commandline: bool = True
    tunnel: Tunnel = "no"
    tunnel_device: tuple[int, int] = (TUNNEL_ANY, TUNNEL_ANY)  # local, remote
    log_level: str = "INFO"
    profile: str = "default"  # default, hardened

    # Of no keyword
    config_file: str | None = None  # that is read in place of the usual ones
    host_key_line: str = ""  # the only host key, as type and base64; known_hosts is not read
    stdio_forward: tuple[str, int] | None = None  # host and port for our input and output
    jump_command: tuple[str, ...] = ()  # the applet and words that connect us, not ssh with -W

    def algorithms(
        self, field: str, default: Sequence[str], supported: Sequence[str]
    ) -> tuple[str, ...]:
        """The list of 'ciphers', 'macs', 'kex_algorithms' and so on that is to be offered.

        ``+a,b`` adds to the default, ``-a*`` takes away, ``^a`` moves to the front, and a
        plain list stands for itself. Names that are not in ``supported`` are left out with
        a debug line; if none remains, UsageError.
        """
        written: str | None = getattr(self, field)
        if written is None:
            return tuple(default)
        sign, names = written[:1], written[1:]
        if sign == "-":
            chosen = [name for name in default if not matches_list(name, names)]
        elif sign == "+":
            chosen = [*default, *_select(names, supported)]
        elif sign == "^":
            chosen = [*_select(names, supported), *default]
        else:
            chosen = _select(written, supported)
        if not chosen:
            raise UsageError(
                f"{_spelling(field)}={written} leaves nothing; there are: {','.join(supported)}"
            )
        return tuple(dict.fromkeys(chosen))


def keyword_fields() -> list[str]:
    """The fields that keywords set."""
    return [row.field for row in _SETTINGS.values()]


def _select(names: str, supported: Sequence[str]) -> list[str]:
    """The supported names that a list means, in the list's order."""
    chosen = []
    for name in names.split(","):
        known = [each for each in supported if matches_list(each, name)]
        if not known:
            log.debug("the algorithm %r is not supported and left out", name)
        chosen += known
    return chosen


def _spelling(field: str) -> str:
    return next(row.keyword for row in _SETTINGS.values() if row.field == field)


# -- values ------------------------------------------------------------------------------


class _BadValue(Exception):
    """What was expected; the reader adds the rest of the sentence."""


def _one_of(*choices: str, **aliases: str) -> Callable[[str], str]:
    table = {choice: choice for choice in choices} | aliases

    def read(text: str) -> str:
        if text.lower() not in table:
            raise _BadValue(f"expected {', '.join(choices[:-1])} or {choices[-1]}")
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
            raise _BadValue(f"expected {what}")
        if not minimum <= int(text) <= maximum:
            raise _BadValue(f"expected {what} from {minimum} to {maximum}")
        return int(text)

    return read


def _text(text: str) -> str:
    return text


def _time(text: str) -> int:
    """Seconds of '90', '1m30', '2h' or '1w' (sshd_config(5), TIME FORMATS)."""
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
            raise _BadValue("expected a time such as 30 or 1m30s")
    total += int(digits or 0)
    if not text or total > 0x7FFFFFFF:
        raise _BadValue("expected a time such as 30 or 1m30s")
    return total


def _timeout(text: str) -> int | None:
    return None if text.lower() == "none" else _time(text)


def _persist(text: str) -> int | None:
    if text.lower() in ("no", "false"):
        return None
    return 0 if text.lower() in ("yes", "true") else _time(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _algorithm_list(text: str) -> str:
    if not text.lstrip("+-^") or any(c.isspace() for c in text):
        raise _BadValue("expected algorithms separated by commas, perhaps behind +, - or ^")
    return text


def _escape(text: str) -> str | None:
    if text.lower() == "none":
        return None
    if len(text) == 2 and text[0] == "^" and 64 <= ord(text[1]) < 128:
        return chr(ord(text[1]) & 31)
    if len(text) != 1 or ord(text) > 127:
        raise _BadValue("expected one character, ^ and a letter, or none")
    return text


def _size(text: str) -> int:
    """Bytes of '1G', '500M' or '4096'; 0 for 'default'."""
    if text.lower() == "default":
        return 0
    scale = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}.get(text[-1:].lower(), 1)
    digits = text[:-1] if scale > 1 else text
    if not digits.isascii() or not digits.isdigit() or len(digits) > 18:
        raise _BadValue("expected a size such as 500M or 1G, or default")
    if int(digits) * scale < _REKEY_MINIMUM:
        raise _BadValue(f"expected at least {_REKEY_MINIMUM} bytes")
    return int(digits) * scale


def _rekey(words: Sequence[str]) -> tuple[int, int]:
    size = _size(words[0])
    if len(words) > 2:
        raise _BadValue("expected a size and perhaps a time")
    return size, 0 if len(words) == 1 or words[1].lower() == "none" else _time(words[1])


def _unit(text: str) -> int:
    if text.lower() == "any":
        return TUNNEL_ANY
    if not text.isascii() or not text.isdigit() or len(text) > 10 or int(text) > _TUNNEL_MAXIMUM:
        raise _BadValue("expected the number of a device or any, and perhaps :number or :any")
    return int(text)


def tunnel_devices(text: str) -> tuple[int, int]:
    """Local and remote unit of ``local[:remote]``, as -w and TunnelDevice take it."""
    local, colon, remote = text.partition(":")
    return _unit(local), _unit(remote) if colon else TUNNEL_ANY


def _set_env(words: Sequence[str]) -> tuple[tuple[str, str], ...]:
    pairs: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise _BadValue("expected NAME=value")
        pairs.setdefault(name, value)
    return tuple(pairs.items())


def _send_env(words: Sequence[str]) -> tuple[str, ...]:
    if any("=" in word for word in words):
        raise _BadValue("expected names of variables, without values")
    return tuple(words)


def _proxy(text: str) -> Proxy | None:
    if text.lower() == "none":
        return None
    from ..config import hosts

    try:
        return hosts.proxy(text)
    except ValueError as error:
        raise _BadValue(str(error)) from error


def _jumps(text: str) -> tuple[str, ...]:
    if text.lower() == "none":
        return ()
    from ..config import hosts

    jumps = tuple(text.split(","))
    try:
        for jump in jumps:
            hosts.destination(jump)
    except ValueError as error:
        raise _BadValue(f"{error}, more of them behind commas, or none") from error
    return jumps


def _forward(direction: str) -> Callable[[Sequence[str]], Forward]:
    """Of one word as on the command line, or of two: where to listen, and the target."""

    def read(words: Sequence[str]) -> Forward:
        from ..config import forwards

        try:
            return forwards.forward(direction, ":".join(words))
        except ValueError as error:
            raise _BadValue(str(error)) from error

    return read


def _mask(text: str) -> int:
    if not text or len(text) > 4 or not set(text) <= set("01234567") or int(text, 8) > 0o777:
        raise _BadValue("expected an octal mask such as 0177")
    return int(text, 8)


def _remote_places(words: Sequence[str]) -> tuple[tuple[str, int], ...] | None:
    if len(words) == 1 and words[0].lower() in ("any", "none"):
        return None if words[0].lower() == "any" else ()
    from ..config import hosts

    try:
        return tuple(hosts.endpoint(word) for word in words)
    except ValueError as error:
        raise _BadValue(f"{error}; or any, or none") from error


def _files(words: Sequence[str]) -> tuple[str, ...]:
    if "none" in map(str.lower, words):
        if len(words) > 1:
            raise _BadValue("expected 'none' to stand alone")
        return ()
    return tuple(words)


class _Setting(NamedTuple):
    """How a keyword becomes a field of HostOptions."""

    keyword: str  # as the manual spells it
    field: str
    read: Callable[[Any], Any]
    takes: str = "word"  # 'word', 'words', or 'line': the rest of the line as it is
    secret: bool = False  # no error shows the value


_LOG_LEVEL = _one_of(
    *("quiet", "fatal", "error", "info", "verbose", "debug", "debug1", "debug2", "debug3")
)

_SETTINGS: Final[dict[str, _Setting]] = {
    row.keyword.lower(): row
    for row in (
        _Setting("HostName", "host_name", _text),
        _Setting("User", "user", _text),
        _Setting("Port", "port", _number(1, 65535, "a port")),
        _Setting("HostKeyAlias", "host_key_alias", _text),
        _Setting("AddressFamily", "address_family", _one_of("any", "inet", "inet6")),
        _Setting("BindAddress", "bind_address", _text),
        _Setting("ConnectTimeout", "connect_timeout", _timeout),
        _Setting("ConnectionAttempts", "connection_attempts", _number(1, 1 << 31, "a number")),
        _Setting("Proxy", "proxy", _proxy, secret=True),
        _Setting("ProxyJump", "proxy_jump", _jumps),
        _Setting("ProxyCommand", "proxy_command", _text, "line"),
        _Setting("TCPKeepAlive", "tcp_keep_alive", _flag),
        _Setting("ServerAliveInterval", "server_alive_interval", _time),
        _Setting("ServerAliveCountMax", "server_alive_count_max", _number(0, 1 << 31, "a number")),
        _Setting("IdentityFile", "identity_files", _text),
        _Setting("CertificateFile", "certificate_files", _text),
        _Setting("IdentitiesOnly", "identities_only", _flag),
        _Setting("IdentityAgent", "identity_agent", _text),
        _Setting("UserKnownHostsFile", "user_known_hosts_files", _files, "words"),
        _Setting("GlobalKnownHostsFile", "global_known_hosts_files", _files, "words"),
        _Setting(
            "StrictHostKeyChecking",
            "strict_host_key_checking",
            _one_of("yes", "accept-new", "ask", "no", true="yes", false="no", off="no"),
        ),
        _Setting("RevokedHostKeys", "revoked_host_keys", _text),
        _Setting("HashKnownHosts", "hash_known_hosts", _flag),
        _Setting(
            "UpdateHostKeys",
            "update_host_keys",
            _one_of("yes", "no", "ask", true="yes", false="no"),
        ),
        _Setting("FingerprintHash", "fingerprint_hash", _one_of("sha256", "md5")),
        _Setting("PreferredAuthentications", "preferred_authentications", _names),
        _Setting("PasswordAuthentication", "password_authentication", _flag),
        _Setting("PubkeyAuthentication", "pubkey_authentication", _pubkey),
        _Setting("KbdInteractiveAuthentication", "kbd_interactive_authentication", _flag),
        _Setting(
            "NumberOfPasswordPrompts",
            "number_of_password_prompts",
            _number(1, 1 << 31, "a number"),
        ),
        _Setting("BatchMode", "batch_mode", _flag),
        _Setting("RequiredRSASize", "required_rsa_size", _number(0, 16384, "a number of bits")),
        _Setting("Ciphers", "ciphers", _algorithm_list),
        _Setting("MACs", "macs", _algorithm_list),
        _Setting("KexAlgorithms", "kex_algorithms", _algorithm_list),
        _Setting("HostKeyAlgorithms", "host_key_algorithms", _algorithm_list),
        _Setting("PubkeyAcceptedAlgorithms", "pubkey_accepted_algorithms", _algorithm_list),
        _Setting("CASignatureAlgorithms", "ca_signature_algorithms", _algorithm_list),
        _Setting("Compression", "compression", _flag),
        _Setting("RekeyLimit", "rekey_limit", _rekey, "words"),
        _Setting(
            "RequestTTY",
            "request_tty",
            _one_of("auto", "no", "yes", "force", true="yes", false="no"),
        ),
        _Setting("RemoteCommand", "remote_command", _text, "line"),
        _Setting("SendEnv", "send_env", _send_env, "words"),
        _Setting("SetEnv", "set_env", _set_env, "words"),
        _Setting("SessionType", "session_type", _one_of("default", "none", "subsystem")),
        _Setting("StdinNull", "stdin_null", _flag),
        _Setting("ForkAfterAuthentication", "fork_after_authentication", _flag),
        _Setting("EscapeChar", "escape_char", _escape),
        _Setting("EnableEscapeCommandline", "enable_escape_commandline", _flag),
        _Setting(
            "ControlMaster",
            "control_master",
            _one_of("yes", "no", "ask", "auto", "autoask", true="yes", false="no"),
        ),
        _Setting("ControlPath", "control_path", _text),
        _Setting("ControlPersist", "control_persist", _persist),
        _Setting("ForwardAgent", "forward_agent", _text),
        _Setting("LocalForward", "forwards", _forward("L"), "words"),
        _Setting("RemoteForward", "forwards", _forward("R"), "words"),
        _Setting("DynamicForward", "forwards", _forward("D"), "words"),
        _Setting("GatewayPorts", "gateway_ports", _flag),
        _Setting("ExitOnForwardFailure", "exit_on_forward_failure", _flag),
        _Setting("ClearAllForwardings", "clear_all_forwardings", _flag),
        _Setting("StreamLocalBindMask", "stream_local_bind_mask", _mask),
        _Setting("StreamLocalBindUnlink", "stream_local_bind_unlink", _flag),
        _Setting("PermitRemoteOpen", "permit_remote_open", _remote_places, "words"),
        _Setting(
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
        _Setting("TunnelDevice", "tunnel_device", tunnel_devices),
        _Setting("LogLevel", "log_level", lambda text: _LOG_LEVEL(text).upper()),
        _Setting("profile", "profile", _one_of("default", "hardened")),
    )
}

_ALIASES: Final = {
    "challengeresponseauthentication": "kbdinteractiveauthentication",
    "skeyauthentication": "kbdinteractiveauthentication",
    "tisauthentication": "kbdinteractiveauthentication",
    "dsaauthentication": "pubkeyauthentication",
    "pubkeyacceptedkeytypes": "pubkeyacceptedalgorithms",
    "identityfile2": "identityfile",
}

# Accepted, without effect here: they tune, log, or belong to a feature that is off.
_TUNING_KEYWORDS: Final = """
    addkeystoagent canonicaldomains canonicalizefallbacklocal canonicalizemaxdots
    canonicalizepermittedcnames channeltimeout checkhostip cipher
    compressionlevel enablesshkeysign fallbacktorsh forwardx11timeout
    forwardx11trusted globalknownhostsfile2 gssapiauthentication gssapiclientidentity
    gssapidelegatecredentials gssapikexalgorithms gssapikeyexchange gssapirenewalforcesrekey
    gssapiserveridentity gssapitrustdns hostbasedacceptedalgorithms hostbasedauthentication
    hostbasedkeytypes ipqos kbdinteractivedevices localcommand logverbose obscurekeystroketiming
    protocol rhostsauthentication rhostsrsaauthentication rsaauthentication securitykeyprovider
    smartcarddevice syslogfacility tag useprivilegedport useroaming usersh
    userknownhostsfile2 verifyhostkeydns visualhostkey warnweakcrypto xauthlocation
"""
_TUNING: Final = frozenset(_TUNING_KEYWORDS.split())

# OpenSSH has them, Culvert has not: keyword -> the values that switch it off.
_OFF: Final = ("no", "none", "false", "off")
_NOT_YET_KEYWORDS: Final = """
    BindInterface CanonicalizeHostname ForwardX11
    KnownHostsCommand NoHostAuthenticationForLocalhost PermitLocalCommand PKCS11Provider
    ProxyUseFdpass RefuseConnection
"""
_NOT_YET: Final = {name.lower(): name for name in _NOT_YET_KEYWORDS.split()}
_REST_OF_LINE: Final = ("localcommand", "knownhostscommand")

_WAYS: Final = frozenset(("proxy", "proxy_jump", "proxy_command"))  # the first one given counts


# -- lines -------------------------------------------------------------------------------


def split_keyword(line: str) -> tuple[str, str]:
    """Keyword in lower case, and what follows behind blanks and at most one '='."""
    line = line.strip(" \t\r\f")
    if line.startswith('"'):
        keyword, _, rest = line[1:].partition('"')
    else:
        end = next((at for at, c in enumerate(line) if c in " \t="), len(line))
        keyword, rest = line[:end], line[end:]
    rest = rest.lstrip(" \t")
    return keyword.lower(), rest[1:].lstrip(" \t") if rest.startswith("=") else rest


def split_words(text: str) -> list[str]:
    """Words as ssh_config(5) separates them: quotes of both kinds, \\ before those, # ends.

    Raises ValueError if a quote is not closed.
    """
    words: list[str] = []
    at = 0
    while True:
        while at < len(text) and text[at] in " \t":
            at += 1
        if at == len(text) or text[at] == "#":
            return words
        word = ""
        quote = ""
        while at < len(text) and (quote or text[at] not in " \t"):
            letter = text[at]
            following = text[at + 1 : at + 2]
            escapable = "'\"\\" if quote else "'\"\\ "
            if letter == "\\" and following and following in escapable:
                word += following
                at += 1
            elif not quote and letter in "'\"":
                quote = letter
            elif letter == quote:
                quote = ""
            else:
                word += letter
            at += 1
        if quote:
            raise ValueError("a quote is not closed")
        words.append(word)


class Person(NamedTuple):
    """Who asks, and from where; a value for the tests to set."""

    name: str
    uid: int
    home: str
    machine: str

    @classmethod
    def current(cls) -> Person:
        """The user that this process runs as: the account's home, as OpenSSH, not $HOME."""
        import pwd

        uid = os.getuid()
        try:
            entry = pwd.getpwuid(uid)
            name, home = entry.pw_name, entry.pw_dir
        except KeyError:
            name, home = str(uid), os.environ.get("HOME", "/")
        return cls(name, uid, home, os.uname().nodename)


class _Reader:
    """One turn or two through all sources; ``found`` has the first value of each field."""

    def __init__(self, host: str, person: Person) -> None:
        self.host = host
        self.person = person
        self.found: dict[str, Any] = {}
        self.final = False
        self.final_wanted = False
        self._ignored = ""
        self._active = True
        self._where = ""

    def option(self, text: str) -> None:
        """The argument of an -o."""
        self._active = True
        self._where = "command line"
        keyword, _ = split_keyword(text)
        if keyword in ("host", "match", "include"):
            raise self._error(f"{keyword} can only stand in a file")
        self._line(text, 0, user=True)

    def setting(self, keyword: str, value: str) -> None:
        """A value that a command line letter gave: taken as it is, quotes and all."""
        self._active = True
        self._where = "command line"
        self._store(_SETTINGS[keyword.lower()], [value])

    def file(self, path: str, depth: int, *, user: bool, check: bool, needed: bool) -> None:
        """A configuration file and all that it includes; ``check``: its owner and mode."""
        try:
            with open(path, "rb") as stream:
                status = os.fstat(stream.fileno())
                if check and (status.st_uid not in (0, self.person.uid) or status.st_mode & 0o022):
                    raise UsageError(
                        f"{path}: bad owner or permissions: it must belong to you or root, and"
                        f" nobody else may write it; try chmod go-w {path}"
                    )
                data = stream.read(FILE_LIMIT + 1)
        except FileNotFoundError as error:
            if needed:
                raise UsageError(f"{path}: no such configuration file") from error
            return
        except OSError as error:
            if not needed and depth:
                log.debug("%s: %s", path, error.strerror)
                return
            raise UsageError(f"{path}: cannot read it: {error.strerror}") from error
        if len(data) > FILE_LIMIT:
            raise UsageError(f"{path}: larger than {FILE_LIMIT} bytes, so hardly a configuration")
        outer = self._active
        for number, line in enumerate(data.decode(errors="surrogateescape").split("\n"), 1):
            self._where = f"{path} line {number}"
            self._line(line, depth, user=user, check=check, outer=outer)
        self._active = outer

    def _error(self, text: str) -> UsageError:
        return UsageError(f"{self._where}: {text}")

    def _line(
        self, line: str, depth: int, *, user: bool, check: bool = False, outer: bool = True
    ) -> None:
        """``outer``: whether the Host or Match around an included file applies."""
        keyword, rest = split_keyword(line)
        if not keyword or keyword.startswith("#"):
            return
        keyword = _ALIASES.get(keyword, keyword)
        row = _SETTINGS.get(keyword)
        if (row and row.takes == "line") or keyword in _REST_OF_LINE:
            words = [rest.strip()] if rest.strip() else []
        else:
            try:
                words = split_words(rest)
            except ValueError as error:
                raise self._error(f"{keyword}: {error}") from error
        known = row or keyword in _TUNING or keyword in _NOT_YET
        if not known and keyword not in ("host", "match", "include", "ignoreunknown"):
            if matches_list(keyword, self._ignored.lower()):
                log.debug("%s: the unknown option %s is ignored", self._where, keyword)
                return
            raise self._error(f"Bad configuration option: {keyword}")
        if not words:
            raise self._error(f"{row.keyword if row else keyword}: a value is missing")
        if keyword == "host":
            self._active = outer and self._host_applies(words)
        elif keyword == "match":
            self._active = self._match_applies(words) and outer
        elif keyword == "include":
            where = self._where
            for path in self._included(words, user):
                if depth >= INCLUDE_DEPTH:
                    raise self._error(f"more than {INCLUDE_DEPTH} files include each other")
                self.file(path, depth + 1, user=user, check=check, needed=False)
            self._where = where
        elif keyword == "ignoreunknown":
            self._ignored = self._ignored or (words[0] if self._active else "")
        elif row:
            self._store(row, words)
        elif keyword in _TUNING:
            if self._active:
                log.debug("%s: %s has no effect here", self._where, keyword)
        elif self._active and keyword not in self.found:
            if words[0].lower() not in _OFF:
                raise self._error(f"{_NOT_YET[keyword]} is not supported")
            self.found[keyword] = None

    def _store(self, row: _Setting, words: list[str]) -> None:
        shown = "" if row.secret else repr(" ".join(words))
        if row.takes != "words" and len(words) > 1:
            raise self._error(f"{row.keyword}: more than one value" + (shown and f": {shown}"))
        try:
            value = row.read(words if row.takes == "words" else words[0])
        except _BadValue as error:
            raise self._error(f"{row.keyword}: {error}" + (shown and f", not {shown}")) from error
        if not words[0] and row.takes != "words":
            raise self._error(f"{row.keyword}: a value is missing")
        if not self._active or (row.field in _WAYS and not _WAYS.isdisjoint(self.found)):
            return
        if row.field in ("identity_files", "certificate_files"):
            files = self.found.setdefault(row.field, [])
            if value not in files:
                files.append(value)
        elif row.field == "forwards":
            found = self.found.setdefault(row.field, [])
            if value not in found:
                found.append(value)
        elif row.field == "send_env":
            patterns = self.found.setdefault(row.field, [])
            for pattern in value:
                if pattern.startswith("-"):  # takes back what was collected so far
                    patterns[:] = [p for p in patterns if not matches_list(p, pattern[1:])]
                elif pattern not in patterns:
                    patterns.append(pattern)
        else:
            self.found.setdefault(row.field, value)

    def _host_applies(self, patterns: list[str]) -> bool:
        applies = False
        for pattern in patterns:
            if matches_list(self.host, pattern.removeprefix("!")):
                if pattern.startswith("!"):
                    return False
                applies = True
        return applies

    def _match_applies(self, words: list[str]) -> bool:
        rest = [part for word in words for part in self._criterion(word)]
        applies = True
        position = 0
        while rest:
            word = rest.pop(0)
            negated = word.startswith("!")
            name = word.removeprefix("!").lower()
            position += 1
            if name == "all":
                if rest or negated or position > 2:
                    raise self._error("Match: 'all' cannot be combined with other criteria")
                return applies
            if name in ("canonical", "final"):
                self.final_wanted = self.final_wanted or name == "final"
                applies = applies and self.final != negated
                continue
            if not rest:
                raise self._error(f"Match: '{name}' needs a value")
            value = rest.pop(0)
            if name == "host":
                result = matches_list(self.current_host_name().lower(), value.lower())
            elif name == "originalhost":
                result = matches_list(self.host.lower(), value.lower())
            elif name == "user":
                result = matches_list(self.found.get("user", self.person.name), value)
            elif name == "localuser":
                result = matches_list(self.person.name, value)
            elif name in ("exec", "localnetwork", "tagged", "command", "version", "sessiontype"):
                if applies:
                    raise self._error(f"Match {name} is not supported")
                result = None
            else:
                raise self._error(f"Match: {name!r} is not a criterion")
            applies = applies and (result is True) != negated
        return applies

    def _criterion(self, word: str) -> list[str]:
        """'host=x' is as good as 'host x'."""
        name, equals, value = word.partition("=")
        return [name, value] if equals and name.removeprefix("!").isalpha() else [word]

    def _included(self, patterns: Iterable[str], user: bool) -> Iterator[str]:
        import glob

        base = os.path.join(self.person.home, ".ssh") if user else os.path.dirname(SYSTEM_FILE)
        for pattern in patterns:
            if pattern.startswith("~"):
                if not user:
                    raise self._error(f"Include: a path with ~ in the system's file: {pattern!r}")
                pattern = self.tilde(pattern)
            yield from sorted(glob.glob(os.path.join(base, pattern)))

    def tilde(self, path: str) -> str:
        """The path with ~ or ~name in front resolved."""
        if path == "~" or path.startswith("~/"):
            return self.person.home + path[1:]
        if path.startswith("~"):
            expanded = os.path.expanduser(path)
            if expanded == path:
                raise UsageError(f"{path}: there is no such user")
            return expanded
        return path

    def current_host_name(self) -> str:
        """Where HostName, as far as it is known by now, leads."""
        if "host_name" not in self.found:
            return self.host
        return expand(self.found["host_name"], {"h": self.host}, "HostName")


# -- tokens ------------------------------------------------------------------------------

# None of these comes from a file's author alone, so a value must not lead a path elsewhere.
_UNSAFE: Final = frozenset("'`\"$\\;&<>|(){}")


def check_host(name: str) -> str:
    """The name, if it can be a host's; UsageError for shell characters and blanks."""
    if not name or name.startswith("-") or _has_unsafe(name):
        raise UsageError(f"{name!r} is not the name of a host")
    return name


def check_user(name: str) -> str:
    """The name, if it can be a remote user's."""
    harmful = any(c in "'`\";&<>|(){}" or not c.isprintable() for c in name)
    if not name or name.startswith("-") or harmful or " -" in name or name.endswith("\\"):
        raise UsageError(f"{name!r} is not the name of a user")
    return name


def _has_unsafe(text: str) -> bool:
    return any(c in _UNSAFE or c.isspace() or not c.isprintable() for c in text)


def expand(text: str, tokens: dict[str, str], keyword: str) -> str:
    """The text with its %-tokens replaced; %% is a percent sign."""
    parts = text.split("%")
    result = parts.pop(0)
    parts.reverse()
    while parts:
        part = parts.pop()
        if not part:  # '%%', or '%' at the very end
            if not parts:
                raise UsageError(f"{keyword}: {text!r} ends in a single %")
            result += "%" + parts.pop()
        elif part[0] in tokens:
            result += tokens[part[0]] + part[1:]
        else:
            raise UsageError(f"{keyword}: %{part[0]} is not known in {text!r}")
    return result


def expand_environment(text: str, keyword: str) -> str:
    """The text with each ${NAME} replaced; a variable that is not set is an error."""
    result, *parts = text.split("${")
    for part in parts:
        name, brace, rest = part.partition("}")
        if not brace:
            raise UsageError(f"{keyword}: a ${{ without }} in {text!r}")
        if name not in os.environ:
            raise UsageError(f"{keyword}: the variable {name} is not set")
        result += os.environ[name] + rest
    return result


# -- the whole ---------------------------------------------------------------------------

_DEFAULT_IDENTITIES: Final = ("id_rsa", "id_ecdsa", "id_ed25519")  # in OpenSSH's order


def load(
    host: str,
    options: Sequence[str | tuple[str, str]] = (),
    config_file: str | None = None,
    person: Person | None = None,
) -> HostOptions:
    """The settings for ``host``, as it was typed; raises UsageError.

    ``options`` come first: a str is an -o's argument, a pair of keyword and value comes
    from a letter such as -p and is not split into words. ``config_file`` takes the place
    of both usual files; 'none' stands for no file.
    """
    person = person or Person.current()
    reader = _Reader(check_host(host), person)

    def turn() -> None:
        for option in options:
            if isinstance(option, str):
                reader.option(option)
            else:
                reader.setting(*option)
        reader._active = True
        if config_file is not None:
            if config_file.lower() != "none":
                reader.file(config_file, 0, user=True, check=False, needed=True)
            return
        path = os.path.join(person.home, ".ssh", "config")
        reader.file(path, 0, user=True, check=True, needed=False)
        reader.file(SYSTEM_FILE, 0, user=False, check=False, needed=False)

    turn()
    if reader.final_wanted:
        reader.final = True
        reader.found["host_name"] = reader.current_host_name().replace("%", "%%")
        turn()
    settings = _resolve(reader)
    settings.config_file = config_file
    return settings


def _resolve(reader: _Reader) -> HostOptions:
    """Fill in the defaults that depend on the user, and expand what may hold tokens."""
    person = reader.person
    settings = HostOptions()
    for row in _SETTINGS.values():
        if row.field in reader.found:
            setattr(settings, row.field, reader.found[row.field])
    settings.host = reader.host
    settings.host_name = check_host(reader.current_host_name()).lower()
    settings.user = check_user(settings.user or person.name)
    settings.send_env = tuple(settings.send_env)
    tokens = {
        "d": person.home,
        "h": settings.host_name,
        "i": str(person.uid),
        "j": "",
        "k": settings.host_key_alias or reader.host,
        "L": person.machine.partition(".")[0],
        "l": person.machine,
        "n": reader.host,
        "p": str(settings.port),
        "r": settings.user,
        "u": person.name,
    }

    def path(text: str, keyword: str) -> str:
        known = tokens
        if "%" in text:
            if "%C" in text:
                known = {**tokens, "C": _connection_hash(tokens)}
            for letter in "hknru":
                value = tokens[letter]
                risky = "/" in value or ".." in value or _has_unsafe(value)
                if f"%{letter}" in text and risky:
                    raise UsageError(f"{keyword}: %{letter} stands for {value!r}, not for a file")
        return expand_environment(expand(reader.tilde(text), known, keyword), keyword)

    settings.forwards = tuple(
        each._replace(
            **{
                part: path(place, "a forward")
                for part, place in (("listen", each.listen), ("target", each.target))
                if isinstance(place, str)
            }
        )
        for each in settings.forwards
        if not settings.clear_all_forwardings
    )
    settings.identity_files_given = "identity_files" in reader.found
    if settings.identity_files_given:
        files = [each for each in settings.identity_files if each.lower() != "none"]
        settings.identity_files = tuple(path(each, "IdentityFile") for each in files)
    else:
        home = os.path.join(person.home, ".ssh")
        settings.identity_files = tuple(os.path.join(home, name) for name in _DEFAULT_IDENTITIES)
    settings.certificate_files = tuple(
        path(each, "CertificateFile")
        for each in settings.certificate_files
        if each.lower() != "none"
    )
    if settings.revoked_host_keys is not None:
        none = settings.revoked_host_keys.lower() == "none"
        settings.revoked_host_keys = (
            None if none else path(settings.revoked_host_keys, "RevokedHostKeys")
        )
    if "user_known_hosts_files" in reader.found:
        settings.user_known_hosts_files = tuple(
            path(each, "UserKnownHostsFile") for each in settings.user_known_hosts_files
        )
        # Somebody who names a file may not want it to be changed (ssh_config(5)).
        settings.update_host_keys = reader.found.get("update_host_keys", "no")
    else:
        settings.user_known_hosts_files = tuple(
            os.path.join(person.home, ".ssh", name) for name in ("known_hosts", "known_hosts2")
        )

    def agent(text: str, keyword: str) -> str:
        if text.startswith("$") and not text.startswith("${"):
            return os.environ.get(text[1:], "")
        return path(text, keyword)

    if settings.identity_agent is not None:
        if settings.identity_agent.lower() == "none":
            settings.identity_agent = ""
        elif settings.identity_agent == "SSH_AUTH_SOCK":
            settings.identity_agent = None
        else:
            settings.identity_agent = agent(settings.identity_agent, "IdentityAgent")
    if settings.control_path is not None:
        none = settings.control_path.lower() == "none"
        settings.control_path = None if none else path(settings.control_path, "ControlPath")
    usual = settings.identity_agent
    if settings.forward_agent.lower() in ("no", "false"):
        settings.forward_agent = ""
    elif settings.forward_agent.lower() in ("yes", "true"):
        settings.forward_agent = os.environ.get("SSH_AUTH_SOCK", "") if usual is None else usual
    elif settings.forward_agent:
        settings.forward_agent = agent(settings.forward_agent, "ForwardAgent")
    if settings.proxy_command is not None:
        known = {letter: tokens[letter] for letter in "hnpr"}
        command = expand(settings.proxy_command, known, "ProxyCommand")
        settings.proxy_command = None if command.lower() == "none" else command
    if settings.remote_command is not None:
        if settings.remote_command.lower() == "none":
            settings.remote_command = None
        else:
            command = settings.remote_command
            if "%C" in command:
                tokens["C"] = _connection_hash(tokens)
            settings.remote_command = expand(command, tokens, "RemoteCommand")
    return settings


def _connection_hash(tokens: dict[str, str]) -> str:
    """%C: SHA-1 over %l%h%p%r%j, a short name for a connection."""
    import hashlib

    text = "".join(tokens[letter] for letter in "lhprj")
    return hashlib.sha1(text.encode(errors="surrogateescape")).hexdigest()
