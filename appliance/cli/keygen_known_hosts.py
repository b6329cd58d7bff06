"""culvert keygen -F, -R, -H: find a host in known_hosts, remove it, hash the names."""

from __future__ import annotations

import os
import stat
import sys

from ..crypto import known_hosts
from ..errors import CulvertError, UsageError
from .keygen_files import home_file, read_file, write_whole
from .keygen_words import Silent, hash_name, kind
from .options import Options


def run(options: Options) -> None:
    """Carries out one of -F, -R and -H; raises CulvertError and OSError."""
    job = _find_host if "F" in options else _remove_host if "R" in options else _hash_hosts
    job(options)


def _known_hosts(options: Options) -> tuple[str, str]:
    """Returns path and text of the file."""
    path = options.value("f") or home_file("known_hosts")
    return path, read_file(path).decode(errors="surrogateescape")


def _host(text: str) -> tuple[str, int]:
    """Returns host and port of 'host' or '[host]:port'."""
    host, bracket, port = text.removeprefix("[").partition("]:")
    if not text.startswith("[") or not bracket:
        return text, known_hosts.SSH_PORT
    if not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 65536:
        raise UsageError(f"{text!r} names no port: expected [HOST]:PORT")
    return host, int(port)


def _find_host(options: Options) -> None:
    """Prints the lines of a host; raises Silent if there are none."""
    text = options.value("F") or ""
    name = known_hosts.host_name(*_host(text))
    path, content = _known_hosts(options)
    found = 0
    for line in known_hosts.parse(content):
        if not line.hosts or not known_hosts.matches_host(line.hosts, name):
            continue
        found += 1
        marker = {"@cert-authority": "CA", "@revoked": "REVOKED"}.get(line.marker, "")
        if "q" not in options:
            print(f"# Host {text} found: line {line.number} {marker}")
        if "l" in options:
            try:
                key = line.load()
            except CulvertError as error:
                raise UsageError(f"{path} line {line.number}: {error}") from error
            comment = f" {line.comment}" if line.comment else ""
            print(f"{text} {kind(key)} {key.fingerprint(hash_name(options))}{comment}")
        elif "H" in options and not line.marker:
            salt = os.urandom(known_hosts.SALT_BYTES)
            print(f"{known_hosts.hash_host(name, salt)} {line.key_type} {line.encoded}")
        else:
            _write_text(line.text + "\n")
    if not found:
        raise Silent


def _write_text(text: str) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode(errors="surrogateescape"))
    sys.stdout.buffer.flush()


def _remove_host(options: Options) -> None:
    """Removes the lines of a host, and keeps the old file beside the new one."""
    text = options.value("R") or ""
    path, content = _known_hosts(options)
    kept, removed = known_hosts.remove(content, *_host(text))
    if not removed:
        raise UsageError(f"host {text} not found in {path}")
    if "q" not in options:
        for line in removed:
            print(f"# Host {text} found: line {line.number}")
    _replace_known_hosts(path, content, kept)


def _hash_hosts(options: Options) -> None:
    """Replaces all names by hashes, so that the file does not reveal them."""
    path, content = _known_hosts(options)
    lines: list[str] = []
    for line in known_hosts.parse(content):
        names = line.hosts.split(",")
        if not line.hosts or line.marker or line.hosts.startswith("|"):
            lines.append(line.text)
        elif any(c in line.hosts for c in "*?!"):
            print(f"{path} line {line.number}: a wildcard cannot be hashed", file=sys.stderr)
            lines.append(line.text)
        else:
            rest = f"{line.key_type} {line.encoded} {line.comment}".rstrip()
            for each in names:
                salt = os.urandom(known_hosts.SALT_BYTES)
                lines.append(f"{known_hosts.hash_host(each.lower(), salt)} {rest}")
    _replace_known_hosts(path, content, "".join(f"{line}\n" for line in lines))
    print(f"{path}.old still has the names: delete it to keep them private", file=sys.stderr)


def _replace_known_hosts(path: str, old: str, new: str) -> None:
    target = os.path.realpath(path)  # the file may well be a link into a repository
    mode = stat.S_IMODE(os.stat(target).st_mode)
    write_whole(f"{target}.old", old.encode(errors="surrogateescape"), mode, replace=True)
    write_whole(target, new.encode(errors="surrogateescape"), mode, replace=True)
    print(f"{path} updated.\nOriginal contents retained as {path}.old")
