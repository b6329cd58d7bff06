"""The command line that the clients made with Python libraries have in common."""

import argparse


def parse() -> argparse.Namespace:
    """Return the options; a password, if any, is in the environment's TEST_PASSWORD."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--known-hosts", required=True)
    parser.add_argument("--user", required=True)
    parser.add_argument("--method", default="publickey")
    parser.add_argument("--key")
    parser.add_argument("--kex")
    parser.add_argument("--host-key")
    parser.add_argument("--cipher")
    parser.add_argument("--mac")
    parser.add_argument("--compression", action="store_true")
    parser.add_argument("--env", action="append", default=[], help="NAME=VALUE")
    parser.add_argument("--sftp", action="append", help="put or get, then source and target")
    parser.add_argument("--subsystem", action="store_true")
    parser.add_argument("--pty", help="TERM,ROWS,COLUMNS")
    parser.add_argument("--rekey-bytes", type=int, help="bytes after which to exchange keys again")
    parser.add_argument("--signal", help="sent to the command after its first output")
    parser.add_argument("-A", action="store_true", help="forward the agent")
    parser.add_argument("-N", action="store_true", help="no command: for forwards")
    for letter in "LRD":
        parser.add_argument(f"-{letter}", action="append", default=[], help="as of ssh")
    parser.add_argument("command", nargs="?")
    return parser.parse_args()
