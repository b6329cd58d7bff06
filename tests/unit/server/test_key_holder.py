"""Nobody but the key holder ever has a private key in its memory; the others ask it to sign."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from appliance import log
from appliance.crypto.key_files import dump_openssh, load_private_key
from appliance.crypto.keys import generate
from appliance.errors import UsageError
from appliance.server import key_holder
from appliance.server.key_holder import KeyHolder
from appliance.ssh.order import Phase
from tests.netns import wait_until
from tests.peers import Keyring
from tests.processes import family
from tests.unit.server.conftest import Dial, Serve, worker_of
from tests.unit.server.test_reload import reload


def traces(path: Path) -> dict[str, bytes]:
    """What a process may have kept of a private key file: its lines, and the secret numbers as a
    file has them (big-endian) and as OpenSSL does (little-endian words).
    """
    data = path.read_bytes()
    # without the first, which is the format's alone, and so the same in each file of RSA's
    found = {f"line {number}": line for number, line in enumerate(data.split(b"\n")[2:-2], 2)}
    secret = load_private_key(data).secret
    numbers: dict[str, int] = {}
    if isinstance(secret, RSAPrivateKey):
        private = secret.private_numbers()
        for name in ("d", "p", "q", "dmp1", "dmq1", "iqmp"):
            numbers[name] = getattr(private, name)
    elif isinstance(secret, EllipticCurvePrivateKey):
        numbers["d"] = secret.private_numbers().private_value
    else:
        found["seed"] = secret.private_bytes_raw()
    for name, number in numbers.items():
        big = number.to_bytes((number.bit_length() + 7) // 8, "big")
        found |= {f"{name} big": big, f"{name} little": big[::-1]}
    # what follows the end of the public half, or is that of the file's format, tells nothing
    public = load_private_key(data).public.blob
    return {
        name: value for name, value in found.items() if len(value) >= 24 and value not in public
    }


def memory(pid: int) -> Iterator[bytes]:
    """The writable memory of a process, area by area."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            area, rights = line.split()[:2]
            start, end = (int(word, 16) for word in area.split("-"))
            if rights.startswith("rw"):
                with contextlib.suppress(OSError):
                    file.seek(start)
                    yield file.read(end - start)


def found_in(pid: int, keys: list[Path]) -> set[str]:
    """Which traces of the keys a process has."""
    wanted = {f"{key.name}: {name}": value for key in keys for name, value in traces(key).items()}
    return {name for area in memory(pid) for name, value in wanted.items() if value in area}


@pytest.mark.root
def test_no_process_that_a_worker_is_forked_from_ever_has_a_private_key(
    our_server: Serve, dial: Dial, host_keys: Keyring
) -> None:
    kinds = "ssh-rsa", "ssh-ed25519", "ecdsa-sha2-nistp256"
    keys = [host_keys.key(kind) for kind in kinds]
    assert all(len(traces(key)) > 3 for key in keys)
    server = our_server("", *(word for key in keys for word in ("-r", str(key))))
    for moment in ("after the start", "after a SIGHUP", "after another"):
        if moment != "after the start":
            reload(server, "")
        client = dial(server)
        assert client.until(lambda connection: connection.transport.peer_version)
        worker_of(server)
        for pid in family(server.process.pid):
            assert found_in(pid, keys) == set(), moment
        client.log_in()
        for pid in family(server.process.pid):
            assert found_in(pid, keys) == set(), f"{moment}, and a login"
        client.close()
        assert wait_until(lambda: len(family(server.process.pid)) == 1)


def holders(key: Path) -> set[int]:
    """The processes that have the lines of this key in their memory, or its numbers."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if "sshd" in Path(entry, "cmdline").read_text() and found_in(
                    int(entry.name), [key]
                ):
                    found.add(int(entry.name))
    return found


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A key of one test's own."""
    path = tmp_path / "own-key"
    path.write_bytes(dump_openssh(generate("ssh-rsa", 2048), None, ""))
    path.chmod(0o600)
    return path


