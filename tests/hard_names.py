"""File names that programs have stumbled over, and a tree of them."""

import os
from pathlib import Path

HARD_NAMES = [
    b"-leading",
    b"-rf",
    b"--",
    b"two words",
    b" leading blank",
    b"trailing blank ",
    b"it's",
    b'a "quote"',
    b"back\\slash",
    b"trailing\\",
    b"[brackets]",
    b"[!a]*",
    b"star*",
    b"question?",
    b"~",
    b"~root",
    b"%s%n",
    b"100%",
    b"co:lon",
    b"!history",
    b"$HOME",
    b"`id`",
    b"a;b|c&d>e",
    b"{a,b}",
    b"#comment",
    b"...",
    b".hidden",
    b"caf\xe9",  # Latin-1
    "日本語 é".encode(),
    b"\xff\xfe",
    b"control\x01\x1b[31mred\x07\x7f",
    b"tab\there",
    b"carriage\rreturn",
    b"C0644 5 name",
    b"n" * 255,
]
NEWLINE = b"new\nline"  # the old scp protocol has no way to write it


def is_utf8(name: bytes) -> bool:
    """Whether a program that takes UTF-8 only can take the name."""
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def make_tree(folder: Path, names: list[bytes] = HARD_NAMES) -> None:
    """Make a file and a directory with a file in it for each name, all of different content."""
    for kind in (b"files", b"folders"):
        os.mkdir(os.path.join(os.fsencode(folder), kind))
    for number, name in enumerate(names):
        path = os.path.join(os.fsencode(folder), b"files", name)
        with open(path, "wb") as file:
            file.write(b"%d\n" % number * (number + 1))
        inner = os.path.join(os.fsencode(folder), b"folders", name)
        os.mkdir(inner)
        with open(os.path.join(inner, name), "wb") as file:
            file.write(b"in %d" % number)


def content(folder: Path | bytes) -> dict[bytes, bytes | None]:
    """Every path below a folder, with the content of files, None for directories."""
    top = os.fsencode(folder)
    found: dict[bytes, bytes | None] = {}
    for path, folders, files in os.walk(top):
        for name in folders:
            found[os.path.relpath(os.path.join(path, name), top)] = None
        for name in files:
            with open(os.path.join(path, name), "rb") as file:
                found[os.path.relpath(os.path.join(path, name), top)] = file.read()
    return found
