"""The server's settings in TOML: each mistake names the file, the key and what is wanted."""

from dataclasses import fields
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from appliance.config.server import (
    CRITERIA,
    ClientNetwork,
    ConnectionConfig,
    Match,
    ServerConfig,
    Tunnel,
    load_server_config,
)
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
        assert f": {name}" in message
        assert ": expected " in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_auth_tries = 0", "expected 1 to 100"),
        ("login_grace_time = -1", "expected 0 to 86400"),
        ("receive_window = 1", "expected 32768 to 67108864"),
        ("rekey_bytes = 1", "expected 1048576 to"),
        ("sftp_umask = '8'", "sftp_umask: expected an octal number such as 027, not '8'"),
        ("sftp_umask = '1777'", "sftp_umask: expected an octal number"),
        ("sftp_log = 'loud'", "expected one of quiet, error, info"),
        ("sftp_start_directory = '%h'", "expected a path with no tokens but %d, %u and %%"),
        ("chroot_directory = 'srv'", "chroot_directory: expected an absolute path"),
        ("chroot_directory = '/srv/%d'", "expected an absolute path with no tokens but %u, %h"),
        ("permit_tunnel = 'perhaps'", "expected one of no, point-to-point, ethernet, yes"),
        ("permit_tunnel = true", "expected one of"),
        (
            "permit_root_login = 'without-password'",
            "expected one of yes, prohibit-password, forced-commands-only, no",
        ),
        ("listen = '22'", "expected a list of strings"),
        ("listen = [22]", "expected a list of strings"),
        ("max_startups = [10, 30]", "expected a list of 3 whole numbers"),
        ("max_startups = [10, 30, 9]", "expected start, percent and full such as [10, 30, 100]"),
        ("max_startups = [10, 0, 100]", "expected start, percent and full"),
        ("per_source_net_block_size = [33, 64]", "expected bits of IPv4 and of IPv6"),
        ("max_sessions = -1", "expected 0 to 1000"),
        ("x11_display_offset = 58536", "expected 0 to 58535"),
        ("x11_forwarding = 'yes'", "expected true or false"),
        ("client_alive_count_max = 0", "expected 1 to 1000"),
        ("max_startups = [10, 30, '100']", "expected a list of 3 whole numbers"),
        ("subsystems = { sftp = 1 }", "expected a table of strings"),
        ("client_alive_interval = true", "expected a whole number"),
        ("password_authentication = 1", "expected true or false"),
        ("client_alive_interval = 1.0", "expected a whole number"),
        ("allow_tcp_forwarding = true", "expected one of yes, no, local, remote"),
        ("allow_stream_local_forwarding = 'all'", "expected one of yes, no, local, remote"),
        ("gateway_ports = false", "expected one of no, yes, clientspecified"),
        ("permit_open = ['a:1', 'a']", "permit_open[1]: expected host:port, '*' for any"),
        ("permit_listen = ['*:65536']", "permit_listen[0]: expected host:port, '*' for any"),
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


@pytest.mark.parametrize(
    "text",
    [
        *("listen = [", "a = 1\na = 2", "= 1", "\x00", "listen"),
        "a = " + "1" * 5000,
        "a = " + "[" * 5000,
    ],
)
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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("listen = 0x" + "f" * 5000, "listen: expected a list of strings, not this"),
        ("subsystems" + ".a" * 5000 + " = 1", "subsystems: expected a table of strings, not a ta"),
        ("listen = '" + "x" * 5000 + "'", "xxx..."),
        ('"a\\nb" = 1', "there is no key 'a\\nb'"),
    ],
    ids=["number", "nested", "long", "key"],
)
def test_a_value_is_shown_on_one_line_of_reasonable_length(
    tmp_path: Path, text: str, words: str
) -> None:
    message = refusal(tmp_path, text)
    assert words in message
    assert len(message) < 300


def test_what_a_file_does_not_say_stays_as_it_was(tmp_path: Path) -> None:
    defaults = ServerConfig(client_alive_interval=7)
    assert load(tmp_path, "", defaults) == defaults
    text = "listen = ['127.0.0.1:2222', '[::1]:22']\nmax_startups = [1, 2, 3]\nprofile = 'hardened'"
    config = load(tmp_path, text, defaults)
    assert config.listen == ("127.0.0.1:2222", "[::1]:22")
    assert config.max_startups == (1, 2, 3)
    assert (config.client_alive_interval, config.profile) == (7, "hardened")


