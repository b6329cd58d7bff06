"""Which keys and certificates a client shows, in which order, and who signs."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.client import prompts
from appliance.client.credentials import UserCredentials
from appliance.client.host_trust import HostTrust
from appliance.client.ssh_config import load
from appliance.crypto.certificates import NONCE_BYTES, Certificate, CertType, Terms, issue
from appliance.crypto.key_files import dump_openssh
from appliance.crypto.keys import PrivateKey, certificate_name, generate
from appliance.services import agent_client
from appliance.services.agent_client import Agent
from appliance.ssh.auth_client import Identity
from tests.peers import find_program, ssh_agent

AUTHORITY = generate("ssh-ed25519")
DATA = b"what is signed"


def identities(*given: str) -> list[Identity]:
    options = load("host", given, "none")
    return list(UserCredentials(options, HostTrust(options)).identities())


def certificate(key: PrivateKey, kind: CertType = CertType.USER, serial: int = 0) -> Certificate:
    terms = Terms(kind, "who", ("alice",), serial)
    return issue(AUTHORITY, "ssh-ed25519", key.public, terms, bytes(NONCE_BYTES))


def write(path: Path, key: PrivateKey, passphrase: bytes | None = None) -> None:
    path.write_bytes(dump_openssh(key, passphrase, rounds=1))
    path.chmod(0o600)
    path.with_name(f"{path.name}.pub").write_text(key.public.line())


def signs(identity: Identity, key: Any) -> bool:
    algorithm = identity.algorithms[0]
    signature = identity.sign(algorithm, DATA)
    return signature is not None and key.verify(algorithm, signature, DATA)


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The socket of an agent without keys; what connects to it is closed at the end."""
    made: list[Agent] = []

    def connect(path: str) -> Agent:
        made.append(Agent(path))
        return made[-1]

    monkeypatch.setattr(agent_client, "Agent", connect)
    with ssh_agent(tmp_path / "agent") as path:
        yield str(path)
    for each in made:
        each.close()


def add(agent: str, key: Path) -> None:
    argv = [find_program("ssh-add"), "-q", str(key)]
    env = {"SSH_AUTH_SOCK": agent}
    subprocess.run(argv, env=env, check=True, capture_output=True)


@pytest.mark.parametrize("key_type", ["ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp384"])
def test_a_certificate_beside_a_key_is_shown_before_it(tmp_path: Path, key_type: str) -> None:
    key = generate(key_type, 2048 if key_type == "ssh-rsa" else None)
    made = certificate(key)
    write(tmp_path / "id", key)
    (tmp_path / "id-cert.pub").write_text(made.line("comment"))
    first, second = identities(f"IdentityFile {tmp_path}/id", "IdentityAgent none")
    assert (first.blob, second.blob) == (made.blob, key.public.blob)
    assert first.algorithms == tuple(map(certificate_name, second.algorithms))
    assert signs(first, made) and signs(second, key.public)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602])
def test_a_private_key_that_others_may_read_or_write_is_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: int
) -> None:
    write(tmp_path / "id", generate("ssh-ed25519"))
    given = f"IdentityFile {tmp_path}/id", "IdentityAgent none"
    (identity,) = identities(*given)
    assert identity.sign("ssh-ed25519", DATA)
    (tmp_path / "id").chmod(mode)
    assert identities(*given) == []
    assert f"chmod 600 {tmp_path}/id" in capsys.readouterr().err


def test_certificate_files_are_used_with_whatever_key_they_are_of(tmp_path: Path) -> None:
    keys = [generate("ssh-ed25519") for _ in range(3)]
    for number, key in enumerate(keys):
        write(tmp_path / f"id{number}", key)
    made = [certificate(keys[1], serial=1), certificate(keys[1], serial=2), certificate(keys[0])]
    for number, each in enumerate(made):
        (tmp_path / f"c{number}").write_text(each.line())
    given = [f"IdentityFile {tmp_path}/id{number}" for number in (0, 1)]
    given += [f"CertificateFile {tmp_path}/c{number}" for number in (0, 1, 2, 0)]
    found = identities(*given, "IdentityAgent none")
    assert [each.blob for each in found] == [
        *(each.blob for each in made),
        *(key.public.blob for key in keys[:2]),
    ]
    assert all(signs(each, one) for each, one in zip(found, made, strict=False))


