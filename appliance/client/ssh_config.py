"""ssh_config: the settings for one host, from -o, ~/.ssh/config and /etc/ssh/ssh_config.

The first value found for a keyword counts, so the command line is read first and the system's file
last; only IdentityFile, CertificateFile, SendEnv and the forwards collect values. A line counts if
the ``Host`` or ``Match`` above it applies. With a ``Match final``, everything is read a second
time, with the host name that the first turn found.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from ..crypto.patterns import matches_list
from ..errors import UsageError
from ..log import harmless
from .host_options import HostOptions
from .ssh_keywords import (
    ALIASES,
    NOT_YET,
    OFF,
    REST_OF_LINE,
    SETTINGS,
    TUNING,
    WAYS,
    BadValue,
    Setting,
)

log = logging.getLogger(__name__)

# Of OpenSSH
SYSTEM_FILE: Final = "/etc/ssh/ssh_config"
INCLUDE_DEPTH: Final = 16

# Our own choices
FILE_LIMIT: Final = 1 << 20  # bytes of one file


# -- lines -------------------------------------------------------------------------------


def split_keyword(line: str) -> tuple[str, str]:
    """Returns the keyword in lower case, and the text after blanks and at most one '='."""
    line = line.strip(" \t\r\f")
    if line.startswith('"'):
        keyword, _, rest = line[1:].partition('"')
    else:
        end = next((at for at, c in enumerate(line) if c in " \t="), len(line))
        keyword, rest = line[:end], line[end:]
    rest = rest.lstrip(" \t")
    return keyword.lower(), rest[1:].lstrip(" \t") if rest.startswith("=") else rest


def split_words(text: str) -> list[str]:
    """Returns the words as ssh_config(5) separates them; raises ValueError for an open quote.

    Both kinds of quotes group words, \\ escapes quotes, and # begins a comment.
    """
    words: list[str] = []
    at = 0
    while True:
        while at < len(text) and text[at] in " \t":
            at += 1
        if at == len(text) or text[at] == "#":
            return words
        word = ""
        quote = ""
        while at < len(text) and (quote or text[at] not in " \t"):
            letter = text[at]
            following = text[at + 1 : at + 2]
            escapable = "'\"\\" if quote else "'\"\\ "
            if letter == "\\" and following and following in escapable:
                word += following
                at += 1
            elif not quote and letter in "'\"":
                quote = letter
            elif letter == quote:
                quote = ""
            else:
                word += letter
            at += 1
        if quote:
            raise ValueError("a quote is not closed")
        words.append(word)


class Person(NamedTuple):
    """The local user and machine; tests give their own."""

    name: str
    uid: int
    home: str
    machine: str

    @classmethod
    def current(cls) -> Person:
        """Returns this process's user, with the account's home and not $HOME, as OpenSSH does."""
        import pwd

        uid = os.getuid()
        try:
            entry = pwd.getpwuid(uid)
            name, home = entry.pw_name, entry.pw_dir
        except KeyError:
            name, home = str(uid), os.environ.get("HOME", "/")
        return cls(name, uid, home, os.uname().nodename)


class _Reader:
    """Reads all sources, in one turn or two; ``found`` has the first value of each field."""

    def __init__(self, host: str, person: Person) -> None:
        self.host = host
        self.person = person
        self.found: dict[str, Any] = {}
        self.final = False
        self.final_wanted = False
        self._ignored = ""
        self._active = True
        self._where = ""

    def option(self, text: str) -> None:
        """Reads the argument of an -o."""
        self._active = True
        self._where = "command line"
        keyword, _ = split_keyword(text)
        if keyword in ("host", "match", "include"):
            raise self._error(f"{keyword} can only stand in a file")
        self._line(text, 0, user=True)

    def setting(self, keyword: str, value: str) -> None:
        """Stores the value of a command line's letter as it is, quotes included."""
        self._active = True
        self._where = "command line"
        self._store(SETTINGS[keyword.lower()], [value])

    def file(self, path: str, depth: int, *, user: bool, check: bool, needed: bool) -> None:
        """Reads a file and all that it includes; ``check``: check owner and mode as well."""
        try:
            with open(path, "rb") as stream:
                status = os.fstat(stream.fileno())
                if check and (status.st_uid not in (0, self.person.uid) or status.st_mode & 0o022):
                    raise UsageError(
                        f"{path}: bad owner or permissions: it must belong to you or root, and"
                        f" nobody else may write it; try chmod go-w {path}"
                    )
                data = stream.read(FILE_LIMIT + 1)
        except FileNotFoundError as error:
            if needed:
                raise UsageError(f"{path}: no such configuration file") from error
            return
        except OSError as error:
            if not needed and depth:
                log.debug("%s: %s", path, error.strerror)
                return
            raise UsageError(f"{path}: cannot read it: {error.strerror}") from error
        if len(data) > FILE_LIMIT:
            raise UsageError(f"{path}: larger than {FILE_LIMIT} bytes, so hardly a configuration")
        outer = self._active
        for number, line in enumerate(data.decode(errors="surrogateescape").split("\n"), 1):
            self._where = f"{path} line {number}"
            self._line(line, depth, user=user, check=check, outer=outer)
        self._active = outer

    def _error(self, text: str) -> UsageError:
        return UsageError(f"{self._where}: {text}")

    def _line(
        self, line: str, depth: int, *, user: bool, check: bool = False, outer: bool = True
    ) -> None:
        """Reads a line; ``outer``: whether the Host or Match around an included file applies."""
        keyword, rest = split_keyword(line)
        if not keyword or keyword.startswith("#"):
            return
        if "\0" in line:
            raise self._error(f"{harmless(keyword)}: a NUL byte")
        keyword = ALIASES.get(keyword, keyword)
        row = SETTINGS.get(keyword)
        if (row and row.takes == "line") or keyword in REST_OF_LINE:
            words = [rest.strip()] if rest.strip() else []
        else:
            try:
                words = split_words(rest)
            except ValueError as error:
                raise self._error(f"{keyword}: {error}") from error
        known = row or keyword in TUNING or keyword in NOT_YET
        if not known and keyword not in ("host", "match", "include", "ignoreunknown"):
            if matches_list(keyword, self._ignored.lower()):
                log.debug("%s: the unknown option %s is ignored", self._where, keyword)
                return
            raise self._error(f"Bad configuration option: {keyword}")
        if not words:
            raise self._error(f"{row.keyword if row else keyword}: a value is missing")
        if keyword == "host":
            self._active = outer and self._host_applies(words)
        elif keyword == "match":
            self._active = self._match_applies(words) and outer
        elif keyword == "include":
            where = self._where
            for path in self._included(words, user):
                if depth >= INCLUDE_DEPTH:
                    raise self._error(f"more than {INCLUDE_DEPTH} files include each other")
                self.file(path, depth + 1, user=user, check=check, needed=False)
            self._where = where
        elif keyword == "ignoreunknown":
            self._ignored = self._ignored or (words[0] if self._active else "")
        elif row:
            self._store(row, words)
        elif keyword in TUNING:
            if self._active:
                log.debug("%s: %s has no effect here", self._where, keyword)
        elif self._active and keyword not in self.found:
            if words[0].lower() not in OFF:
                raise self._error(f"{NOT_YET[keyword]} is not supported")
            self.found[keyword] = None

    def _store(self, row: Setting, words: list[str]) -> None:
        shown = "" if row.secret else repr(" ".join(words))
        if row.takes != "words" and len(words) > 1:
            raise self._error(f"{row.keyword}: more than one value" + (shown and f": {shown}"))
        try:
            value = row.read(words if row.takes == "words" else words[0])
        except BadValue as error:
            raise self._error(f"{row.keyword}: {error}" + (shown and f", not {shown}")) from error
        if not words[0] and row.takes != "words":
            raise self._error(f"{row.keyword}: a value is missing")
        if not self._active or (row.field in WAYS and not WAYS.isdisjoint(self.found)):
            return
        if row.field in ("identity_files", "certificate_files"):
            files = self.found.setdefault(row.field, [])
            if value not in files:
                files.append(value)
        elif row.field == "forwards":
            found = self.found.setdefault(row.field, [])
            if value not in found:
                found.append(value)
        elif row.field == "send_env":
            patterns = self.found.setdefault(row.field, [])
            for pattern in value:
                if pattern.startswith("-"):  # removes patterns that were collected so far
                    patterns[:] = [p for p in patterns if not matches_list(p, pattern[1:])]
                elif pattern not in patterns:
                    patterns.append(pattern)
        else:
            self.found.setdefault(row.field, value)

    def _host_applies(self, patterns: list[str]) -> bool:
        applies = False
        for pattern in patterns:
            if matches_list(self.host, pattern.removeprefix("!")):
                if pattern.startswith("!"):
                    return False
                applies = True
        return applies

    def _match_applies(self, words: list[str]) -> bool:
        rest = [part for word in words for part in self._criterion(word)]
        applies = True
        position = 0
        while rest:
            word = rest.pop(0)
            negated = word.startswith("!")
            name = word.removeprefix("!").lower()
            position += 1
            if name == "all":
                if rest or negated or position > 2:
                    raise self._error("Match: 'all' cannot be combined with other criteria")
                return applies
            if name in ("canonical", "final"):
                self.final_wanted = self.final_wanted or name == "final"
                applies = applies and self.final != negated
                continue
            if not rest:
                raise self._error(f"Match: '{name}' needs a value")
            value = rest.pop(0)
            if name == "host":
                result = matches_list(self.current_host_name().lower(), value.lower())
            elif name == "originalhost":
                result = matches_list(self.host.lower(), value.lower())
            elif name == "user":
                result = matches_list(self.found.get("user", self.person.name), value)
            elif name == "localuser":
                result = matches_list(self.person.name, value)
            elif name in ("exec", "localnetwork", "tagged", "command", "version", "sessiontype"):
                if applies:
                    raise self._error(f"Match {name} is not supported")
                result = None
            else:
                raise self._error(f"Match: {name!r} is not a criterion")
            applies = applies and (result is True) != negated
        return applies

    def _criterion(self, word: str) -> list[str]:
        """Splits 'host=x', which means the same as 'host x'."""
        name, equals, value = word.partition("=")
        return [name, value] if equals and name.removeprefix("!").isalpha() else [word]

    def _included(self, patterns: Iterable[str], user: bool) -> Iterator[str]:
        import glob

        base = os.path.join(self.person.home, ".ssh") if user else os.path.dirname(SYSTEM_FILE)
        for pattern in patterns:
            if pattern.startswith("~"):
                if not user:
                    raise self._error(f"Include: a path with ~ in the system's file: {pattern!r}")
                pattern = self.tilde(pattern)
            yield from sorted(glob.glob(os.path.join(base, pattern)))

    def tilde(self, path: str) -> str:
        """The path with ~ or ~name in front resolved."""
        if path == "~" or path.startswith("~/"):
            return self.person.home + path[1:]
        if path.startswith("~"):
            expanded = os.path.expanduser(path)
            if expanded == path:
                raise UsageError(f"{path}: there is no such user")
            return expanded
        return path

    def current_host_name(self) -> str:
        """Returns the host name by the HostName that was found so far."""
        if "host_name" not in self.found:
            return self.host
        return expand(self.found["host_name"], {"h": self.host}, "HostName")


