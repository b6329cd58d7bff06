"""Fuzz one target in this process, with libFuzzer's own words behind its name (atheris)."""

import sys

import atheris

with atheris.instrument_imports(include=["appliance"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """`python -m tests.fuzz.run TARGET [words for libFuzzer]`; never returns."""
    name = sys.argv[1]
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
