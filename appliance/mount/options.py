"""The options of sshfs, as -o takes them: sshfs's own, those of FUSE, of mount(8) and of ssh.

``read`` makes a MountSettings, a KernelOptions, and what says how the server is reached. The tables
below name every option; one that stands in none of them is an error, as with sshfs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from ..client.ssh_keywords import NOT_YET, SETTINGS, TUNING
from ..errors import UsageError
from .mounting import (
    MS_DIRSYNC,
    MS_NOATIME,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_SYNCHRONOUS,
    KernelOptions,
)
from .settings import IdMap, MountSettings


@dataclass(slots=True)
class MountLine:
    """What all options together say."""

    mount: MountSettings = field(default_factory=MountSettings)
    kernel: KernelOptions = field(default_factory=KernelOptions)
    source: str = ""  # fsname; '' is that of the command line
    ssh: tuple[str, ...] = ()  # keyword=value
    ssh_command: str = ""
    sftp_server: str = ""  # a subsystem, or a path
    direct_port: int = 0
    passive: bool = False
    password_stdin: bool = False
    debug: bool = False
    verbose: bool = False
    become: str = ""  # setuid: the user who mounts


def _number(lowest: int, highest: int, base: int = 10) -> Callable[[str], int]:
    def read(text: str) -> int:
        digits = "01234567" if base == 8 else "0123456789"
        is_number = 0 < len(text) < 20 and not set(text) - set(digits)
        number = int(text, base) if is_number else -1
        if not lowest <= number <= highest:
            form = "o" if base == 8 else "d"
            raise ValueError(f"expected a number from {lowest:{form}} to {highest:{form}}")
        return number

    return read


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < math.inf:
        raise ValueError("expected seconds")
    return number


def _patience(text: str) -> float:
    number = _seconds(text)
    if number < 1:
        raise ValueError("expected at least 1 second")
    return number


def _mebibytes(text: str) -> int:
    return _number(1, 1 << 20)(text) << 20


def _flag(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError("expected yes or no")
    return text == "yes"


_id = _number(0, (1 << 32) - 2)
_size = _number(1, 1 << 30)

# Flags that set a field of MountSettings
_FLAGS: Final[dict[str, tuple[str, bool]]] = {
    "direct_io": ("direct_io", True),
    "kernel_cache": ("kernel_cache", True),
    "auto_cache": ("kernel_cache", False),
    "no_readahead": ("read_ahead", False),
    "sshfs_sync": ("sync_writes", True),
    "write_behind": ("write_behind", True),
    "follow_symlinks": ("follow_symlinks", True),
    "transform_symlinks": ("transform_symlinks", True),
    "contain_symlinks": ("contain_symlinks", True),
    "no_contain_symlinks": ("contain_symlinks", False),
    "disable_hardlink": ("hard_links", False),
}

# Values that set fields of MountSettings
_VALUES: Final[dict[str, tuple[tuple[str, ...], Callable[[str], Any]]]] = {
    "timeout": (("timeout",), _patience),
    "cache_size": (("memory",), _mebibytes),
    "write_behind": (("write_behind",), _flag),
    "dir_cache": (("caches",), _flag),
    "dcache_timeout": (("attributes_timeout", "links_timeout", "names_timeout"), _seconds),
    "dcache_stat_timeout": (("attributes_timeout",), _seconds),
    "dcache_link_timeout": (("links_timeout",), _seconds),
    "dcache_dir_timeout": (("names_timeout",), _seconds),
    "entry_timeout": (("entry_timeout",), _seconds),
    "attr_timeout": (("attr_timeout",), _seconds),
    "negative_timeout": (("negative_timeout",), _seconds),
    "max_read": (("max_read",), _size),
    "max_write": (("max_write",), _size),
    "uid": (("uid",), _id),
    "gid": (("gid",), _id),
    "umask": (("umask",), _number(0, 0o777, 8)),
}

_WORKAROUNDS: Final[dict[str, tuple[str, bool] | None]] = {
    "rename": ("rename_over", True),
    "norename": ("rename_over", False),
    "renamexdev": ("rename_exdev", True),
    "norenamexdev": ("rename_exdev", False),
    "createmode": ("create_mode", False),
    "nocreatemode": ("create_mode", True),
    # for servers and bugs that are history
    **dict.fromkeys(
        ("none", "truncate", "notruncate", "buflimit", "nobuflimit", "fstat", "nofstat")
    ),
}

# Flags of mount(2): those that are set, and those that are taken away
_MOUNT_FLAGS: Final[dict[str, tuple[int, int]]] = {
    "ro": (MS_RDONLY, 0),
    "rw": (0, MS_RDONLY),
    "nosuid": (MS_NOSUID, 0),
    "suid": (0, MS_NOSUID),
    "nodev": (MS_NODEV, 0),
    "dev": (0, MS_NODEV),
    "noexec": (MS_NOEXEC, 0),
    "exec": (0, MS_NOEXEC),
    "sync": (MS_SYNCHRONOUS, 0),
    "async": (0, MS_SYNCHRONOUS),
    "dirsync": (MS_DIRSYNC, 0),
    "noatime": (MS_NOATIME, 0),
    "atime": (0, MS_NOATIME),
}
_KERNEL_WORDS: Final = ("allow_other", "default_permissions")
_KERNEL_VALUES: Final = ("context", "fscontext", "defcontext", "rootcontext")  # mount(8), SELinux

# Flags of MountLine
_LINE_FLAGS: Final[dict[str, tuple[str, bool]]] = {
    "passive": ("passive", True),
    "slave": ("passive", True),  # its name in sshfs 2
    "password_stdin": ("password_stdin", True),
    "debug": ("debug", True),
    "sshfs_debug": ("debug", True),
    "sshfs_verbose": ("verbose", True),
}
_LINE_VALUES: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "fsname": ("source", str),
    "ssh_command": ("ssh_command", str),
    "sftp_server": ("sftp_server", str),
    "directport": ("direct_port", _number(1, 65535)),
    "setuid": ("become", str),
}

# What changes nothing: it is so anyway, concerns mount(8) alone, or has no meaning here. A server
# is always asked before the mount is made, and for the directory.
_IGNORED_FLAGS = """
    auto noauto user nouser users owner group _netdev nofail defaults
    relatime norelatime strictatime nostrictatime diratime nodiratime lazytime nolazytime
    reconnect delay_connect no_check_root sync_readdir noauto_cache no_rofd_flush
    unreliable_append nonempty
    large_read big_writes hard_remove use_ino readdir_ino noforget intr async_read sync_read
    clone_fd
