"""The applets: parse arguments, call one function, return an exit status."""
