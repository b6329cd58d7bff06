"""Sets the machine's name servers, through systemd-resolved or in /etc/resolv.conf.

systemd-resolved has name servers for each device, and can use some of them only for some domains.
Without it, /etc/resolv.conf is used for all names, and ``domains`` are refused. The first line of
the file is then our mark with a digest of the rest, which shows whether another program has
written the file since. The servers of every link that is up follow, then the former lines. The
former file or symbolic link is kept in the folder of the records until the last link is gone.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .network import NameServers, NetworkError
from .programs import Programs, find
from .record import sync_folder, temporary, write_atomically

RESOLV_CONF = Path("/etc/resolv.conf")
RESOLVED = Path("/run/systemd/resolve")  # exists while systemd-resolved runs

_MARK: Final = "# Written by culvert, which puts the previous file back. "
_KEPT: Final = "resolv.conf.before"


class Resolver:
    """The machine's name servers; ``folder`` holds the records, and the caller has its lock."""

    def __init__(self, folder: Path, programs: Programs) -> None:
        self._kept = folder / _KEPT
        self._programs = programs

    def holds(self, wanted: NameServers) -> bool:
        """Whether the servers of ``wanted`` are set. Raises OSError and NetworkError."""
        if resolved_runs():
            servers = self._answer("dns", wanted.device)
            domains = self._answer("domain", wanted.device)
            return (servers, domains) == (list(wanted.servers), list(wanted.domains or ("~.",)))
        text = _read()
        return _is_ours(text) and set(_lines(wanted)) <= set(text.splitlines())

    def make(self, wanted: NameServers, others: Sequence[NameServers]) -> None:
        """Sets the servers of ``wanted``, then those of ``others``, the other links.

        Raises OSError and NetworkError.
        """
        if resolved_runs():
            domains = wanted.domains or ("~.",)
            self._programs.call("resolvectl", "dns", wanted.device, *wanted.servers)
            self._programs.call("resolvectl", "domain", wanted.device, *domains)
            return
        if wanted.domains:
            raise NetworkError(
                f"without systemd-resolved, {RESOLV_CONF} sends all names to one place, so that"
                " 'domains' cannot be had: install systemd-resolved, or leave them out"
            )
        if not (_is_ours(_read()) and self._kept.exists()):
            self._keep()
        self._write([wanted, *others])

    def undo(self, gone: NameServers, others: Sequence[NameServers], device_exists: bool) -> None:
        """Removes the servers of ``gone``. Raises OSError and NetworkError."""
        if resolved_runs() and device_exists:
            self._programs.call("resolvectl", "revert", gone.device)
        for path in (RESOLV_CONF, self._kept):
            temporary(path).unlink(missing_ok=True)
        if not self._kept.exists():
            return
        if _is_ours(_read()):
            if others:
                self._write(others)
                return
            self._put_back()
        if not others:
            self._kept.unlink()

    def _answer(self, question: str, device: str) -> list[str]:
        # 'Link 5 (tun0): 10.9.0.53 10.9.0.54'
        return self._programs.call("resolvectl", question, device).partition("):")[2].split()

    def _keep(self) -> None:
        if RESOLV_CONF.is_symlink():
            kept = {"link": os.readlink(RESOLV_CONF), "text": _read()}
        elif RESOLV_CONF.exists():
            mode = RESOLV_CONF.stat().st_mode & 0o7777
            kept = {"mode": str(mode), "text": _read()}
        else:
            kept = {"text": ""}
        write_atomically(self._kept, json.dumps(kept).encode(), 0o600)

    def _write(self, links: Sequence[NameServers]) -> None:
        """Writes the file with the servers of ``links``, those of the first link first."""
        servers = [line for link in links for line in _lines(link)]
        rest = json.loads(self._kept.read_text())["text"].splitlines()
        body = "".join(f"{line}\n" for line in (*dict.fromkeys(servers), *rest))
        mark = _MARK + hashlib.sha256(_bytes(body)).hexdigest()
        write_atomically(RESOLV_CONF, _bytes(f"{mark}\n{body}"), 0o644)

    def _put_back(self) -> None:
        kept = json.loads(self._kept.read_text())
        if "link" in kept:
            new = temporary(RESOLV_CONF)
            new.unlink(missing_ok=True)
            new.symlink_to(kept["link"])
            os.replace(new, RESOLV_CONF)
            sync_folder(RESOLV_CONF.parent)
        elif "mode" in kept:
            write_atomically(RESOLV_CONF, _bytes(kept["text"]), int(kept["mode"]))
        else:
            RESOLV_CONF.unlink()


def resolved_runs() -> bool:
    """Whether systemd-resolved runs and can be configured."""
    return RESOLVED.exists() and find("resolvectl") is not None


def _lines(link: NameServers) -> list[str]:
    return [f"nameserver {server}" for server in link.servers]


def _is_ours(text: str) -> bool:
    mark, _, body = text.partition("\n")
    return mark == _MARK + hashlib.sha256(_bytes(body)).hexdigest()


def _read() -> str:
    """Returns the file's text, '' if it does not exist; ``_bytes`` restores invalid UTF-8."""
    try:
        return RESOLV_CONF.read_bytes().decode(errors="surrogateescape")
    except FileNotFoundError:
        return ""


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
