"""A coverage-guided fuzzer for every parser and both state machines; `make fuzz SECONDS=60`."""
