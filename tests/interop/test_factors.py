"""A key and a one-time code, with real clients."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.crypto import totp
from tests.interop.conftest import OURS
from tests.peers import (
    CLIENTS,
    SERVERS,
    Account,
    Keyring,
    Login,
    Server,
    ServerKind,
    ServerSettings,
)

SECRET = bytes(range(20))


@pytest.mark.parametrize("name", ["openssh", OURS])
def test_a_key_and_a_code_log_in_and_the_code_only_once(
    name: str,
    serve: Callable[[ServerKind, ServerSettings], Server],
    host_keys: Keyring,
    user_keys: Keyring,
    account: Account,
    authorized_keys: Path,
    tmp_path: Path,
) -> None:
    secrets = tmp_path / "totp"
    secrets.write_text(f"{account.name}:{totp.write_secret(SECRET)}\n")
    secrets.chmod(0o600)
    config = tmp_path / "sshd.toml"
    config.write_text(
        'authentication_methods = ["publickey,keyboard-interactive:totp"]\n'
        f'totp_file = "{secrets}"\n'
    )
    settings = ServerSettings(
        host_keys=[host_keys.key()],
        authorized_keys=None if account.password else authorized_keys,
        options=("--config", str(config)),
    )
    server = serve(SERVERS["culvert"], settings)

    def log_in(code: str) -> tuple[int, bytes]:
        login = Login(account, user_keys.key(), "publickey,keyboard-interactive", code)
        options = ["-i", str(user_keys.key())]
        done = CLIENTS[name].run(server, login, "echo in", options=options)
        return done.status, done.stdout

    code = totp.code(SECRET, int(time.time()) // totp.STEP)
    wrong = "000000" if code != "000000" else "111111"
    assert log_in(wrong) == (255, b"")
    assert log_in(code) == (0, b"in\n"), server.log
    assert log_in(code) == (255, b"")
