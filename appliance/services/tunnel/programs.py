"""Runs the system's programs that change its network: nft and resolvectl."""

import os
import shutil
import subprocess
from typing import Final

from .network import NetworkError

_TIMEOUT: Final = 30  # seconds; milliseconds are usual, except while systemd-resolved starts
_PACKAGES: Final = {"nft": "nftables", "resolvectl": "systemd-resolved"}
_SYSTEM: Final = "/usr/sbin:/sbin"  # missing in the PATH of some root shells


def find(program: str) -> str | None:
    """Returns the path of a program; None if it is not installed."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM}")


class Programs:
    """Runs programs, which hold the lock ``lock`` until they end.

    Otherwise a program whose parent was killed could still change the network while the next
    process reads it. Without a lock, only programs that change nothing may be run.
    """

    def __init__(self, lock: int | None = None) -> None:
        self._lock = lock

    def call(self, program: str, *arguments: str, text: str = "") -> str:
        """Runs a program with ``text`` as its input; returns its output. Raises NetworkError."""
        path = find(program)
        if path is None:
            package = _PACKAGES[program]
            raise NetworkError(f"the program {program} is missing: install the package {package}")
        try:
            done = subprocess.run(
                [path, *arguments],
                input=text,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT,
                pass_fds=[] if self._lock is None else [self._lock],
                env={**os.environ, "LC_ALL": "C.UTF-8"},
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise NetworkError(f"{program} did not end within {_TIMEOUT} seconds") from error
        except OSError as error:
            raise NetworkError(f"{path}: {error.strerror}") from error
        if done.returncode != 0:
            wrote = done.stderr.strip().splitlines()  # the further lines only show the place
            raise NetworkError(wrote[0] if wrote else f"{program} ended with {done.returncode}")
        return done.stdout
