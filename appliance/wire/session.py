"""The data of a session's requests (RFC 4254 section 6)."""

from typing import Final

from .codec import Boolean, Name, Record, Shown, String, Text, UInt32

X11_REQUEST: Final = "x11-req"


class PtyRequest(Record):
    term: Text
    columns: UInt32
    rows: UInt32
    width: UInt32
    height: UInt32
    modes: String


class WindowChange(Record):
    columns: UInt32
    rows: UInt32
    width: UInt32
    height: UInt32


class X11Request(Record):
    """The data of an x11-req request (RFC 4254 section 6.3.1)."""

    single_connection: Boolean
    authentication_protocol: String
    authentication_cookie: String  # hexadecimal
    screen_number: UInt32


class EnvironmentVariable(Record):
    variable: String
    value: String


class Command(Record):
    """The data of exec and subsystem requests."""

    command: String


class SignalRequest(Record):
    signal: Name


class ExitSignal(Record):
    signal: Name
    core_dumped: Boolean
    error_message: Shown = ""
    language_tag: Shown = ""


class Nothing(Record):
    """The data of requests that carry none."""
