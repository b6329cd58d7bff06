"""When a connection counts as idle, with a clock of the test's own."""

from types import SimpleNamespace
from typing import Any

from appliance.aio.idle import LOOK, IdleTimeout
from appliance.ssh.order import Phase


class FakeLoop:
    """Time that moves as it is told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.due: list[tuple[float, Any]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Any) -> None:
        self.due.append((self.now + delay, callback))

    def run_until(self, end: float) -> None:
        while self.due and self.due[0][0] <= end:
            self.now, callback = self.due.pop(0)
            callback()
        self.now = end


def test_it_expires_once_and_only_after_so_long_without_a_packet() -> None:
    loop, expired = FakeLoop(), []
    transport = SimpleNamespace(activity=7, phase=Phase.OPEN)
    driver = SimpleNamespace(loop=loop, connection=SimpleNamespace(transport=transport))
    IdleTimeout(driver, 5, lambda: expired.append(loop.now))  # type: ignore[arg-type]
    loop.run_until(4)
    transport.activity += 1
    loop.run_until(8.5)
    assert not expired
    loop.run_until(100)
    assert len(expired) == 1
    assert 9 <= expired[0] <= 10 + LOOK


def test_a_connection_that_is_over_is_looked_at_no_more() -> None:
    loop = FakeLoop()
    transport = SimpleNamespace(activity=0, phase=Phase.CLOSED)
    driver = SimpleNamespace(loop=loop, connection=SimpleNamespace(transport=transport))
    IdleTimeout(driver, 1, lambda: None)  # type: ignore[arg-type]
    loop.run_until(3)
    assert not loop.due