# -- tokens ------------------------------------------------------------------------------

# Tokens have values that the file's author did not write: such a value must not change where a
# path leads, or what a command does.
_UNSAFE: Final = frozenset("'`\"$\\;&<>|(){}")
_GLOBS: Final = frozenset("*?[!#~")  # special to a shell as well


def check_host(name: str) -> str:
    """Returns the name of a host; raises UsageError for shell characters and blanks."""
    if not name or name.startswith("-") or _has_unsafe(name):
        raise UsageError(f"{name!r} is not the name of a host")
    return name


def check_user(name: str) -> str:
    """Returns the name of a remote user; raises UsageError for one that cannot be."""
    harmful = any(c in "'`\";&<>|(){}" or not c.isprintable() for c in name)
    if not name or name.startswith("-") or harmful or " -" in name or name.endswith("\\"):
        raise UsageError(f"{name!r} is not the name of a user")
    return name


def _has_unsafe(text: str) -> bool:
    return any(c in _UNSAFE or c.isspace() or not c.isprintable() for c in text)


def expand(text: str, tokens: dict[str, str], keyword: str) -> str:
    """The text with its %-tokens replaced; %% is a percent sign."""
    parts = text.split("%")
    result = parts.pop(0)
    parts.reverse()
    while parts:
        part = parts.pop()
        if not part:  # '%%', or '%' at the very end
            if not parts:
                raise UsageError(f"{keyword}: {text!r} ends in a single %")
            result += "%" + parts.pop()
        elif part[0] in tokens:
            result += tokens[part[0]] + part[1:]
        else:
            raise UsageError(f"{keyword}: %{part[0]} is not known in {text!r}")
    return result


