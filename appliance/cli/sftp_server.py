"""culvert sftp-server: the SFTP server's command line, which is that of OpenSSH's.

It starts once for each session that copies a file, so it imports as little as it can.
"""

from __future__ import annotations

import os
import sys

from ..sftp import journal as log
from ..sftp.journal import ERROR, FACILITIES, INFO, LEVELS, Journal
from ..sftp.replies import to_descriptor
from ..sftp.server import Server, Unanswerable, names
from ..sftp.session import Session, Settings

TYPE_CHECKING = False  # type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable

USAGE = """\
usage: {0} [-ehR] [-d start_directory] [-f log_facility] [-l log_level]
\t[-P denied_requests] [-p allowed_requests] [-u umask] [--ignore-setstat]
       {0} -Q protocol_feature

  -d directory      where the session begins; %d is the user's home, %u the user's name
  -e                log to standard error, not to the system's log
  -f facility       of the system's log: DAEMON, USER, AUTH (default), AUTHPRIV, LOCAL0 ... LOCAL7
  -h                show this text
  -l level          QUIET, FATAL, ERROR (default), INFO, VERBOSE, DEBUG, DEBUG1, DEBUG2, DEBUG3
  -P requests       refuse these, a list with commas; -Q requests names them
  -p requests       refuse all others
  -Q feature        list what is supported: requests
  -R                change nothing: every request that would is refused
  -u umask          of new files, in octal
  --ignore-setstat  change no attributes, but say that they were: for clients that give up otherwise
"""

_WORDS = "dflPpQu"  # options that take a word
_FLAGS = "ehR"
_LONG_FLAGS = ("ignore-setstat",)


class Surroundings:
    """What an SSH server has decided about the program that it starts."""

    def __init__(self, chroot: str = "", identity: str = "", reports: str = "") -> None:
        """Each is '' for what the program should leave as it is.

        ``identity`` is uid:gid:groups, with commas, of the user that a program which begins as
        root becomes; ``chroot`` is the directory that becomes the root then. ``reports`` is the
        descriptor of a socket that takes reports of changes.
        """
        self.chroot = chroot
        self.identity = identity
        self.reports = reports


class _Mistake(Exception):
    """A mistake in the command line; the text says what to do."""


def session(words: list[str]) -> int:
    """The program of a session (server/sftp_program.py): surroundings, then options."""
    return main(words[4:], "sftp-server", Surroundings(*words[1:4]))


def main(arguments: list[str], name: str, surroundings: Surroundings | None = None) -> int:
    """Serves standard input and output; returns the exit status."""
    try:
        options = _parse(arguments)
        if "h" in options:
            sys.stderr.write(USAGE.format(name))
            return 1
        if (feature := options.get("Q")) is not None:
            return _list(feature)
        return _serve(options, surroundings)
    except (_Mistake, Unanswerable) as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 1
    except (BrokenPipeError, KeyboardInterrupt):  # the client is gone
        return 1
    except OSError as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 1


def _parse(arguments: list[str]) -> dict[str, str]:
    """Returns the options by their letters or names; a flag's word is empty."""
    options: dict[str, str] = {}
    rest = arguments[:]
    while rest:
        word = rest.pop(0)
        if word.startswith("--") and word[2:]:
            if word[2:] not in _LONG_FLAGS:
                raise _Mistake(f"unknown option {word}; -h lists them all")
            options[word[2:]] = ""
            continue
        if not word.startswith("-") or word == "-":
            raise _Mistake(f"unexpected argument '{word}'; -h lists the options")
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter in _FLAGS:
                options[letter] = ""
            elif letter in _WORDS:
                if not letters and not rest:
                    raise _Mistake(f"-{letter} needs a word behind it")
                options[letter], letters = letters or rest.pop(0), ""
            else:
                raise _Mistake(f"unknown option -{letter}; -h lists them all")
    return options


def _list(feature: str) -> int:
    if feature != "requests":
        raise _Mistake(f"-Q {feature}: expected 'requests'")
    for each in names():
        sys.stdout.write(f"{each}\n")
    return 0


