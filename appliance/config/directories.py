"""The directories of processes that run as root; systemd may choose other ones."""

import os
from pathlib import Path


def runtime_directory() -> Path:
    """Returns RUNTIME_DIRECTORY or /run/culvert, for sockets and locks; a reboot empties it."""
    return _directory("RUNTIME_DIRECTORY", "/run/culvert")


def state_directory() -> Path:
    """Returns STATE_DIRECTORY or /var/lib/culvert, for files that must outlive a reboot."""
    return _directory("STATE_DIRECTORY", "/var/lib/culvert")


def network_records() -> Path:
    """Returns the directory that records every tunnel's changes to the machine's network."""
    return state_directory() / "network"


def _directory(variable: str, usual: str) -> Path:
    # systemd.exec(5): several directories are separated by colons
    return Path(os.environ.get(variable, "").partition(":")[0] or usual)