def expand_environment(text: str, keyword: str) -> str:
    """The text with each ${NAME} replaced; a variable that is not set is an error."""
    result, *parts = text.split("${")
    for part in parts:
        name, brace, rest = part.partition("}")
        if not brace:
            raise UsageError(f"{keyword}: a ${{ without }} in {text!r}")
        if name not in os.environ:
            raise UsageError(f"{keyword}: the variable {name} is not set")
        result += os.environ[name] + rest
    return result


# -- the whole ---------------------------------------------------------------------------

_DEFAULT_IDENTITIES: Final = ("id_rsa", "id_ecdsa", "id_ed25519")  # in OpenSSH's order


def load(
    host: str,
    options: Sequence[str | tuple[str, str]] = (),
    config_file: str | None = None,
    person: Person | None = None,
) -> HostOptions:
    """The settings for ``host``, as it was typed; raises UsageError.

    ``options`` come first: a str is an -o's argument, a pair of keyword and value comes
    from a letter such as -p and is not split into words. ``config_file`` takes the place
    of both usual files; 'none' stands for no file.
    """
    person = person or Person.current()
    reader = _Reader(check_host(host), person)

    def turn() -> None:
        for option in options:
            if isinstance(option, str):
                reader.option(option)
            else:
                reader.setting(*option)
        reader._active = True
        if config_file is not None:
            if config_file.lower() != "none":
                reader.file(config_file, 0, user=True, check=False, needed=True)
            return
        path = os.path.join(person.home, ".ssh", "config")
        reader.file(path, 0, user=True, check=True, needed=False)
        reader.file(SYSTEM_FILE, 0, user=False, check=False, needed=False)

    turn()
    if reader.final_wanted:
        reader.final = True
        reader.found["host_name"] = reader.current_host_name().replace("%", "%%")
        turn()
    settings = _resolve(reader)
    settings.config_file = config_file
    return settings


