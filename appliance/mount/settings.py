"""What the options of a mount say about its files; mounting.py has those of the mount itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

# Our own choices
FRESH: Final = 3.0  # seconds that names and attributes hold unless the server tells of changes
TIMEOUT: Final = 60.0  # seconds until a request fails that the server does not answer
MEMORY: Final = 32 << 20  # bytes of listings and of files that were read ahead


@dataclass(frozen=True, slots=True, kw_only=True)
class IdMap:
    """Users or groups: numbers at the server, and those that they have here.

    Those that are missing keep their numbers, or are an error with ``is_strict``.
    """

    to_local: Mapping[int, int] = field(default_factory=dict)
    is_strict: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MountSettings:
    """How a mount behaves; the names of sshfs's options stand behind each line."""

    directory: bytes = b""  # at the server, absolute or from home; '' is home
    timeout: float = TIMEOUT  # timeout
    memory: int = MEMORY  # cache_size, bytes
    # how long what is known holds: seconds
    caches: bool = True  # dir_cache
    attributes_timeout: float = FRESH  # dcache_stat_timeout, dcache_timeout
    links_timeout: float = FRESH  # dcache_link_timeout
    names_timeout: float = FRESH  # dcache_dir_timeout
    # how long the kernel keeps it; None for as long as we do
    entry_timeout: float | None = None
    attr_timeout: float | None = None
    negative_timeout: float | None = None
    # data
    direct_io: bool = False
    kernel_cache: bool = False  # whatever the server's times say
    read_ahead: bool = True  # not no_readahead
    sync_writes: bool = False  # sshfs_sync: each write waits for its answer
    write_behind: bool = False
    max_read: int = 0  # bytes of one request; 0 is the server's limit
    max_write: int = 0
    # owners and permissions
    uid: int | None = None  # shown for all files
    gid: int | None = None
    umask: int | None = None
    maps_own_user: bool = False  # idmap=user
    users: IdMap = IdMap()  # idmap=file
    groups: IdMap = IdMap()
    # links
    follow_symlinks: bool = False
    transform_symlinks: bool = False
    contain_symlinks: bool = True  # not no_contain_symlinks
    hard_links: bool = True  # not disable_hardlink
    # workaround=
    rename_over: bool = False  # rename: removes what is in the way
    rename_exdev: bool = False  # renamexdev: a failed rename is EXDEV
    create_mode: bool = True  # not createmode: gives the mode to new files