def test_tunnels_empty_passwords_and_old_algorithms_are_off_by_default() -> None:
    assert DEFAULT.permit_tunnel == "no"
    assert not DEFAULT.permit_empty_passwords
    assert not DEFAULT.pass_environment
    assert DEFAULT.login_grace_time > 0
    assert DEFAULT.max_startups == (10, 30, 100)
    assert DEFAULT.per_source_max_startups <= 20


@pytest.mark.parametrize("key", ["allow_users", "deny_users"])
@pytest.mark.parametrize(
    "pattern",
    ["", "!anna", "anna,ben", "anna@", "@192.0.2.1", "an na", "anna@192.0.2.1/24", "anna@a/b"],
)
def test_a_pattern_of_users_that_would_match_nobody_is_refused(
    tmp_path: Path, key: str, pattern: str
) -> None:
    message = refusal(tmp_path, f"{key} = ['ben', '{pattern}']")
    assert f"sshd.toml: {key}[1]: expected a" in message


@pytest.mark.parametrize("pattern", ["", "!staff", "staff,users"])
def test_a_pattern_of_groups_that_would_match_nobody_is_refused(
    tmp_path: Path, pattern: str
) -> None:
    message = refusal(tmp_path, f"deny_groups = ['{pattern}']")
    assert "deny_groups[0]: expected a pattern of a group" in message


# -- match -----------------------------------------------------------------------------

OF_A_CONNECTION = [field.name for field in fields(ConnectionConfig)]


@pytest.mark.parametrize("name", [*OF_A_CONNECTION, *CRITERIA])
def test_every_key_of_a_match_with_a_wrong_value_is_named(tmp_path: Path, name: str) -> None:
    kind = next(field.type for field in fields(Match) if field.name == name)
    for value in (WRONG.get(kind, "7.5"), "{ a = 1 }", "[[]]", "2020-01-01"):  # type: ignore[arg-type]
        message = refusal(tmp_path, f"[[match]]\n{name} = {value}")
        assert f": match number 1: {name}" in message
        assert ": expected " in message


@pytest.mark.parametrize(
    "name",
    [*sorted({field.name for field in fields(ServerConfig)} - {*OF_A_CONNECTION}), "given"],
)
def test_what_concerns_the_whole_server_stands_in_no_match(tmp_path: Path, name: str) -> None:
    message = refusal(tmp_path, f"[[match]]\nuser = 'anna'\n{name} = 1")
    assert f"match number 1: there is no key '{name}'" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it would cover every connection: expected one of user, group, address"),
        ("permit_tty = false", "it would cover every connection"),
        ("user = ''", "it would cover every connection"),
        ("user = 'a,'", "user: expected patterns with commas, not 'a,'"),
        ("user = '!'", "user: expected patterns with commas"),
        ("address = '192.0.2.1/24'", "address: expected an address, a pattern of one or a network"),
        ("local_address = 'a/b'", "local_address: expected an address, a pattern of one or a net"),
        ("local_port = 'ssh'", "local_port: expected a port or a pattern of one, not 'ssh'"),
        ("user = 'a'\nmax_sessions = -1", "max_sessions: expected 0 to 1000, not -1"),
        ("user = 'a'\npermit_open = ['a']", "permit_open[0]: expected host:port"),
        ("usr = 'a'", "there is no key 'usr'; did you mean 'user'?"),
    ],
)
def test_a_match_that_makes_no_sense_is_refused(tmp_path: Path, text: str, words: str) -> None:
    message = refusal(tmp_path, f"[[match]]\n{text}")
    assert f": match number 1: {words}" in message


def test_a_match_knows_which_keys_it_was_given(tmp_path: Path) -> None:
    text = "[[match]]\nuser = 'anna'\npermit_tty = true\n[[match]]\ngroup = '!a,*'"
    first, second = load(tmp_path, text).match
    assert first == Match(user="anna", given=frozenset({"user", "permit_tty"}))
    assert second.given == {"group"}


# -- tunnels ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", [field.name for field in fields(Tunnel)])
def test_every_key_of_a_tunnel_with_a_wrong_value_is_named(tmp_path: Path, name: str) -> None:
    kind = next(field.type for field in fields(Tunnel) if field.name == name)
    for value in (WRONG.get(kind, "7.5"), "[[]]", "2020-01-01"):  # type: ignore[arg-type]
        message = refusal(tmp_path, f"[[tunnel]]\n{name} = {value}")
        assert f": tunnel number 1: {name}" in message
        assert ": expected " in message


