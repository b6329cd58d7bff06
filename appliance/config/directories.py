"""Where what runs as root keeps what it knows; systemd may choose other places."""

import os
from pathlib import Path


def runtime_directory() -> Path:
    """For sockets and locks, gone after a reboot: RUNTIME_DIRECTORY or /run/culvert."""
    return _directory("RUNTIME_DIRECTORY", "/run/culvert")


def state_directory() -> Path:
    """For what must outlive a reboot: STATE_DIRECTORY or /var/lib/culvert."""
    return _directory("STATE_DIRECTORY", "/var/lib/culvert")


def network_records() -> Path:
    """Under it, where every tunnel's changes to the machine's network are recorded."""
    return state_directory() / "network"


def _directory(variable: str, usual: str) -> Path:
    # systemd.exec(5): several are separated by colons
    return Path(os.environ.get(variable, "").partition(":")[0] or usual)