def _resolve(reader: _Reader) -> HostOptions:
    """Fills in the defaults that depend on the user, and expands tokens."""
    person = reader.person
    settings = HostOptions()
    for row in SETTINGS.values():
        if row.field in reader.found:
            setattr(settings, row.field, reader.found[row.field])
    settings.host = reader.host
    settings.host_name = check_host(reader.current_host_name()).lower()
    settings.user = check_user(settings.user or person.name)
    settings.send_env = tuple(settings.send_env)
    tokens = {
        "d": person.home,
        "h": settings.host_name,
        "i": str(person.uid),
        "j": "",
        "k": settings.host_key_alias or reader.host,
        "L": person.machine.partition(".")[0],
        "l": person.machine,
        "n": reader.host,
        "p": str(settings.port),
        "r": settings.user,
        "u": person.name,
    }

    def path(text: str, keyword: str) -> str:
        known = tokens
        if "%" in text:
            if "%C" in text:
                known = {**tokens, "C": _connection_hash(tokens)}
            for letter in "hknru":
                value = tokens[letter]
                risky = "/" in value or ".." in value or _has_unsafe(value)
                if f"%{letter}" in text and risky:
                    raise UsageError(f"{keyword}: %{letter} stands for {value!r}, not for a file")
        return expand_environment(expand(reader.tilde(text), known, keyword), keyword)

    def command(text: str, known: dict[str, str], keyword: str) -> str:
        """Expands a shell command; refuses values of tokens that are special to a shell.

        A user named ``$IFS-x`` would become an option of the program that the shell runs.
        """
        for letter in "hknru":
            value = tokens[letter]
            if f"%{letter}" in text and (_has_unsafe(value) or _GLOBS.intersection(value)):
                raise UsageError(f"{keyword}: %{letter} stands for {value!r}, not for one word")
        return expand(text, known, keyword)

    settings.forwards = tuple(
        each._replace(
            **{
                part: path(place, "a forward")
                for part, place in (("listen", each.listen), ("target", each.target))
                if isinstance(place, str)
            }
        )
        for each in settings.forwards
        if not settings.clear_all_forwardings
    )
    settings.identity_files_given = "identity_files" in reader.found
    if settings.identity_files_given:
        files = [each for each in settings.identity_files if each.lower() != "none"]
        settings.identity_files = tuple(path(each, "IdentityFile") for each in files)
    else:
        home = os.path.join(person.home, ".ssh")
        settings.identity_files = tuple(os.path.join(home, name) for name in _DEFAULT_IDENTITIES)
    settings.certificate_files = tuple(
        path(each, "CertificateFile")
        for each in settings.certificate_files
        if each.lower() != "none"
    )
    if settings.revoked_host_keys is not None:
        none = settings.revoked_host_keys.lower() == "none"
        settings.revoked_host_keys = (
            None if none else path(settings.revoked_host_keys, "RevokedHostKeys")
        )
    if "user_known_hosts_files" in reader.found:
        settings.user_known_hosts_files = tuple(
            path(each, "UserKnownHostsFile") for each in settings.user_known_hosts_files
        )
        # A user who names a file may not want it to be changed (ssh_config(5)).
        settings.update_host_keys = reader.found.get("update_host_keys", "no")
    else:
        settings.user_known_hosts_files = tuple(
            os.path.join(person.home, ".ssh", name) for name in ("known_hosts", "known_hosts2")
        )

    def agent(text: str, keyword: str) -> str:
        if text.startswith("$") and not text.startswith("${"):
            return os.environ.get(text[1:], "")
        return path(text, keyword)

    if settings.identity_agent is not None:
        if settings.identity_agent.lower() == "none":
            settings.identity_agent = ""
        elif settings.identity_agent == "SSH_AUTH_SOCK":
            settings.identity_agent = None
        else:
            settings.identity_agent = agent(settings.identity_agent, "IdentityAgent")
    if settings.control_path is not None:
        none = settings.control_path.lower() == "none"
        settings.control_path = None if none else path(settings.control_path, "ControlPath")
    usual = settings.identity_agent
    if settings.forward_agent.lower() in ("no", "false"):
        settings.forward_agent = ""
    elif settings.forward_agent.lower() in ("yes", "true"):
        settings.forward_agent = os.environ.get("SSH_AUTH_SOCK", "") if usual is None else usual
    elif settings.forward_agent:
        settings.forward_agent = agent(settings.forward_agent, "ForwardAgent")
    if settings.proxy_command is not None:
        known = {letter: tokens[letter] for letter in "hnpr"}
        proxy_command = command(settings.proxy_command, known, "ProxyCommand")
        settings.proxy_command = None if proxy_command.lower() == "none" else proxy_command
    if settings.remote_command is not None:
        if settings.remote_command.lower() == "none":
            settings.remote_command = None
        else:
            if "%C" in settings.remote_command:
                tokens["C"] = _connection_hash(tokens)
            settings.remote_command = command(settings.remote_command, tokens, "RemoteCommand")
    return settings


def _connection_hash(tokens: dict[str, str]) -> str:
    """%C: SHA-1 over %l%h%p%r%j, a short name for a connection."""
    import hashlib

    text = "".join(tokens[letter] for letter in "lhprj")
    return hashlib.sha1(text.encode(errors="surrogateescape")).hexdigest()
