"""The state machine of one link or mount: a table from (state, event) to the next state.

    IDLE ──start──► DIALLING ──opened──► UP ──silent──► DIALLING
                     ▲     │              │
             due, or │    lost           lost
      network changed│     ▼              │
                    BACKING_OFF ◄─────────┘
    DIALLING, UP or BACKING_OFF ──refused──► STOPPED ──start──► DIALLING
    anything ──stop──► IDLE

The program of a mount connects again by itself when it has lost its server, which is ``silent``.

Only a person or a changed declaration takes a link out of STOPPED: after repeated refused logins, a
server may refuse this machine for even longer. Time and chance are arguments.
"""

from enum import Enum, auto
from typing import Final

# Our own choices
FIRST_DELAY: Final = 1.0  # seconds until the first new attempt; doubled for each further one
LAST_DELAY: Final = 60.0
JITTER: Final = 0.5  # part of the delay, up or down: many links must not dial at the same time
STEADY: Final = 10.0  # seconds of being up, after which the delays begin again at FIRST_DELAY


class LinkState(Enum):
    """The state of a link or mount."""

    IDLE = auto()
    DIALLING = auto()
    UP = auto()
    BACKING_OFF = auto()
    STOPPED = auto()


class LinkEvent(Enum):
    """An event that may change the state."""

    START = auto()
    OPENED = auto()  # the server has opened its end of the tunnel
    SILENT = auto()  # a mount's server is gone, and its program tries to reach it again
    LOST = auto()  # the connection ended or failed: another attempt may succeed
    REFUSED = auto()  # another attempt cannot succeed: a key, a host key, a permission
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
    (LinkState.UP, LinkEvent.SILENT): LinkState.DIALLING,
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
    """The state and history of a link or mount, which the status shows.

    Times are monotonic seconds.
    """

    def __init__(self, now: float) -> None:
        self.state = LinkState.IDLE
        self.since = now  # when the state was entered
        self.due = 0.0  # in BACKING_OFF: when to dial again
        self.connects = 0  # how often it came up
        self.last_error = ""
        self._failures = 0  # in a row

    @property
    def reconnects(self) -> int:
        """Returns how often it came up again."""
        return max(0, self.connects - 1)

    def happened(
        self, event: LinkEvent, now: float, chance: float = 0.5, why: str = ""
    ) -> LinkState:
        """Applies an event and returns the new state.

        ``chance`` is from 0 to 1 and varies the delay; ``why`` is kept as ``last_error``. Raises
        KeyError if the event cannot happen in this state.
        """
        before = self.state
        self.state = TABLE[before, event]
        if before is LinkState.UP and now - self.since >= STEADY:
            self._failures = 0
        if why:
            self.last_error = why
        if event is LinkEvent.START:
            self._failures = 0
            self.last_error = ""
        elif event is LinkEvent.OPENED:
            self.connects += 1
        elif event is LinkEvent.LOST:
            delay = min(LAST_DELAY, FIRST_DELAY * 2.0**self._failures)
            self.due = now + delay * (1 + JITTER * (2 * chance - 1))
            self._failures = min(self._failures + 1, 32)
        if self.state is not before:
            self.since = now
        return self.state