@pytest.mark.root
def test_a_connection_exchanges_keys_again_with_the_keys_that_it_began_with(
    our_server: Serve, dial: Dial, key: Path
) -> None:
    """So their holder outlives a SIGHUP and the listener, and no connection."""
    server = our_server("", "-r", str(key))
    (before,) = holders(key)
    client = dial(server).log_in()
    reload(server, "")
    assert wait_until(lambda: len(holders(key)) == 2)
    server.process.terminate()
    assert server.process.wait(10) == 0
    assert wait_until(lambda: holders(key) == {before})
    exchanged = client.connection.transport._keys_since
    client.connection.transport._now = exchanged + 1
    client.connection.transport.rekey()
    assert client.until(lambda connection: connection.transport._handshake is None)
    assert client.connection.transport.phase is Phase.OPEN
    client.close()
    assert wait_until(lambda: not holders(key))


@pytest.mark.root
def test_a_key_holder_that_was_killed_is_replaced(our_server: Serve, dial: Dial, key: Path) -> None:
    server = our_server("", "-r", str(key))
    old = dial(server).log_in()
    (killed,) = holders(key)
    os.kill(killed, signal.SIGKILL)
    assert wait_until(lambda: bool(holders(key) - {killed})), server.log
    dial(server).log_in()
    old.connection.transport.rekey()
    assert not old.until(lambda connection: connection.transport._handshake is None)
    assert "the host keys' process does not sign" in server.log


@pytest.mark.root
def test_a_key_holder_that_cannot_be_replaced_is_tried_again(
    our_server: Serve, dial: Dial, key: Path
) -> None:
    server = our_server("", "-r", str(key))
    (killed,) = holders(key)
    aside = key.rename(key.with_name("aside"))
    os.kill(killed, signal.SIGKILL)
    assert wait_until(lambda: f"host key {key} is missing" in server.log), server.log
    aside.rename(key)
    assert wait_until(lambda: bool(holders(key) - {killed})), server.log
    dial(server).log_in()


@pytest.fixture
def without_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a fork of the test's process close all but what the log is written to."""
    monkeypatch.setattr(log, "descriptors", set)


@pytest.mark.usefixtures("without_log")
def test_what_is_wrong_with_a_key_comes_from_the_process_that_read_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"^host key {tmp_path}/key is missing: make it"):
        KeyHolder([str(tmp_path / "key")], make=False)
    holder = KeyHolder([str(tmp_path / "key")], make=True)
    with contextlib.closing(holder):
        (held,) = holder.keys
        assert held.public.verify("ssh-ed25519", held.sign("ssh-ed25519", b"data"), b"data")


@pytest.mark.usefixtures("without_log")
def test_a_key_of_each_kind_signs_through_its_holder(host_keys: Keyring) -> None:
    keys = host_keys.keys(("ssh-rsa", "ssh-ed25519", "ecdsa-sha2-nistp256"))
    with contextlib.closing(KeyHolder(list(map(str, keys)), make=False)) as holder:
        for held in holder.keys:
            for algorithm in held.public.signature_algorithms:
                signature = held.sign(algorithm, b"data")
                assert held.public.verify(algorithm, signature, b"data")


@pytest.fixture
def holder(without_log: None, tmp_path: Path) -> Iterator[KeyHolder]:
    """The holder of one key."""
    with contextlib.closing(KeyHolder([str(tmp_path / "key")], make=True)) as made:
        yield made


def test_no_answer_of_a_key_holder_is_an_error(holder: KeyHolder) -> None:
    (held,) = holder.keys
    with pytest.raises(OSError, match="key"):
        held.sign("rsa-sha2-512", b"data")  # by which it fails
    with pytest.raises(OSError, match=r"pipe|reset|key"):
        held.sign("ssh-ed25519", b"data")


def test_who_went_away_before_its_signature_costs_nobody_else_theirs(holder: KeyHolder) -> None:
    (held,) = holder.keys
    request = key_holder._Request(held.public.blob, "ssh-ed25519", b"data").encode()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        ours.close()
        socket.send_fds(holder._requests, [request], [theirs.fileno()])
    holder._requests.send(request)  # as if no descriptor had been left for it
    assert held.sign("ssh-ed25519", b"data")
