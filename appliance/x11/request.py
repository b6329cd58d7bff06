"""What a client's request to forward X11 may say (RFC 4254 section 6.3.1).

Programs and files get the protocol's name and the cookie: ~/.ssh/rc on its standard input, xauth as
a line of commands, the programs in their Xauthority file.
"""

import re
from typing import Final

_PROTOCOL: Final = re.compile(rb"[A-Za-z0-9.:/_-]+")  # OpenSSH: session.c, xauth_valid_string
_COOKIE: Final = re.compile(rb"(?:[0-9A-Fa-f]{2})+")

# Our own choices
PROTOCOL_LIMIT: Final = 256  # bytes; the usual name has 18
COOKIE_LIMIT: Final = 2048  # hexadecimal digits; the usual cookie has 32
SCREEN_LIMIT: Final = 400  # the largest number that OpenSSH's client asks for


def fault(protocol: bytes, cookie: bytes, screen: int) -> str:
    """Returns why a request with these fields is refused, '' if it is not."""
    if len(protocol) > PROTOCOL_LIMIT or not _PROTOCOL.fullmatch(protocol):
        return "the name of the X11 authentication protocol is malformed"
    if len(cookie) > COOKIE_LIMIT or not _COOKIE.fullmatch(cookie):
        return "the X11 authentication cookie is malformed"
    if screen > SCREEN_LIMIT:
        return "the X11 screen number is too large"
    return ""
