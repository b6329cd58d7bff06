"""The escapes of a terminal session (ssh(1), ESCAPE CHARACTERS).

When the terminal is in raw mode, the escape character at the start of a line begins a command for
the client itself.
"""

import os
from collections.abc import Callable
from typing import Protocol

from ..aio.driver import Driver
from ..ssh.channels import Channel
from ..wire.codec import write_uint32


class Terminal(Protocol):
    """The user's terminal."""

    def enter(self) -> None:
        """Enters raw mode, so that each key goes to the program at once."""
        ...

    def restore(self) -> None:
        """Restores the terminal's former mode."""
        ...

    def suspend(self) -> None:
        """Stops the client (SIGTSTP) until a SIGCONT."""
        ...


CommandLine = Callable[[str, Callable[[str], None]], None]  # gets a line, and prints the answer


class Escapes:
    """Takes commands for the client out of the typed bytes, and carries them out."""

    def __init__(
        self,
        escape: bytes,
        stdin: int,
        stderr: int,
        terminal: Terminal,
        channel: Channel,
        driver: Driver,
        disconnect: Callable[[], None],
        command_line: CommandLine | None,
    ) -> None:
        """``command_line`` carries out the line that the user types after ~C."""
        self._escape = escape  # one character
        self._stdin = stdin
        self._stderr = stderr
        self._terminal = terminal
        self._channel = channel
        self._driver = driver
        self._disconnect = disconnect
        self._command_line = command_line
        self._at_line_start = True
        self._escaping = False

    def for_program(self, data: bytes) -> bytes:
        """Returns the typed bytes that are for the program; carries out the escapes."""
        escape = self._escape[0]
        output = bytearray()
        for byte in data:
            if self._escaping:
                self._escaping = False
                if byte != escape:
                    if self._command(byte):
                        self._at_line_start = True
                        continue
                    output.append(escape)
            elif byte == escape and self._at_line_start:
                self._escaping = True
                continue
            output.append(byte)
            self._at_line_start = byte in b"\r\n"
        return bytes(output)

    def _command(self, byte: int) -> bool:
        """Carries out an escape; returns False if ``byte`` is no known escape."""
        action = {
            ord("."): self._end,
            0x1A: self._terminal.suspend,
            ord("#"): self._list,
            ord("B"): lambda: self._channel.request("break", write_uint32(1000)),
            ord("C"): self._read_command,
            ord("R"): self._driver.connection.transport.rekey,
            ord("?"): self._help,
        }.get(byte)
        if action is None:
            return False
        action()
        return True

    def _print(self, text: str) -> None:
        os.write(self._stderr, f"\r\n{text}\r\n".encode())

    def _end(self) -> None:
        self._print("Disconnected.")
        self._disconnect()

    def _list(self) -> None:
        channels = self._driver.connection.open_channels()
        rows = [f"  #{channel.number} {channel.channel_type}" for channel in channels]
        self._print("\r\n".join(("The following connections are open:", *rows)))

    def _read_command(self) -> None:
        """Reads a command for the client from the terminal, up to the end of the line."""
        if self._command_line is None:
            self._print("commandline disabled")
            return
        self._terminal.restore()
        try:
            os.write(self._stderr, b"\r\nssh> ")
            line = os.read(self._stdin, 4096).decode(errors="replace")
        finally:
            self._terminal.enter()
        self._command_line(line, lambda text: self._print(text.replace("\n", "\r\n")))

    def _help(self) -> None:
        escape = self._escape.decode("latin-1")
        self._print(
            "\r\n".join(
                (
                    "Supported escape sequences:",
                    f" {escape}.   - end the connection",
                    f" {escape}^Z  - suspend the client",
                    f" {escape}#   - list the channels",
                    f" {escape}B   - send a BREAK",
                    f" {escape}C   - type a command, such as -L8080:localhost:80",
                    f" {escape}R   - exchange new keys",
                    f" {escape}?   - this message",
                    f" {escape}{escape}   - send the escape character",
                    "(only right after a newline)",
                )
            )
        )
