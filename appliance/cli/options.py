"""Parses command lines, and writes help texts, from one table of options.

The grammar is getopt's, which OpenSSH and Dropbear use as well: letters may be joined (-tt,
-4v), an argument follows its letter at once or as the next word, ``--`` ends the
options, and so does the first operand (``ssh host -p 22 command`` is parsed in two
turns by its caller). Long names take ``--name value`` or ``--name=value``.

The standard library's getopt would do, but it imports gettext and re, which costs more
than the rest of a small command, and its messages cannot name the missing argument.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..errors import UsageError

# Our own choices
WIDTH = 88  # columns of the help text: fits any terminal that people use


class Option(NamedTuple):
    """One row of a command's table.

    ``name`` is a letter or a long name, without dashes. ``argument`` is the name of its
    argument, None for a flag. A row without help text is parsed but not shown. With
    ``repeatable`` the help text says that the option may be given several times.
    """

    name: str
    argument: str | None
    help: str
    repeatable: bool = False

    @property
    def spelling(self) -> str:
        """The option as it is typed: -p or --config."""
        return f"-{self.name}" if len(self.name) == 1 else f"--{self.name}"


HELP = Option("help", None, "show this text")


class Options:
    """A parsed command line: options in their order, then the operands."""

    __slots__ = ("given", "operands")

    def __init__(self, given: list[tuple[str, str]], operands: list[str]) -> None:
        self.given = given
        self.operands = operands

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Pairs of name (no dashes) and argument ('' for a flag), in order."""
        return iter(self.given)

    def __contains__(self, name: str) -> bool:
        return any(name == each for each, _ in self.given)

    def count(self, name: str) -> int:
        """Returns how often an option was given: -vv is 2."""
        return sum(name == each for each, _ in self.given)

    def values(self, name: str) -> list[str]:
        """Returns all arguments of a repeatable option."""
        return [value for each, value in self.given if each == name]

    def value(self, name: str) -> str | None:
        """Returns the argument of an option; the last one counts."""
        values = self.values(name)
        return values[-1] if values else None


def parse(arguments: Sequence[str], spec: Sequence[Option], command: str = "") -> Options:
    """Reads options up to the first operand; raises UsageError for one not in ``spec``.

    ``--help`` is always accepted, as ``"help"`` in the result. An error message tells the
    user to call ``command`` with --help.
    """
    rows = {row.name: row for row in (HELP, *spec)}
    hint = f"; try '{command} --help'" if command else "; try --help"
    given: list[tuple[str, str]] = []
    rest = list(arguments)
    rest.reverse()  # a stack of words

    def needs(row: Option) -> UsageError:
        return UsageError(f"option {row.spelling} needs an argument, {row.argument}{hint}")

    while rest and rest[-1].startswith("-") and rest[-1] != "-":
        word = rest.pop()
        if word == "--":
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            row = rows.get(name)
            if row is None or len(name) == 1:
                raise UsageError(f"unknown option --{_shown(name)}{hint}")
            if row.argument is None:
                if equals:
                    raise UsageError(f"option --{name} takes no argument{hint}")
            elif not equals:
                if not rest:
                    raise needs(row)
                value = rest.pop()
            given.append((name, value))
            continue
        for position, letter in enumerate(word[1:], 2):
            row = rows.get(letter)
            if row is None:
                raise UsageError(f"unknown option -{_shown(letter)}{hint}")
            if row.argument is None:
                given.append((letter, ""))
                continue
            if position < len(word):
                given.append((letter, word[position:]))
            elif rest:
                given.append((letter, rest.pop()))
            else:
                raise needs(row)
            break
    rest.reverse()
    return Options(given, rest)


def _shown(text: str) -> str:
    """Returns the user's text, made harmless for the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def help_text(usage: str, about: str, spec: Sequence[Option], footer: str = "") -> str:
    """Returns the text for --help: usage, description, a line or more for each row, footer.

    Options stand in the order of ``spec``; ``usage`` may hold several lines.
    """
    first, *more = usage.splitlines()
    lines = [f"usage: {first}", *(f"       {line}" for line in more), ""]
    lines += [*about.strip().splitlines(), ""]
    shown = [row for row in (*spec, HELP) if row.help]
    heads = [f"  {row.spelling}{' ' + row.argument if row.argument else ''}" for row in shown]
    column = min(max(map(len, heads)) + 2, 28)
    for row, head in zip(shown, heads, strict=True):
        text = row.help + (" (may be repeated)" if row.repeatable else "")
        if len(head) + 2 > column:
            lines.append(head)
            head = ""
        for part in _wrapped(text, WIDTH - column):
            lines.append(head.ljust(column) + part)
            head = ""
    if footer:
        lines += ["", *footer.strip("\n").splitlines()]
    return "\n".join(lines) + "\n"


def _wrapped(text: str, width: int) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            yield line
            line = word
        else:
            line = f"{line} {word}" if line else word
    yield line
