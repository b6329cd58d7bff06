"""The protocol as state machines that do no input or output of their own."""
