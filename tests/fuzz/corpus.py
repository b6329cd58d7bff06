"""The inputs that every run of the tests tries: a file for each target, a line for each input."""

from base64 import b64decode, b64encode
from collections.abc import Iterable
from pathlib import Path

from tests.fuzz.seeds import seeds

FOLDER = Path(__file__).parent / "corpus"


def inputs(name: str) -> list[bytes]:
    """Return the seeds of a target, and what was found later."""
    path = FOLDER / name
    lines = path.read_text().split() if path.exists() else []
    return [*seeds()[name], *map(b64decode, lines)]


def add(name: str, found: Iterable[bytes]) -> None:
    """Remember what was found."""
    known = set(inputs(name))
    FOLDER.mkdir(exist_ok=True)
    with open(FOLDER / name, "a") as file:
        for data in found:
            if data not in known:
                file.write(b64encode(data).decode() + "\n")
