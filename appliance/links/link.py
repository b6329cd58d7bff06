"""The life of one link, as a table: what happened in which state leads where.

    IDLE ──start──► DIALLING ──opened──► UP
                     ▲     │              │
             due, or │    lost           lost
      network changed│     ▼              │
                    BACKING_OFF ◄─────────┘
    DIALLING, UP or BACKING_OFF ──refused──► STOPPED ──start──► DIALLING
    anything ──stop──► IDLE

Only a person, or a changed declaration, takes a link out of STOPPED: trying again what was
refused would only have the server refuse us for longer. Time and chance are arguments.
"""

from enum import Enum, auto
from typing import Final

# Our own choices
FIRST_DELAY: Final = 1.0  # seconds until the first new attempt, and twice as long each time
LAST_DELAY: Final = 60.0
JITTER: Final = 0.5  # of the delay, up or down: many links must not come back in step
STEADY: Final = 10.0  # seconds that a link must have been up for the delays to begin anew


class LinkState(Enum):
    """Where a link is."""

    IDLE = auto()
    DIALLING = auto()
    UP = auto()
    BACKING_OFF = auto()
    STOPPED = auto()


class LinkEvent(Enum):
    """What can happen to it."""

    START = auto()
    OPENED = auto()  # the server has opened its end of the tunnel
    LOST = auto()  # or not come about: worth another attempt
    REFUSED = auto()  # for good: a key, a host key, a permission
    DUE = auto()  # the delay is over
    NETWORK_CHANGED = auto()
    STOP = auto()


TABLE: Final[dict[tuple[LinkState, LinkEvent], LinkState]] = {
    (LinkState.IDLE, LinkEvent.START): LinkState.DIALLING,
    (LinkState.STOPPED, LinkEvent.START): LinkState.DIALLING,
    (LinkState.DIALLING, LinkEvent.OPENED): LinkState.UP,
    (LinkState.DIALLING, LinkEvent.LOST): LinkState.BACKING_OFF,
    (LinkState.DIALLING, LinkEvent.REFUSED): LinkState.STOPPED,
    (LinkState.DIALLING, LinkEvent.NETWORK_CHANGED): LinkState.DIALLING,
    (LinkState.UP, LinkEvent.LOST): LinkState.BACKING_OFF,
    (LinkState.UP, LinkEvent.REFUSED): LinkState.STOPPED,
    (LinkState.UP, LinkEvent.NETWORK_CHANGED): LinkState.UP,
    (LinkState.BACKING_OFF, LinkEvent.DUE): LinkState.DIALLING,
    (LinkState.BACKING_OFF, LinkEvent.NETWORK_CHANGED): LinkState.DIALLING,
    (LinkState.BACKING_OFF, LinkEvent.LOST): LinkState.BACKING_OFF,
    (LinkState.BACKING_OFF, LinkEvent.REFUSED): LinkState.STOPPED,
    (LinkState.IDLE, LinkEvent.NETWORK_CHANGED): LinkState.IDLE,
    (LinkState.STOPPED, LinkEvent.NETWORK_CHANGED): LinkState.STOPPED,
    **{(state, LinkEvent.STOP): LinkState.IDLE for state in LinkState},
}


class LinkLife:
    """One link's state, and what a person wants to know of it; times are monotonic seconds."""

    def __init__(self, now: float) -> None:
        self.state = LinkState.IDLE
        self.since = now  # when the state was entered
        self.due = 0.0  # in BACKING_OFF: when to dial again
        self.connects = 0  # how often it came up
        self.last_error = ""
        self._failures = 0  # in a row

    @property
    def reconnects(self) -> int:
        """How often it came back."""
        return max(0, self.connects - 1)

    def happened(
        self, event: LinkEvent, now: float, chance: float = 0.5, why: str = ""
    ) -> LinkState:
        """Move on and return the new state; ``chance`` is from 0 to 1.

        Raises KeyError for what cannot happen in this state.
        """
        before = self.state
        self.state = TABLE[before, event]
        if why:
            self.last_error = why
        if event is LinkEvent.START:
            self._failures = 0
            self.last_error = ""
        elif event is LinkEvent.OPENED:
            self.connects += 1
        elif event is LinkEvent.LOST:
            if before is LinkState.UP and now - self.since >= STEADY:
                self._failures = 0
            delay = min(LAST_DELAY, FIRST_DELAY * 2.0**self._failures)
            self.due = now + delay * (1 + JITTER * (2 * chance - 1))
            self._failures = min(self._failures + 1, 32)
        if self.state is not before:
            self.since = now
        return self.state
