"""The sequences of authentication methods that complete a login (AuthenticationMethods).

Each entry of authentication_methods is a sequence such as 'publickey,keyboard-interactive:totp'. A
client may try only the next method of a sequence that it has begun, and the login is complete after
the last method of any sequence. Without that setting any single method is enough, except a one-time
code: six digits are no more than a second factor. A code cannot come first in a sequence either:
anybody could then guess codes, and so lock the user out.
"""

from typing import Final

from ..config.server import ServerConfig
from ..errors import UsageError

PUBLICKEY: Final = "publickey"
PASSWORD: Final = "password"
DIALOGUE: Final = "keyboard-interactive:password"
CODE: Final = "keyboard-interactive:totp"
_USUAL: Final = (PUBLICKEY, PASSWORD, DIALOGUE)
_KNOWN: Final = (*_USUAL, CODE)


def sequences(config: ServerConfig) -> tuple[tuple[str, ...], ...]:
    """The sequences that complete a login; raises UsageError for a mistake, or if none is left."""
    written = [tuple(text.split(",")) for text in config.authentication_methods]
    found = []
    for names in written or [(name,) for name in _USUAL]:
        sequence = tuple(DIALOGUE if name == "keyboard-interactive" else name for name in names)
        for name in sequence:
            if name not in _KNOWN:
                raise UsageError(f"authentication_methods: '{name}' is none of {', '.join(_KNOWN)}")
        if sequence[0] == CODE:
            raise UsageError("authentication_methods: a code needs another method before it")
        if CODE in sequence and not config.totp_file:
            raise UsageError(f"authentication_methods: {CODE} needs a totp_file")
        if config.password_authentication or not {PASSWORD, DIALOGUE} & {*sequence}:
            found.append(sequence)
    if not found:
        raise UsageError("authentication_methods: passwords are not allowed, and nothing else is")
    return tuple(found)


class Factors:
    """The methods that one connection has satisfied, and those that it may try next."""

    def __init__(self, config: ServerConfig) -> None:
        self._sequences = sequences(config)
        self._satisfied: tuple[str, ...] = ()

    @property
    def next(self) -> tuple[str, ...]:
        """The methods that may be tried now."""
        length = len(self._satisfied)
        begun = (each for each in self._sequences if each[:length] == self._satisfied)
        return tuple(dict.fromkeys(each[length] for each in begun if len(each) > length))

    @property
    def method_names(self) -> tuple[str, ...]:
        """The names of ``next`` in the protocol, for USERAUTH_FAILURE."""
        return tuple(dict.fromkeys(name.partition(":")[0] for name in self.next))

    @property
    def dialogue(self) -> str:
        """The method that keyboard-interactive means now: a password or a code."""
        return next((name for name in self.next if name in (DIALOGUE, CODE)), DIALOGUE)

    def satisfy(self, method: str) -> bool:
        """Records that a method of ``next`` is satisfied; returns whether the login is complete."""
        assert method in self.next
        self._satisfied += (method,)
        return self._satisfied in self._sequences
