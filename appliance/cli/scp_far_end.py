"""``scp -t`` and ``scp -f``: the far end of the old scp protocol, which other clients' scp calls.

It imports next to nothing, and not the table of options: a session waits for its start.
"""

from __future__ import annotations

import os

from ..files.old_scp.peer import ScpPeer, ScpSettings

TYPE_CHECKING = False  # type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Sequence

_USAGE = "usage: scp -t|-f [-dprv] path ...   (the far end of scp -O, which calls it by ssh)"
_LETTERS = "dfprtv"


def is_far_end(arguments: Sequence[str]) -> bool:
    """Whether the options that come first call for this program: -t or -f, and none but its own."""
    letters = set(_parse(arguments)[0])
    return bool(letters & set("tf")) and letters <= set(_LETTERS)


def _parse(arguments: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Returns the letters of all options, and the operands."""
    letters = ""
    for at, word in enumerate(arguments):
        if word == "--":
            return letters, arguments[at + 1 :]
        if len(word) < 2 or word[0] != "-":
            return letters, arguments[at:]
        letters += word[1:]
    return letters, ()


def main(arguments: Sequence[str], name: str = "scp") -> int:
    """Copies by standard input and output; returns the exit status."""
    letters, operands = _parse(arguments)
    unknown = "".join(each for each in letters if each not in _LETTERS)
    if unknown:
        return _usage(f"unknown option -{unknown[0]} beside -t or -f")
    if ("t" in letters) == ("f" in letters):
        return _usage("one of -t and -f is needed")
    if not operands:
        return _usage("a path is missing")
    peer = ScpPeer(0, 1, _ignore)
    settings = ScpSettings("r" in letters, "p" in letters, _trace if "v" in letters else None)
    paths = [os.fsencode(each) for each in operands]
    if "f" in letters:
        from ..files.old_scp.source import ScpSource

        return not peer.run(lambda: ScpSource(peer, settings).send(paths))
    from ..files.old_scp.sink import ScpSink

    if len(paths) > 1:
        peer.report(b"ambiguous target")
        return 1
    return not peer.run(lambda: ScpSink(peer, settings).receive(paths[0], "d" in letters))


def _usage(mistake: str) -> int:
    _write(f"scp: {mistake}\n{_USAGE}\n".encode(errors="replace"))
    return 1


def _trace(text: bytes) -> None:
    _write(text + b"\n")


def _write(text: bytes) -> None:
    try:  # noqa: SIM105  importing contextlib takes as long as starting Python
        os.write(2, text)
    except OSError:  # nobody reads it
        pass


def _ignore(text: bytes) -> None:
    """Does nothing: the near end gets each message, and shows it."""
