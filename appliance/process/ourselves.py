"""The command line that runs code of this very package in a new interpreter."""

import os
import sys
from typing import Final

# Imports the package from where it is, and nothing from the current directory.
_BEGIN: Final = "import sys; sys.path.insert(0, sys.argv.pop(1)); "


def command(code: str, *words: str) -> list[str]:
    """Returns the command line that runs ``code`` with ``words`` as its sys.argv[1:]."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return [sys.executable, "-P", "-c", _BEGIN + code, root, *words]