def _serve(options: dict[str, str], surroundings: Surroundings | None) -> int:
    home, user = _home(), os.environ.get("USER", "") or str(os.getuid())
    settings = Settings(
        read_only="R" in options,
        denied=_requests(options.get("P", "")),
        allowed=_requests(options["p"]) if "p" in options else None,
        ignores_setstat="ignore-setstat" in options,
        home=os.fsencode(home),
    )
    level = _level(options.get("l", "ERROR"))
    facility = _facility(options.get("f", "AUTH"))
    mask = _umask(options["u"]) if "u" in options else None
    write = log.to_stderr if "e" in options else _late_syslog(facility)
    report = None
    if surroundings is not None:
        if surroundings.chroot and level > log.QUIET and "e" not in options:
            write = log.to_syslog(facility)  # its socket is outside
        _become(surroundings, home)
        report = _reporter(surroundings.reports)
    journal = Journal(level, write, report)
    if mask is not None:
        os.umask(mask)
    if "d" in options:
        _start_in(options["d"], home, user, journal)
    client = os.environ.get("SSH_CONNECTION", "").partition(" ")[0] or "UNKNOWN"
    journal.log(INFO, "session opened for local user %s from [%s]", user, client)
    for descriptor in (0, 1):  # whoever started this program may have them otherwise
        os.set_blocking(descriptor, True)
    server = Server(Session(settings, journal, to_descriptor(1)))
    try:
        server.serve(0)
    except Unanswerable as error:
        journal.log(ERROR, "%s", str(error))
        raise
    finally:
        server.close()
        journal.log(INFO, "session closed for local user %s from [%s]", user, client)
    return 0


def _become(surroundings: Surroundings, home: str) -> None:
    """Takes on the user's identity, and begins in the home if that can be."""
    if surroundings.identity:
        from ..sftp import identity

        uid, gid, groups = surroundings.identity.split(":")
        numbers = [int(group) for group in groups.split(",") if group]
        identity.become(surroundings.chroot, int(uid), int(gid), numbers)
    try:
        os.chdir(home)
    except OSError:
        os.chdir("/")


def _home() -> str:
    if home := os.environ.get("HOME"):
        return home
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return "/"


def _requests(words: str) -> frozenset[str]:
    given = frozenset(filter(None, words.split(",")))
    if unknown := given - set(names()):
        raise _Mistake(f"there is no request '{min(unknown)}'; -Q requests names them all")
    return given


def _level(name: str) -> int:
    if (level := LEVELS.get(name.upper())) is None:
        raise _Mistake(f"-l {name}: expected one of {', '.join(LEVELS)}")
    return level


def _facility(name: str) -> int:
    if (facility := FACILITIES.get(name.upper())) is None:
        raise _Mistake(f"-f {name}: expected one of {', '.join(FACILITIES)}")
    return facility


def _umask(text: str) -> int:
    if not text or set(text) - set("01234567") or int(text, 8) > 0o777:
        raise _Mistake(f"-u {text}: expected an octal number from 0 to 777")
    return int(text, 8)


def _late_syslog(facility: int) -> Callable[[int, str], None]:
    """Opens the system's log with the first line, which few sessions have."""
    opened: list[Callable[[int, str], None]] = []

    def write(level: int, text: str) -> None:
        if not opened:
            opened.append(log.to_syslog(facility))
        opened[0](level, text)

    return write


def _reporter(descriptor: str) -> Callable[[bytes], None] | None:
    """Writes reports to a socket of datagrams; without a reader they are lost, and nothing else."""
    if not descriptor:
        return None
    number = int(descriptor)
    os.set_inheritable(number, False)

    def report(data: bytes) -> None:
        try:
            os.write(number, data)
        except OSError:
            return

    return report


def _start_in(directory: str, home: str, user: str, journal: Journal) -> None:
    """Changes to the directory of -d; as with OpenSSH's, the session goes on if there is none."""
    tokens = {"d": home, "u": user, "%": "%"}
    parts = directory.split("%")
    path = parts.pop(0)
    while parts:
        part = parts.pop(0)
        if not part and parts:  # '%%'
            path += "%" + parts.pop(0)
        elif part[:1] in tokens:
            path += tokens[part[0]] + part[1:]
        else:
            raise _Mistake(f"-d {directory}: expected no tokens but %d, %u and %%")
    if path == "~" or path.startswith("~/"):
        path = home + path[1:]
    try:
        os.chdir(path)
    except OSError as error:
        journal.log(ERROR, "chdir to %s failed: %s", os.fsencode(path), error.strerror)
