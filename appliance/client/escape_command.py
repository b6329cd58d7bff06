"""The command line that ~C opens in a terminal session (ssh(1), ESCAPE CHARACTERS)."""

from collections.abc import Callable
from typing import Final

from ..config.forwards import LOCAL, Forward, TcpPlace, forward
from ..services.forward_client import ForwardClient

HELP: Final = """Commands:
  -L[address:]port:host:port    a port here leads to a place the server reaches
  -R[address:]port:host:port    a port of the server leads to a place here
  -D[address:]port              a SOCKS port here leads wherever its clients want
  -KL[address:]port             cancel a forward; also -KR and -KD"""


def carry_out(text: str, forwards: ForwardClient, done: Callable[[str], None]) -> None:
    """Carries out one command; ``done`` gets the text to show, now or later."""
    words = text.strip().removeprefix("-")
    if not words or words in ("h", "?"):
        done(HELP if words else "")
        return
    cancelled = words.startswith("K")
    direction, place = words.removeprefix("K")[:1], words.removeprefix("K")[1:].strip()
    if direction not in "LRD" or not direction:
        done("Invalid command.")
        return
    try:
        wanted = listening(direction, place) if cancelled else forward(direction, place)
    except ValueError as error:
        done(f"Bad forwarding specification: {error}")
        return

    def told(why: str, port: int) -> None:
        success = "Canceled." if cancelled else "Forwarding."
        done(f"{why}." if why else f"{success} Allocated port {port}." if port else success)

    if cancelled:
        forwards.cancel(wanted, told)
    else:
        forwards.add(wanted, told)


def listening(direction: str, text: str) -> Forward:
    """Returns the forward that listens there, with a dummy target; raises ValueError."""
    dummy = "" if direction != LOCAL else ":localhost:1"
    return forward(direction, text + dummy)._replace(target=TcpPlace("localhost", 1))
