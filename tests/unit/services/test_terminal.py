"""Terminal modes between the wire and a real pseudo-terminal."""

import os
import pty
import struct
import termios
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import MalformedMessage
from appliance.services.terminal import apply_modes, encode_modes, get_size, set_size


@pytest.fixture
def terminals() -> Iterator[tuple[int, int]]:
    """The masters of two terminals."""
    pairs = [pty.openpty(), pty.openpty()]
    yield pairs[0][0], pairs[1][0]
    for pair in pairs:
        for fd in pair:
            os.close(fd)


def modes(*items: tuple[int, int]) -> bytes:
    return b"".join(struct.pack(">BI", *item) for item in items) + b"\0"


def test_modes_survive_the_way_from_one_terminal_to_another(terminals: tuple[int, int]) -> None:
    ours, theirs = terminals
    attributes = termios.tcgetattr(ours)
    attributes[0] ^= termios.IXON | termios.ICRNL | termios.ISTRIP
    attributes[1] ^= termios.ONLCR
    attributes[3] ^= termios.ECHO | termios.ICANON | termios.TOSTOP
    attributes[6][termios.VINTR] = b"\x07"
    attributes[6][termios.VSUSP] = b"\0"  # none
    termios.tcsetattr(ours, termios.TCSANOW, attributes)
    apply_modes(theirs, encode_modes(ours))
    expected, found = termios.tcgetattr(ours), termios.tcgetattr(theirs)
    assert found[:4] == expected[:4]
    for name in ("VINTR", "VSUSP", "VERASE", "VEOF"):
        index = getattr(termios, name)
        assert found[6][index] == expected[6][index]
    assert encode_modes(theirs) == encode_modes(ours)


def test_the_encoding_is_that_of_rfc_4254(terminals: tuple[int, int]) -> None:
    encoded = encode_modes(terminals[0])
    assert encoded[-1] == 0
    assert len(encoded) % 5 == 1
    pairs = dict(struct.iter_unpack(">BI", encoded[:-1]))
    assert pairs[1] == 3  # VINTR is ^C
    assert pairs[53] == 1  # ECHO
    assert pairs[128] == pairs[129] == 38400


def test_single_modes_are_set_and_cleared(terminals: tuple[int, int]) -> None:
    master, _ = terminals
    apply_modes(master, modes((53, 0), (51, 0), (1, 255), (3, 8), (36, 7)))
    attributes = termios.tcgetattr(master)
    assert not attributes[3] & (termios.ECHO | termios.ICANON)
    assert attributes[0] & termios.ICRNL
    assert attributes[6][termios.VINTR] == b"\0"
    assert attributes[6][termios.VERASE] == b"\x08"
    apply_modes(master, modes((53, 1)))
    assert termios.tcgetattr(master)[3] & termios.ECHO


def test_unknown_modes_are_passed_over_and_undefined_ones_end_the_list(
    terminals: tuple[int, int],
) -> None:
    master, _ = terminals
    apply_modes(master, modes((127, 7), (53, 0)))
    assert not termios.tcgetattr(master)[3] & termios.ECHO
    apply_modes(master, struct.pack(">BI", 160, 1) + struct.pack(">BI", 53, 1))
    assert not termios.tcgetattr(master)[3] & termios.ECHO
    apply_modes(master, b"")


@settings(deadline=None)
@given(data=st.binary(max_size=60))
def test_no_modes_raise_anything_but_malformed_message(data: bytes) -> None:
    master, slave = pty.openpty()
    try:
        apply_modes(master, data)
    except MalformedMessage:
        pass
    finally:
        os.close(master)
        os.close(slave)


def test_sizes_survive_and_are_cut_to_what_a_terminal_can_have(
    terminals: tuple[int, int],
) -> None:
    set_size(terminals[0], 132, 43, 1000, 700)
    assert get_size(terminals[0]) == (132, 43, 1000, 700)
    set_size(terminals[0], 0xFFFFFFFF, 0, 65536, 65535)
    assert get_size(terminals[0]) == (65535, 0, 65535, 65535)
