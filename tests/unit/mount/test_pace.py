"""How much is asked for ahead."""

from appliance.mount.pace import LEAST, MOST, Pace


class Clock:
    """A loop that is nothing but a clock."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now


def transfer(clock: Clock, pace: Pace, rate: float, round_trip: float, turns: int) -> None:
    """A link of this rate (bytes a second) and delay, with a window's worth on its way."""
    for _ in range(turns):
        size = pace.window
        asked = pace.asked()
        clock.now += max(round_trip, size / rate)
        pace.delivered(asked, size)


def test_a_long_fast_way_is_filled_after_a_few_round_trips() -> None:
    clock = Clock()
    pace = Pace(clock)  # type: ignore[arg-type]
    transfer(clock, pace, 100e6, 0.05, 12)
    assert 100e6 * 0.05 <= pace.window <= 2 * 100e6 * 0.05 + LEAST


def test_a_short_way_is_not_flooded() -> None:
    clock = Clock()
    pace = Pace(clock)  # type: ignore[arg-type]
    asked = pace.asked()
    clock.now += 0.0003
    pace.answered(asked[0])
    transfer(clock, pace, 200e6, 0.0003, 50)
    assert pace.window < 2 * LEAST


def test_the_window_has_limits() -> None:
    clock = Clock()
    pace = Pace(clock)  # type: ignore[arg-type]
    assert pace.window == LEAST
    transfer(clock, pace, 1e12, 1.0, 40)
    assert pace.window == MOST
