"""The table of requests that are answered, held against the filter's and against itself."""

from appliance.x11 import rules
from appliance.x11.round_trips import CORE, EXTENSION_WINDOWS, EXTENSIONS, WINDOWS, Kind


def test_rows_are_of_requests_that_there_are() -> None:
    known = {row.opcode for row in rules.CORE}
    assert CORE.keys() | WINDOWS.keys() <= known
    for name, extension in EXTENSIONS.items():
        assert max(extension.rows, default=0) <= extension.last, name
        rows = rules.EXTENSIONS.get(name)
        if rows is not None:
            assert max(row.opcode for row in rows) <= extension.last, name


def test_no_request_is_answered_and_not_answered() -> None:
    assert not CORE.keys() & WINDOWS.keys()
    for name, windows in EXTENSION_WINDOWS.items():
        assert not windows.keys() & EXTENSIONS[name].rows.keys(), name


def test_what_the_server_must_decide_has_no_answer_of_ours() -> None:
    """GetInputFocus above all, by which programs wait for it; selections, pointer, pictures."""
    for opcode in (3, 14, 15, 23, 38, 40, 43, 44, 73):
        assert CORE[opcode].kind is Kind.SERVER
