"""Shows on this machine what Culvert does: a VPN between two sites, and a program two hops away.

It needs root, for the devices. Without, it starts itself again in a user namespace, where the
kernel allows that. The exit status is 0 only when every line was seen to be true.
"""

import argparse
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

from tests.demo import vpn, x11
from tests.demo.stage import Failed
from tests.netns import CommandFailed
from tests.peers import Missing
from tests.tunnels import NoTunnel

PICTURE = Path("build/two-hops.png")
IN_USER_NAMESPACE = "CULVERT_DEMO_IN_USER_NAMESPACE"


def _enter_user_namespace() -> None:
    """Start this program again as an ordinary user who may make devices; returns if impossible."""
    # The user keeps their name and gains the capabilities, inside these namespaces only.
    prefix = ["unshare", "--user", "--map-current-user", "--keep-caps", "--net"]
    probe = subprocess.run([*prefix, "true"], capture_output=True, check=False)
    if probe.returncode == 0 and os.access("/dev/net/tun", os.R_OK | os.W_OK):
        os.environ[IN_USER_NAMESPACE] = "1"
        os.execvp(prefix[0], [*prefix, sys.executable, "-m", "tests.demo", *sys.argv[1:]])


STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    for number in STOPPING:  # taking down is not interrupted
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Run the demonstration; return its exit status."""
    parser = argparse.ArgumentParser(prog="tests.demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--server", choices=("culvert", "openssh"), default="culvert")
    parser.add_argument("--client", choices=("culvert", "openssh"), default="culvert")
    parser.add_argument("--picture", type=Path, default=PICTURE, help=f"(default {PICTURE})")
    chosen = parser.parse_args()

    if os.geteuid() != 0 and IN_USER_NAMESPACE not in os.environ:
        _enter_user_namespace()
        print("This needs root, for tun devices: sudo make demo", file=sys.stderr)
        return 1
    if not os.path.exists("/dev/net/tun"):
        print("There is no /dev/net/tun here: try `modprobe tun` as root.", file=sys.stderr)
        return 1
    for number in STOPPING:
        signal.signal(number, _stop)
    try:
        vpn.demonstrate(chosen.server, chosen.client)
        x11.demonstrate(chosen.server, chosen.picture)
    except KeyboardInterrupt:
        print("\n  stopped, and taken down", file=sys.stderr)
        return 130
    except (Failed, NoTunnel, CommandFailed, Missing, OSError, RuntimeError) as error:
        print(f"  FAILED  {error}", file=sys.stderr)
        return 1
    print("\n  Everything was seen. The same on two machines: see README.md.\n")
    return 0


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        sys.exit(main())
