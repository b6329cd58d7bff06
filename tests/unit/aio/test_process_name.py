"""What others see of this process's name: X servers take local programs by it."""

import subprocess
import sys
from pathlib import Path

SHOW = """
import sys
from appliance.aio.process_name import be_called_ssh
be_called_ssh()
print(open('/proc/self/cmdline', 'rb').read())
"""


def command_line(*words: str) -> bytes:
    done = subprocess.run(
        [sys.executable, "-c", SHOW, *words], capture_output=True, check=True, timeout=60,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    found: bytes = eval(done.stdout)
    return found


def test_the_first_word_is_ssh_and_the_others_can_still_be_read() -> None:
    line = command_line("ssh", "-X", "there")
    assert line.rstrip(b"\0") == b"ssh: culvert ssh -X there"


def test_what_does_not_fit_is_left_out() -> None:
    line = command_line()
    assert line.startswith(b"ssh: culvert\0")
    assert line.rstrip(b"\0") == b"ssh: culvert"
