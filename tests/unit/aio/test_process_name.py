"""What others see of this process's name: X servers take local programs by it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.displays import screen

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


ATTACH = """
import socket, struct, sys
from appliance.aio.process_name import be_called_ssh
from appliance.wire.x11 import SetUpRequest, COOKIE_PROTOCOL
if sys.argv[2] == 'ssh':
    be_called_ssh()
sock = socket.socket(socket.AF_UNIX)
sock.connect('/tmp/.X11-unix/X' + sys.argv[1])
stream = sock.makefile('rwb')
def ask(data):
    stream.write(data)
    stream.flush()
    return stream.read(32)
stream.write(SetUpRequest('<', 11, 0, COOKIE_PROTOCOL, bytes.fromhex(sys.argv[3])).encode())
stream.flush()
head = stream.read(8)
rest = stream.read(4 * struct.unpack('<H', head[6:])[0])
base = struct.unpack('<I', rest[4:8])[0]
found = ask(struct.pack('<BBHHxx7sx', 98, 0, 4, 7, b'MIT-SHM'))
print(ask(struct.pack('<BBHIII', found[9], 1, 4, base, 0x7FFFFFFF, 0))[1])
"""


@pytest.mark.parametrize(("name", "code"), [("", 10), ("ssh", 1)])
def test_an_x_server_refuses_shared_memory_to_a_program_called_ssh(
    name: str, code: int, tmp_path: Path
) -> None:
    """ShmAttach of no segment: BadAccess for a program of this machine, BadRequest for another."""
    with screen(tmp_path) as display:
        cookie = display.run("xauth", "list", display.name).stdout.split()[-1].decode()
        done = subprocess.run(
            [sys.executable, "-c", ATTACH, str(display.number), name, cookie],
            capture_output=True, check=True, timeout=60, cwd=Path(__file__).parents[3],
        )  # fmt: skip
    assert int(done.stdout) == code
