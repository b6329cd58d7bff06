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


class State(Enum):
    """Where a link is."""

    IDLE = auto()
    DIALLING = auto()
    UP = auto()
    BACKING_OFF = auto()
    STOPPED = auto()


class Event(Enum):
    """What can happen to it."""

    START = auto()
    OPENED = auto()  # the server has opened its end of the tunnel
    LOST = auto()  # or not come about: worth another attempt
    REFUSED = auto()  # for good: a key, a host key, a permission
    DUE = auto()  # the delay is over
    NETWORK_CHANGED = auto()
    STOP = auto()


TABLE: Final[dict[tuple[State, Event], State]] = {
    (State.IDLE, Event.START): State.DIALLING,
    (State.STOPPED, Event.START): State.DIALLING,
    (State.DIALLING, Event.OPENED): State.UP,
    (State.DIALLING, Event.LOST): State.BACKING_OFF,
    (State.DIALLING, Event.REFUSED): State.STOPPED,
    (State.DIALLING, Event.NETWORK_CHANGED): State.DIALLING,
    (State.UP, Event.LOST): State.BACKING_OFF,
    (State.UP, Event.REFUSED): State.STOPPED,
    (State.UP, Event.NETWORK_CHANGED): State.UP,
    (State.BACKING_OFF, Event.DUE): State.DIALLING,
    (State.BACKING_OFF, Event.NETWORK_CHANGED): State.DIALLING,
    (State.BACKING_OFF, Event.LOST): State.BACKING_OFF,
    (State.BACKING_OFF, Event.REFUSED): State.STOPPED,
    (State.IDLE, Event.NETWORK_CHANGED): State.IDLE,
    (State.STOPPED, Event.NETWORK_CHANGED): State.STOPPED,
    **{(state, Event.STOP): State.IDLE for state in State},
}


class LinkLife:
    """One link's state, and what a person wants to know of it; times are monotonic seconds."""

    def __init__(self, now: float) -> None:
        self.state = State.IDLE
        self.since = now  # when the state was entered
        self.due = 0.0  # in BACKING_OFF: when to dial again
        self.connects = 0  # how often it came up
        self.last_error = ""
        self._failures = 0  # in a row

    @property
    def reconnects(self) -> int:
        """How often it came back."""
        return max(0, self.connects - 1)

    def happened(self, event: Event, now: float, chance: float = 0.5, why: str = "") -> State:
        """Move on and return the new state; ``chance`` is from 0 to 1.

        Raises KeyError for what cannot happen in this state.
        """
        before = self.state
        self.state = TABLE[before, event]
        if why:
            self.last_error = why
        if event is Event.START:
            self._failures = 0
            self.last_error = ""
        elif event is Event.OPENED:
            self.connects += 1
        elif event is Event.LOST:
            if before is State.UP and now - self.since >= STEADY:
                self._failures = 0
            delay = min(LAST_DELAY, FIRST_DELAY * 2.0**self._failures)
            self.due = now + delay * (1 + JITTER * (2 * chance - 1))
            self._failures = min(self._failures + 1, 32)
        if self.state is not before:
            self.since = now
        return self.state
