"""The programs of the system that change its network: nft and resolvectl."""

import os
import shutil
import subprocess
from typing import Final

from .network import NetworkError

_TIMEOUT: Final = 30  # seconds; they take milliseconds, unless systemd-resolved is being started
_PACKAGES: Final = {"nft": "nftables", "resolvectl": "systemd-resolved"}
_SYSTEM: Final = "/usr/sbin:/sbin"  # not on the PATH of everybody who may be root


def find(program: str) -> str | None:
    """The path of a program, if it is installed."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM}")


class Programs:
    """Runs programs, which keep the lock ``lock`` until they end.

    Otherwise one whose parent was killed could still change what the next process sees. Without
    a lock they may only look.
    """

    def __init__(self, lock: int | None = None) -> None:
        self._lock = lock

    def call(self, program: str, *arguments: str, text: str = "") -> str:
        """Run a program with ``text`` as its input; what it wrote. Raises NetworkError."""
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
            wrote = done.stderr.strip().splitlines()  # whose further lines say where, not what
            raise NetworkError(wrote[0] if wrote else f"{program} ended with {done.returncode}")
        return done.stdout
