"""Keys that the real ssh-keygen and dropbearkey have made, once for all tests."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.peers import find_program

RunProgram = Callable[..., str]

DROPBEARCONVERT = Path("/usr/lib/dropbear/dropbearconvert")  # outside every PATH on Debian

# type of the key -> options of ssh-keygen, options of dropbearkey
KINDS = {
    "ssh-ed25519": (["-t", "ed25519"], ["-t", "ed25519"]),
    "ecdsa-sha2-nistp256": (["-t", "ecdsa", "-b", "256"], ["-t", "ecdsa", "-s", "256"]),
    "ecdsa-sha2-nistp384": (["-t", "ecdsa", "-b", "384"], ["-t", "ecdsa", "-s", "384"]),
    "ecdsa-sha2-nistp521": (["-t", "ecdsa", "-b", "521"], ["-t", "ecdsa", "-s", "521"]),
    "ssh-rsa": (["-t", "rsa", "-b", "2048"], ["-t", "rsa", "-s", "2048"]),
}


@pytest.fixture(scope="session")
def run() -> RunProgram:
    """A function that runs a program and returns what it prints; it must succeed."""

    def run_program(name: str, *arguments: str | Path, data: str = "") -> str:
        program = str(DROPBEARCONVERT) if name == "dropbearconvert" else find_program(name)
        result = subprocess.run(
            [program, *map(str, arguments)], input=data, capture_output=True, text=True, timeout=30
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run_program


@pytest.fixture(scope="session")
def openssh_keys(run: RunProgram, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Private keys in OpenSSH's format without a passphrase, by type; .pub files beside."""
    folder = tmp_path_factory.mktemp("openssh")
    for key_type, (options, _) in KINDS.items():
        run("ssh-keygen", "-q", *options, "-N", "", "-C", f"a {key_type}", "-f", folder / key_type)
    return {key_type: folder / key_type for key_type in KINDS}


@pytest.fixture(scope="session")
def dropbear_keys(run: RunProgram, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Private keys in Dropbear's format, by type."""
    folder = tmp_path_factory.mktemp("dropbear")
    for key_type, (_, options) in KINDS.items():
        run("dropbearkey", *options, "-f", folder / key_type)
    return {key_type: folder / key_type for key_type in KINDS}
