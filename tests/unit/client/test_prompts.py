"""What a person is told."""

import subprocess
import sys

from tests.peers import ROOT

_TELLS = """
import os
from appliance.client.prompts import tell
os.set_blocking(2, False)  # as a session does with a pipe
for number in range(3):
    tell(str(number) * 500_000)
assert not os.get_blocking(2)
"""


def test_a_reader_that_is_slow_misses_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _TELLS], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0
    assert done.stderr == "".join(f"{str(number) * 500_000}\n" for number in range(3))