"""
_IGNORED: Final = frozenset(_IGNORED_FLAGS.split())
_IGNORED_WITH_VALUE = """
    user comment writeback_cache max_background congestion_threshold max_readahead remember
    ac_attr_timeout intr_signal max_idle_threads max_threads
    dcache_max_size dcache_clean_interval dcache_min_clean_interval
"""
_IGNORED_VALUES: Final = frozenset(_IGNORED_WITH_VALUE.split())
_REFUSED: Final = {
    "allow_root": "allow_other with default_permissions lets root and others in",
    "modules": "FUSE's modules belong to libfuse; a directory may stand behind the host",
}


def split(text: str) -> Iterator[str]:
    """Yields the options of one -o; a backslash hides a comma, or begins an octal number."""
    word = ""
    at = 0
    while at < len(text):
        character = text[at]
        at += 1
        if character == ",":
            yield word
            word = ""
            continue
        if character == "\\" and at < len(text):
            digits = text[at : at + 3]
            if len(digits) == 3 and digits[0] in "0123" and set(digits) <= set("01234567"):
                code = int(digits, 8)
                character = chr(code if code < 128 else 0xDC00 + code)  # a byte of a name
                at += 3
            else:
                character = text[at]
                at += 1
        word += character
    yield word


def read(texts: Iterable[str], is_sloppy: bool = False) -> MountLine:
    """Returns what the arguments of all -o say; raises UsageError.

    ``is_sloppy``: an unknown option is ignored, as mount -s wants it.
    """
    reader = _Reader()
    words = [word for text in texts for word in split(text) if word]
    for word in words:
        if "\0" in word:
            raise UsageError(f"option {word!r}: a NUL byte")
    unknown = [word for word in words if not reader.take(word)]
    if unknown and not is_sloppy:
        raise UsageError(f"unknown option(s): `-o {','.join(unknown)}'")
    return reader.line()


class _Reader:
    """Takes options one by one; the last one of a name counts."""

    def __init__(self) -> None:
        self._mount: dict[str, Any] = {}
        self._line: dict[str, Any] = {}
        self._kernel: dict[str, Any] = {}
        self._flags = KernelOptions().flags
        self._words: dict[str, None] = {}  # in their order
        self._ssh: list[str] = []
        self._id_map = "none"
        self._is_strict = True
        self._files = {"uidfile": "", "gidfile": ""}

    def take(self, word: str) -> bool:
        """Returns whether the option is known; raises UsageError for a bad value."""
        name, equals, value = word.partition("=")
        if name in _REFUSED:
            raise UsageError(f"{name} is not supported: {_REFUSED[name]}")
        if name.startswith(("x-", "X-")):
            return True
        return self._take_value(name, value, word) if equals else self._take_flag(name)

    def _take_flag(self, name: str) -> bool:
        if name in _FLAGS:
            key, setting = _FLAGS[name]
            self._mount[key] = setting
        elif name in _LINE_FLAGS:
            key, setting = _LINE_FLAGS[name]
            self._line[key] = setting
        elif name in _MOUNT_FLAGS:
            on, off = _MOUNT_FLAGS[name]
            self._flags = self._flags & ~off | on
        elif name in _KERNEL_WORDS:
            self._words[name] = None
        elif name == "auto_unmount":
            self._kernel["auto_unmount"] = True
        else:
            return name in _IGNORED
        return True

    def _take_value(self, name: str, value: str, word: str) -> bool:
        if name.startswith("cache") and name != "cache_size":  # their names in sshfs 2
            name = "dir_cache" if name == "cache" else f"d{name}"
        try:
            if name in _VALUES:
                keys, convert = _VALUES[name]
                self._mount |= dict.fromkeys(keys, convert(value))
            elif name in _LINE_VALUES:
                key, convert = _LINE_VALUES[name]
                self._line[key] = convert(value)
            elif name in _KERNEL_VALUES:
                self._words[word] = None
            elif name == "subtype":
                self._kernel["subtype"] = value
            elif name == "workaround":
                self._work_around(value)
            elif name in ("idmap", "nomap", "uidfile", "gidfile"):
                self._map(name, value)
            elif name == "max_conns":
                _number(1, 1 << 31)(value)  # one connection does what sshfs has several for
            elif name == "ssh_protocol":
                _number(2, 2)(value)
            elif name in _IGNORED_VALUES:
                pass
            elif name.lower() in SETTINGS or name.lower() in TUNING or name.lower() in NOT_YET:
                self._ssh.append(word)
            else:
                return False
        except ValueError as error:
            raise UsageError(f"invalid parameter in option `{word}': {error}") from error
        return True

    def _work_around(self, names: str) -> None:
        for name in names.split(":"):
            if name not in _WORKAROUNDS:
                raise UsageError(f"unknown workaround: '{name}'")
            if (row := _WORKAROUNDS[name]) is not None:
                key, setting = row
                self._mount[key] = setting

    def _map(self, name: str, value: str) -> None:
        if name == "idmap":
            if value not in ("none", "user", "file"):
                raise ValueError("expected none, user or file")
            self._id_map = value
        elif name == "nomap":
            if value not in ("ignore", "error"):
                raise ValueError("expected ignore or error")
            self._is_strict = value == "error"
        else:
            self._files[name] = value

    def line(self) -> MountLine:
        """Returns all that was taken; reads the files of idmap=file. Raises UsageError."""
        users = groups = IdMap()
        if self._id_map == "file":
            from .id_map import read_groups, read_users

            if not any(self._files.values()):
                raise UsageError("idmap=file needs a uidfile or a gidfile")
            if path := self._files["uidfile"]:
                users = read_users(path, self._is_strict)
            if path := self._files["gidfile"]:
                groups = read_groups(path, self._is_strict)
        own_user = self._id_map == "user"
        return MountLine(
            MountSettings(**self._mount, maps_own_user=own_user, users=users, groups=groups),
            KernelOptions(flags=self._flags, words=tuple(self._words), **self._kernel),
            ssh=tuple(self._ssh),
            **self._line,
        )
