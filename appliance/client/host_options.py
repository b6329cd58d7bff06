"""The settings of the client for one host, with their defaults."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..crypto.patterns import matches_list
from ..errors import UsageError
from .ssh_keywords import SETTINGS, TUNNEL_ANY, AddKeys

if TYPE_CHECKING:
    from ..config.forwards import Forward
    from ..config.hosts import Proxy

_log = logging.getLogger(__name__)

Tunnel = str  # 'no', 'point-to-point' or 'ethernet'


class HostOptions:
    """Holds all settings for one host; a field that is not set keeps its default.

    Paths are absolute, with ~, %-tokens and ${VARIABLES} resolved. Times are seconds.
    """

    host: str = ""  # as the user typed it: %n
    host_name: str = ""  # the name or address to connect to
    port: int = 22
    user: str = ""
    host_key_alias: str | None = None
    address_family: str = "any"  # any, inet, inet6
    bind_address: str | None = None
    connect_timeout: int | None = None
    connection_attempts: int = 1
    proxy: Proxy | None = None
    proxy_jump: tuple[str, ...] = ()  # [user@]host[:port], the first hop first
    proxy_command: str | None = None  # run by the shell
    tcp_keep_alive: bool = True
    server_alive_interval: int = 0  # 0: never
    server_alive_count_max: int = 3

    identity_files: tuple[str, ...] = ()  # the default ones if none is set
    identity_files_given: bool = False
    certificate_files: tuple[str, ...] = ()  # in addition to those next to the identity files
    identities_only: bool = False
    add_keys_to_agent: AddKeys = AddKeys("no", 0)
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

    # Lists as the user wrote them; algorithms() resolves them against the supported ones.
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
    forward_x11: bool = False
    forward_x11_trusted: bool = False
    forward_x11_timeout: int = 1200  # seconds for new programs that are not trusted; 0: no limit
    x11_clipboard: str = "out"  # none, out, in, both: for programs that are not trusted
    forwards: tuple[Forward, ...] = ()  # in the order of the configuration
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
    host_key_line: str | None = None  # the only key, as type and base64; known_hosts is not read
    profile: str = "default"  # default, hardened

    # Fields that no keyword sets
    x11_refused: str = "ignore"  # what a session without X11 does: ignore, warn, fail
    config_file: str | None = None  # read instead of the default files
    stdio_forward: tuple[str, int] | None = None  # host and port for standard input and output
    idle_timeout: int = 0  # seconds without traffic after which the client gives up; 0: never
    is_impostor: bool = False  # possibly: its host key changed, and the user continues anyway
    jump_command: tuple[str, ...] = ()  # the applet and words to reach the host; (): ssh -W

    def algorithms(
        self, field: str, default: Sequence[str], supported: Sequence[str]
    ) -> tuple[str, ...]:
        """Returns the algorithms to offer for a ``field`` such as 'ciphers' or 'macs'.

        ``+a,b`` adds to the default, ``-a*`` removes from it, ``^a`` moves to its front, and a
        list without a sign replaces it. Names that are not in ``supported`` are left out with a
        debug line. Raises UsageError if none remains.
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


def _select(names: str, supported: Sequence[str]) -> list[str]:
    """Returns the supported names that match a list of patterns, in the list's order."""
    chosen = []
    for name in names.split(","):
        known = [each for each in supported if matches_list(each, name)]
        if not known:
            _log.debug("the algorithm %r is not supported and left out", name)
        chosen += known
    return chosen


def _spelling(field: str) -> str:
    return next(row.keyword for row in SETTINGS.values() if row.field == field)
