"""Wildcards and pattern lists as ssh_config(5) defines them under PATTERNS.

``*`` stands for any run of characters and ``?`` for one; nothing else is special. A list is
separated by commas, and a match of a pattern behind ``!`` outweighs every other.
"""

from __future__ import annotations


def matches(text: str, pattern: str) -> bool:
    """Whether the pattern covers the whole text; takes at most len(text) * len(pattern) steps."""
    at = 0  # in text
    place = 0  # in pattern
    star = -1  # the last * seen: after a mismatch it covers one character more
    resume = 0
    while at < len(text):
        # '*' first: a text that holds one matches it as a wildcard, too
        if place < len(pattern) and pattern[place] == "*":
            star = place
            resume = at
            place += 1
        elif place < len(pattern) and pattern[place] in ("?", text[at]):
            at += 1
            place += 1
        elif star >= 0:
            place = star + 1
            resume += 1
            at = resume
        else:
            return False
    return not pattern[place:].strip("*")


def matches_list(text: str, patterns: str) -> bool | None:
    """True if the comma list matches, False if a negated pattern does, None if none does."""
    found = None
    for pattern in patterns.split(","):
        negated = pattern.startswith("!")
        if matches(text, pattern[1:] if negated else pattern):
            if negated:
                return False
            found = True
    return found
