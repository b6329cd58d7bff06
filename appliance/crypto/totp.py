"""One-time codes that change with the time (RFC 6238), from a secret that a telephone shares.

A code is the truncated HMAC-SHA1 of the number of steps of 30 seconds since 1970 (RFC 4226
section 5.3). SHA-1 is enough here: HMAC does not need a hash without collisions. Clocks differ,
so the codes of the step before and the step after are accepted as well; no code is accepted twice.
"""

import hmac
from binascii import Error as Base32Error
from typing import Final
from urllib.parse import quote

STEP: Final = 30  # seconds
DIGITS: Final = 6

# Our own choices
WINDOW: Final = 1  # steps before and after the present one
SECRET_BYTES: Final = 20  # RFC 4226 section 4: 128 bits at least, 160 recommended
_SECRET_MINIMUM: Final = 16


def code(secret: bytes, counter: int) -> str:
    """The code of one step (RFC 4226 section 5.3)."""
    digest = hmac.digest(secret, counter.to_bytes(8, "big"), "sha1")
    offset = digest[-1] & 15
    number = int.from_bytes(digest[offset : offset + 4], "big") & 0x7FFFFFFF
    return str(number % 10**DIGITS).zfill(DIGITS)


def matching_step(secret: bytes, given: bytes, now: float, last: int) -> int | None:
    """The step whose code was given at ``now`` (seconds since 1970), None if there is none.

    ``last`` is the step whose code was accepted last: neither it nor an earlier one is accepted
    again. All codes are compared, so that the time taken does not tell which one matched.
    """
    present = int(now) // STEP
    found = None
    for step in range(present - WINDOW, present + WINDOW + 1):
        if hmac.compare_digest(code(secret, max(step, 0)).encode(), given) and step > last:
            found = step
    return found


def read_secret(text: str) -> bytes:
    """The bytes of a secret in base32; blanks and case are ignored. Raises ValueError."""
    from base64 import b32decode

    compact = text.replace(" ", "").rstrip("=").upper()
    try:
        secret = b32decode(compact + "=" * (-len(compact) % 8))
    except Base32Error as error:
        raise ValueError("a secret is not base32") from error
    if len(secret) < _SECRET_MINIMUM:
        raise ValueError(f"a secret is shorter than {_SECRET_MINIMUM} bytes")
    return secret


def write_secret(secret: bytes) -> str:
    """The secret in base32, as telephones expect it."""
    from base64 import b32encode

    return b32encode(secret).decode().rstrip("=")


def address(secret: bytes, user: str, host: str) -> str:
    """The otpauth:// address, which a telephone scans as a QR code."""
    label = quote(f"{user}@{host}", safe="@")
    return f"otpauth://totp/{label}?secret={write_secret(secret)}&issuer=Culvert"
