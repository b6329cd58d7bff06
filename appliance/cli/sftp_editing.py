"""Line editing, history and completion for sftp's prompt, by readline if Python has it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from ..files.progress import padded, shown, width
from ..files.shell.completion import completions, list_directory, shown_matches
from ..files.shell.shell import PROMPT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..aio.loop_thread import LoopThread
    from ..files.shell.state import SftpState


def begin(state: SftpState, thread: LoopThread) -> None:
    """Sets readline up for ``input``; without it lines are read as the terminal gives them."""
    try:
        import readline
    except ImportError:
        return

    found: list[str] = []

    def list_remote(path: bytes) -> list[tuple[bytes, bool]]:
        return thread.call(list_directory(state.client, path))

    def complete(text: str, number: int) -> str | None:
        if not number:
            lines = completions(state, os.fsencode(text), list_remote)
            found[:] = [os.fsdecode(line) for line in lines]
        return found[number] if number < len(found) else None

    def show(substitution: str, matches: Sequence[str], longest: int) -> None:
        names = [shown(name) for name in shown_matches(list(map(os.fsencode, matches)))]
        column = max(map(width, names), default=0) + 2
        columns = max(os.get_terminal_size(sys.stdout.fileno()).columns // column, 1)
        rows = [names[at : at + columns] for at in range(0, len(names), columns)]
        text = "".join("\n" + "".join(padded(name, column) for name in row) for row in rows)
        sys.stdout.write(f"{text}\n{PROMPT}{readline.get_line_buffer()}")
        sys.stdout.flush()
        readline.redisplay()

    readline.set_completer_delims("")  # the whole line is completed, for its quotes
    readline.set_completer(complete)
    readline.set_completion_display_matches_hook(show)
    readline.parse_and_bind("tab: complete")
