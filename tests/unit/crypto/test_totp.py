"""One-time codes: RFC 6238's own, and what a secret looks like."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.crypto.totp import (
    STEP,
    address,
    code,
    matching_step,
    read_secret,
    write_secret,
)

SECRET = b"12345678901234567890"  # RFC 6238 appendix B


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (59, "94287082"),
        (1111111109, "07081804"),
        (1111111111, "14050471"),
        (1234567890, "89005924"),
        (2000000000, "69279037"),
        (20000000000, "65353130"),
    ],
)
def test_codes_are_those_of_rfc_6238(now: int, expected: str) -> None:
    assert code(SECRET, now // STEP) == expected[-6:]
    assert matching_step(SECRET, expected[-6:].encode(), now, -1) == now // STEP


def test_the_step_before_and_the_one_after_count_and_no_other() -> None:
    now = 1234567890
    step = now // STEP
    for away in range(-3, 4):
        found = matching_step(SECRET, code(SECRET, step + away).encode(), now, -1)
        assert found == (step + away if abs(away) <= 1 else None)


def test_a_step_counts_once_and_none_before_it_afterwards() -> None:
    now = 1234567890
    step = now // STEP
    for away in (-1, 0, 1):
        given_code = code(SECRET, step + away).encode()
        assert matching_step(SECRET, given_code, now, step + away) is None
        assert matching_step(SECRET, given_code, now, step + away - 1) == step + away


@given(st.binary(), st.floats(0, 1e11), st.integers(-1, 1 << 40))
def test_no_bytes_raise(given_code: bytes, now: float, last: int) -> None:
    matching_step(SECRET, given_code, now, last)


@given(st.binary(min_size=16, max_size=64))
def test_a_secret_survives_the_round_trip(secret: bytes) -> None:
    text = write_secret(secret)
    assert "=" not in text
    assert read_secret(text) == read_secret(text.lower()) == secret
    assert read_secret(" ".join(text[at : at + 4] for at in range(0, len(text), 4))) == secret


@pytest.mark.parametrize("text", ["", "A", "AAAA", "1" * 32, "ä" * 32, "!" * 32, "A" * 23])
def test_a_secret_that_is_short_or_not_base32_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        read_secret(text)


def test_the_address_is_what_telephones_read() -> None:
    assert address(SECRET, "a b", "host.example") == (
        "otpauth://totp/a%20b@host.example?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=Culvert"
    )
