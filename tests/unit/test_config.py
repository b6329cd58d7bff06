"""The server's settings in TOML: each mistake names the file, the key and what is wanted."""

from dataclasses import fields
from pathlib import Path

import pytest

from appliance.config import ServerConfig, load_server_config
from appliance.errors import UsageError

DEFAULT = ServerConfig()
WRONG: dict[type, str] = {str: "7", int: '"many"', bool: '"yes"'}


def load(tmp_path: Path, text: str, defaults: ServerConfig = DEFAULT) -> ServerConfig:
    path = tmp_path / "sshd.toml"
    path.write_text(text)
    return load_server_config(str(path), defaults)


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'sshd.toml'}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", [field.name for field in fields(ServerConfig)])
def test_every_key_with_a_wrong_value_is_named_with_what_is_expected(
    tmp_path: Path, name: str
) -> None:
    kind = next(field.type for field in fields(ServerConfig) if field.name == name)
    for value in (WRONG.get(kind, "7.5"), "{ a = 1 }", "[[]]", "2020-01-01"):  # type: ignore[arg-type]
        message = refusal(tmp_path, f"{name} = {value}")
        assert f": {name}: expected " in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_auth_tries = 0", "expected 1 to 100"),
        ("login_grace_time = -1", "expected 0 to 86400"),
        ("receive_window = 1", "expected 32768 to 67108864"),
        ("rekey_bytes = 1", "expected 1048576 to"),
        ("permit_tunnel = 'perhaps'", "expected one of no, point-to-point, ethernet, yes"),
        ("permit_tunnel = true", "expected one of"),
        ("permit_root_login = 'without-password'", "expected one of yes, prohibit-password, no"),
        ("listen = '22'", "expected a list of strings"),
        ("listen = [22]", "expected a list of strings"),
        ("max_startups = [10, 30]", "expected a list of 3 whole numbers"),
        ("max_startups = [10, 30, '100']", "expected a list of 3 whole numbers"),
        ("subsystems = { sftp = 1 }", "expected a table of strings"),
        ("keepalive = true", "expected a whole number"),
        ("password_authentication = 1", "expected true or false"),
        ("keepalive = 1.0", "expected a whole number"),
    ],
)
def test_what_is_expected_is_said_in_words(tmp_path: Path, text: str, words: str) -> None:
    assert words in refusal(tmp_path, text)


def test_an_unknown_key_is_named_with_the_one_that_was_meant(tmp_path: Path) -> None:
    assert "no key 'permit_tunel'; did you mean 'permit_tunnel'?" in refusal(
        tmp_path, "permit_tunel = 'yes'"
    )
    message = refusal(tmp_path, "[section]\nlisten = ['22']")
    assert "no key 'section'" in message
    assert "did you mean" not in refusal(tmp_path, "qqqq = 1")


@pytest.mark.parametrize("text", ["listen = [", "a = 1\na = 2", "= 1", "\x00", "listen"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, text: str) -> None:
    assert "not a TOML file" in refusal(tmp_path, text)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match=str(path)):
            load_server_config(str(path), DEFAULT)
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not a TOML file"):
        load_server_config(str(binary), DEFAULT)


def test_what_a_file_does_not_say_stays_as_it_was(tmp_path: Path) -> None:
    defaults = ServerConfig(keepalive=7)
    assert load(tmp_path, "", defaults) == defaults
    text = "listen = ['127.0.0.1:2222', '[::1]:22']\nmax_startups = [1, 2, 3]\nprofile = 'hardened'"
    config = load(tmp_path, text, defaults)
    assert config.listen == ("127.0.0.1:2222", "[::1]:22")
    assert config.max_startups == (1, 2, 3)
    assert (config.keepalive, config.profile) == (7, "hardened")


def test_tunnels_empty_passwords_and_old_algorithms_are_off_by_default() -> None:
    assert DEFAULT.permit_tunnel == "no"
    assert not DEFAULT.permit_empty_passwords
    assert not DEFAULT.pass_environment
    assert DEFAULT.login_grace_time > 0
    assert DEFAULT.max_startups == (10, 30, 100)
    assert DEFAULT.max_startups_per_source <= 20
