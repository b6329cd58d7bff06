"""The command line that runs code of this very package in a new interpreter."""

import os
import sys
from typing import Final

# Imports the package from where it is, and nothing from the current directory.
_BEGIN: Final = "import sys; sys.path.insert(0, sys.argv.pop(1)); "
_ROOT: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def command(code: str, *words: str) -> list[str]:
    """Returns the command line that runs ``code`` with ``words`` as its sys.argv[1:]."""
    return [sys.executable, "-P", "-c", _BEGIN + code, _ROOT, *words]


def bare_command(code: str, *words: str) -> list[str]:
    """Returns the same for code that needs Python's own library and this package, no other.

    The interpreter starts several times as fast, and heeds no variable of its environment.
    """
    return [sys.executable, "-I", "-S", "-c", _BEGIN + code, _ROOT, *words]