def test_a_certificate_of_nobodys_key_is_not_shown(tmp_path: Path) -> None:
    key = generate("ssh-ed25519")
    write(tmp_path / "id", key)
    (tmp_path / "c").write_text(certificate(generate("ssh-ed25519")).line())
    given = (f"IdentityFile {tmp_path}/id", f"CertificateFile {tmp_path}/c", "IdentityAgent none")
    assert [each.blob for each in identities(*given)] == [key.public.blob]


@pytest.mark.parametrize("content", [None, "nonsense", "a host's", "a key"])
def test_a_certificate_file_that_is_none_is_told_and_passed_over(
    tmp_path: Path, content: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(prompts, "tell", told.append)
    key = generate("ssh-ed25519")
    write(tmp_path / "id", key)
    path = tmp_path / "c"
    if content is not None:
        texts = {
            "a host's": certificate(key, CertType.HOST).line(),
            "a key": key.public.line(),
        }
        path.write_text(texts.get(content, content))
    given = (f"IdentityFile {tmp_path}/id", f"CertificateFile {path}", "IdentityAgent none")
    assert [each.blob for each in identities(*given)] == [key.public.blob]
    assert len(told) == 1 and told[0].startswith(f"culvert: certificate file {path}: ")


def test_a_passphrase_is_asked_for_once_for_a_key_and_its_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def secret(question: str) -> str:
        asked.append(question)
        return "secret"

    monkeypatch.setattr(prompts, "secret", secret)
    key = generate("ssh-ed25519")
    write(tmp_path / "id", key, b"secret")
    made = certificate(key)
    (tmp_path / "id-cert.pub").write_text(made.line())
    first, second = identities(f"IdentityFile {tmp_path}/id", "IdentityAgent none")
    assert first.costs_the_user and not asked
    assert signs(first, made) and signs(second, key.public)
    assert len(asked) == 1


def test_the_agent_signs_for_a_certificate_of_a_key_that_it_holds(
    tmp_path: Path, agent: str
) -> None:
    key = generate("ssh-ed25519")
    write(tmp_path / "held", key)
    add(agent, tmp_path / "held")
    made = certificate(key)
    (tmp_path / "c").write_text(made.line())
    first, second = identities(f"IdentityAgent {agent}", f"CertificateFile {tmp_path}/c")
    assert (first.blob, second.blob) == (made.blob, key.public.blob)
    assert signs(first, made)


@pytest.mark.parametrize("key_type", ["ssh-ed25519", "ssh-rsa"])
def test_a_certificate_that_the_agent_holds_is_shown(
    tmp_path: Path, agent: str, key_type: str
) -> None:
    key = generate(key_type, 2048 if key_type == "ssh-rsa" else None)
    made = certificate(key)
    write(tmp_path / "id", key)
    (tmp_path / "id-cert.pub").write_text(made.line())
    add(agent, tmp_path / "id")  # which adds the certificate, too
    found = identities(f"IdentityAgent {agent}", "IdentityFile none")
    assert {each.blob for each in found} == {made.blob, key.public.blob}
    first = next(each for each in found if each.blob == made.blob)
    assert signs(first, made)
    write(tmp_path / "other", generate("ssh-ed25519"))
    given = (f"IdentityAgent {agent}", f"IdentityFile {tmp_path}/id", "IdentitiesOnly yes")
    assert [each.blob for each in identities(*given)] == [made.blob, key.public.blob]
    given = (f"IdentityAgent {agent}", f"IdentityFile {tmp_path}/other", "IdentitiesOnly yes")
    assert len(identities(*given)) == 1
