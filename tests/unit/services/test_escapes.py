"""What of the typed bytes is for the program, and what commands the client."""

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.services.escapes import CommandLine, Escapes


class Typed:
    """Escapes whose terminal, channel and connection only take notes."""

    def __init__(self, command_line: CommandLine | None = None) -> None:
        self.notes: list[Any] = []
        self.stdin, self.keys = os.pipe()
        self.screen, self.stderr = os.pipe()
        channel = SimpleNamespace(request=lambda *what: self.notes.append(what))
        terminal = SimpleNamespace(
            **{name: self._note(name) for name in ("enter", "restore", "suspend")}
        )
        connection = SimpleNamespace(
            open_channels=lambda: [SimpleNamespace(number=3, channel_type="session")],
            transport=SimpleNamespace(rekey=self._note("rekey")),
        )
        driver: Any = SimpleNamespace(connection=connection)
        self.escapes = Escapes(
            b"~",
            self.stdin,
            self.stderr,
            terminal,
            channel,  # type: ignore[arg-type]
            driver,
            self._note("disconnect"),
            command_line,
        )

    def _note(self, name: str) -> Any:
        return lambda: self.notes.append(name)

    def shown(self) -> str:
        return os.read(self.screen, 4096).decode()

    def close(self) -> None:
        for fd in (self.stdin, self.keys, self.screen, self.stderr):
            os.close(fd)


@pytest.fixture
def it() -> Iterator[Typed]:
    typed = Typed()
    yield typed
    typed.close()


@pytest.mark.parametrize(
    ("typed", "passed"),
    [
        (b"ls\r", b"ls\r"),
        (b"~~x", b"~x"),
        (b"a~.", b"a~."),  # not at the start of a line
        (b"~xyz\r", b"~xyz\r"),  # no escape
        (b"~Rls\n~Rx", b"ls\nx"),
        (b"~R~R~Rx", b"x"),  # after a command a line starts
        (b"~", b""),
    ],
)
def test_a_program_gets_what_is_no_command_however_it_is_cut(
    it: Typed, typed: bytes, passed: bytes
) -> None:
    assert it.escapes.for_program(typed) == passed
    again = Typed()
    assert b"".join(again.escapes.for_program(bytes([byte])) for byte in typed) == passed
    assert it.notes == again.notes == ["rekey"] * typed.count(b"~R")
    again.close()


def test_each_command_is_carried_out(it: Typed) -> None:
    assert it.escapes.for_program(b"~\x1a~B~R") == b""
    assert it.notes == ["suspend", ("break", (1000).to_bytes(4, "big")), "rekey"]
    it.escapes.for_program(b"~.")
    assert it.shown() == "\r\nDisconnected.\r\n"
    assert it.notes[3:] == ["disconnect"]
    it.escapes.for_program(b"~#")
    assert "#3 session" in it.shown()
    it.escapes.for_program(b"~?")
    assert "~R   - exchange new keys" in it.shown()


def test_a_command_line_is_read_on_the_terminal_as_it_was() -> None:
    asked = []

    def carry_out(line: str, done: Any) -> None:
        asked.append(line)
        done("two\nlines")

    it = Typed(carry_out)
    os.write(it.keys, b"-L1:a:2\n")
    assert it.escapes.for_program(b"~C") == b""
    assert asked == ["-L1:a:2\n"]
    assert it.notes == ["restore", "enter"]
    assert it.shown() == "\r\nssh> \r\ntwo\r\nlines\r\n"
    it.close()


def test_a_command_line_may_be_switched_off(it: Typed) -> None:
    it.escapes.for_program(b"~C")
    assert it.shown() == "\r\ncommandline disabled\r\n"
    assert it.notes == []
