"""What the scenes of the demonstration have in common: what was seen is told."""


class Failed(Exception):
    """Something that had to be seen was not; the text is for the reader."""


def say(step: str, what: str) -> None:
    """Report one thing that was seen."""
    print(f"  ok  {step:<11} {what}", flush=True)


def expect(condition: bool, message: str) -> None:
    """Raise Failed with `message` unless `condition` holds."""
    if not condition:
        raise Failed(message)
