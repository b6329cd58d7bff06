"""Between two far ends of the old scp protocol: passes a source's files on to a sink (scp -3).

Each message is read on its way, so that the user sees what failed and how far the copy is; and a
hostile source sends the sink, which does not know what was asked for, nothing else.
"""

from __future__ import annotations

from ...errors import MalformedMessage
from .peer import ScpPeer, ScpSettings
from .protocol import OK, End, Entry, Failure, Record, parse

TYPE_CHECKING = False  # type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable


class ScpRelay:
    """Passes everything from the source's end to the sink's, and the answers back."""

    def __init__(
        self,
        source: ScpPeer,
        sink: ScpPeer,
        settings: ScpSettings,
        is_wanted: Callable[[bytes], bool],
    ) -> None:
        """``is_wanted`` decides about the names of what comes first, as in ScpSink."""
        self._source = source
        self._sink = sink
        self._settings = settings
        self._is_wanted = is_wanted
        self._depth = 0  # of directories that have begun

    def run(self) -> bool:
        """Copies until the source ends; returns whether nothing has failed."""
        return self._source.run(self._work) and not self._sink.errors

    def _work(self) -> None:
        self._pass_answer()
        while (line := self._source.line()) is not None:
            if self._settings.trace is not None:
                self._settings.trace(b"Relay: " + line)
            record = parse(line)
            self._check(record)
            self._sink.write(line + b"\n")
            if isinstance(record, Failure):
                self._source.told(record)
                continue  # a sink answers no message
            is_taken = self._pass_answer()
            if isinstance(record, End):
                self._depth -= 1
            elif is_taken and isinstance(record, Entry):
                if record.is_directory:
                    self._depth += 1
                else:
                    self._pass_content(record)

    def _check(self, record: Record) -> None:
        """Raises MalformedMessage for what was not asked for."""
        if isinstance(record, End) and not self._depth:
            raise MalformedMessage("the end of a directory that was not begun")
        if not isinstance(record, Entry):
            return
        if record.is_directory and not self._settings.recursive:
            raise MalformedMessage("received directory without -r")
        if not self._depth and not self._is_wanted(record.name):
            shown = record.name.decode(errors="backslashreplace")
            raise MalformedMessage(f"filename '{shown}' does not match request")

    def _pass_answer(self) -> bool:
        """Passes the sink's answer to the source; returns whether all is well."""
        failure = self._sink.answer()
        self._source.write(OK if failure is None else failure.encode())
        if failure is not None:
            self._sink.told(failure)
        return failure is None

    def _pass_content(self, record: Entry) -> None:
        settings = self._settings
        meter = settings.begin(record.name, record.size) if settings.begin is not None else None
        left = record.size
        while left:
            data = self._source.take(left)
            self._sink.write(data)
            left -= len(data)
            if meter is not None:
                meter.advance(len(data))
            if settings.pace is not None:
                settings.pace(len(data))
        if meter is not None:
            meter.done()
        failure = self._source.answer()
        self._sink.write(OK if failure is None else failure.encode())
        if failure is not None:
            self._source.told(failure)
        self._pass_answer()