@pytest.mark.parametrize("name", [field.name for field in fields(ClientNetwork)])
def test_every_key_of_a_client_with_a_wrong_value_is_named(tmp_path: Path, name: str) -> None:
    kind = next(field.type for field in fields(ClientNetwork) if field.name == name)
    for value in (WRONG.get(kind, "7.5"), "{ a = 1 }", "[[]]", "2020-01-01"):  # type: ignore[arg-type]
        text = f"[[tunnel]]\ndevice = 'tun0'\n[tunnel.client]\n{name} = {value}"
        message = refusal(tmp_path, text)
        assert f": tunnel 'tun0': client.{name}" in message
        assert ": expected " in message


FINGERPRINT = "SHA256:" + "a" * 43


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "number 1: device: expected a definite device such as tun0, by which clients ask"),
        ("mode = 'ethernet'", "device: expected a definite device such as tap0"),
        ("device = 'tap0'", "'tap0': device: expected 'any' or tun0 to tun999999 for mode point-"),
        ("device = 'tun0'\nname = 'a'", "'a': there is no key 'name'"),
        ("device = 'tun0'\nkey = 'SHA256:short'", "'tun0': key: expected a public key or SHA256:"),
        ("device = 'tun0'\nkey = 'ssh-ed25519'", "key: expected a public key"),
        ("device = 'tun0'\nkey = \"a b\\u0007\"", "key: expected one line"),
        ("device = 'tun0'\nuser = 'a@b'", "user: expected the name of a user, not 'a@b'"),
        ("device = 'tun0'\nuser = '-a'", "user: expected the name of a user, not '-a'"),
        ("device = 'tun0'\nmasquerade = 'both'", "masquerade: only what is forwarded"),
        (
            "device = 'tun0'\nany_source = true\n[[tunnel]]\ndevice = 'tun0'\nany_source = true",
            "'tun0': device: tun0 is given twice",
        ),
        ("device = 'tun0'", "'tun0': addresses: nothing says which addresses are the other end's"),
        (
            "device = 'tun0'\n[tunnel.client]\nroutes = ['10.0.0.0/8']",
            "'tun0': client.routes: the client needs an address to use them: add addresses",
        ),
        (
            "device = 'tun0'\n[tunnel.client]\naddresses = ['10.0.0.1/8', '10.0.0.1/24']",
            "'tun0': client.addresses[1]: 10.0.0.1 is given twice",
        ),
        ("device = 'tun0'\n[tunnel.client]\nmtu = 1", "client.mtu: expected 576 to 65535, not 1"),
        (
            "device = 'tun0'\n[tunnel.client]\nmtuu = 1",
            "'tun0': client: there is no key 'mtuu'; did you mean 'mtu'?",
        ),
        (
            "device = 'tun0'\n[tunnel.client]\ndns = ['10.0.0.1']\ndomains = [\"a\\u0000\"]",
            "client.domains: expected one line",
        ),
    ],
)
def test_a_tunnel_that_makes_no_sense_is_refused(tmp_path: Path, text: str, words: str) -> None:
    assert words in refusal(tmp_path, f"[[tunnel]]\n{text}")


def test_a_table_in_single_brackets_is_told_of_double_ones(tmp_path: Path) -> None:
    message = refusal(tmp_path, "[tunnel]\ndevice = 'tun0'")
    assert message.endswith("tunnel: expected tables in double brackets, not a table")


def test_a_tunnel_is_read_with_its_client(tmp_path: Path) -> None:
    text = f"""
        [[tunnel]]
        device = "tun3"
        key = "{FINGERPRINT}"
        user = "anna"
        addresses = ["10.9.0.1/30"]
        [tunnel.client]
        addresses = ["10.9.0.2/30", "fd00::2/64"]
        peer = ["10.9.0.1"]
        routes = ["192.168.0.0/16"]
        dns = ["10.9.0.1"]
        domains = ["example.org"]
        [[tunnel]]
        device = "tap3"
        mode = "ethernet"
        key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA anna at home"
    """
    first, second = load(tmp_path, text).tunnel
    assert (first.device, first.key, first.user) == ("tun3", FINGERPRINT, "anna")
    assert first.addresses == (ip_interface("10.9.0.1/30"),)
    assert first.client == ClientNetwork(
        addresses=(ip_interface("10.9.0.2/30"), ip_interface("fd00::2/64")),
        peer=(ip_address("10.9.0.1"),),
        routes=(ip_network("192.168.0.0/16"),),
        dns=(ip_address("10.9.0.1"),),
        domains=("example.org",),
    )
    assert (second.mode, second.client) == ("ethernet", ClientNetwork())
    assert load(tmp_path, "").tunnel == ()
