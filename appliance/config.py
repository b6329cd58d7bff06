"""The server's settings, and how a TOML file becomes them.

Every key is optional, has the name of the field below, and means what sshd_config's key of
that name means. An error names the file, the key and what is expected.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, get_origin

from .errors import UsageError

PermitRootLogin = Literal["yes", "prohibit-password", "no"]
PermitTunnel = Literal["no", "point-to-point", "ethernet", "yes"]
Profile = Literal["default", "hardened"]

DEFAULT_HOST_KEY: Final = "/etc/culvert/ssh_host_ed25519_key"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """What ``culvert sshd`` does; durations in seconds, 0 for never."""

    listen: tuple[str, ...] = ("22",)  # [address:]port
    host_keys: tuple[str, ...] = (DEFAULT_HOST_KEY,)
    make_host_keys: bool = False  # those of host_keys that are missing
    pid_file: str = "/run/culvert.pid"
    profile: Profile = "default"

    permit_root_login: PermitRootLogin = "yes"
    password_authentication: bool = True
    permit_empty_passwords: bool = False
    publickey_and_password: bool = False  # both, in this order
    password_file: str = ""  # lines of user:argon2id-hash, in place of the system's hashes
    authorized_keys_directory: str = "~/.ssh"
    allow_group: str = ""
    max_auth_tries: int = 6
    login_grace_time: int = 120
    max_startups: tuple[int, int, int] = (10, 30, 100)  # start, percent, full
    max_startups_per_source: int = 20
    per_source_penalties: bool = True
    # What comes from this machine is often a proxy in front of everybody.
    per_source_penalty_exempt_list: tuple[str, ...] = ("127.0.0.0/8", "::1")

    banner: str = ""  # a file's name
    print_motd: bool = True
    force_command: str = ""
    accept_env: tuple[str, ...] = ("LANG", "LC_*", "COLORTERM")
    pass_environment: bool = False  # the server's own, to the user's programs
    subsystems: dict[str, str] = field(default_factory=dict)
    permit_tunnel: PermitTunnel = "no"

    receive_window: int = 2 << 20
    keepalive: int = 0
    idle_timeout: int = 0
    rekey_bytes: int = 4 << 30
    rekey_seconds: int = 3600


_RANGES: Final[dict[str, tuple[int, int]]] = {
    "max_auth_tries": (1, 100),
    "login_grace_time": (0, 86400),
    "max_startups_per_source": (1, 10000),
    "receive_window": (32 << 10, 64 << 20),
    "keepalive": (0, 86400),
    "idle_timeout": (0, 10 * 86400),
    "rekey_bytes": (1 << 20, 64 << 30),
    "rekey_seconds": (60, 86400),
}


def load_server_config(path: str, defaults: ServerConfig) -> ServerConfig:
    """The file's settings over ``defaults``; raises UsageError."""
    import tomllib

    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a TOML file: {error}") from error
    return replace(defaults, **_checked(path, table))


def _checked(path: str, table: dict[str, Any]) -> dict[str, Any]:
    """The values of ``table`` as the fields want them, checked by cattrs one by one."""
    from dataclasses import fields

    import cattrs

    converter = cattrs.Converter(forbid_extra_keys=True)
    for plain in (str, int, bool):
        converter.register_structure_hook(plain, _strict(plain))
    known = {each.name: each.type for each in fields(ServerConfig)}
    values = {}
    for key, value in table.items():
        if key not in known:
            raise UsageError(f"{path}: there is no key '{key}'{_meant(key, known)}")
        try:
            if get_origin(known[key]) is tuple and type(value) is not list:
                raise TypeError("not a list")  # cattrs would take a string's letters
            checked = converter.structure(value, known[key])  # type: ignore[arg-type]
        except Exception as error:  # a whole tree of them: cattrs has no common root
            raise UsageError(
                f"{path}: {key}: expected {_expected(known[key])}, not {value!r}"
            ) from error
        low, high = _RANGES.get(key, (None, None))
        if low is not None and high is not None and not low <= checked <= high:
            raise UsageError(f"{path}: {key}: expected {low} to {high}, not {value!r}")
        values[key] = checked
    return values


def _strict(plain: type) -> Any:
    def structure(value: object, _: object) -> object:
        if type(value) is not plain:
            raise TypeError(f"not a {plain.__name__}")
        return value

    return structure


def _expected(kind: Any) -> str:
    """A type in a reader's words."""
    plain = {str: "a string", int: "a whole number", bool: "true or false"}
    if kind in plain:
        return plain[kind]
    arguments: tuple[Any, ...] = getattr(kind, "__args__", ())
    if all(isinstance(choice, str) for choice in arguments):
        return "one of " + ", ".join(arguments)
    if kind == dict[str, str]:
        return "a table of strings"
    if arguments[-1] is Ellipsis:
        return "a list of strings"
    return f"a list of {len(arguments)} whole numbers"


def _meant(key: str, known: dict[str, Any]) -> str:
    import difflib

    close = difflib.get_close_matches(key, known, 1)
    return f"; did you mean '{close[0]}'?" if close else ""
