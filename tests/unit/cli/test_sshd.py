"""Dropbear's options are words for the settings of the server's file."""

from pathlib import Path

import pytest

from appliance.cli.options import parse
from appliance.cli.sshd import SPEC, _settings
from appliance.config.server import ServerConfig


def settings(*words: str) -> ServerConfig:
    options = parse(words, SPEC)
    return _settings(options, options.value("config"))


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        (["-j"], "remote"),
        (["-k"], "local"),
        (["-j", "-k"], "no"),
        (["-kj"], "no"),
        (["-jj"], "remote"),
        ([], "yes"),
    ],
)
def test_j_and_k_each_take_a_direction_of_port_forwarding_away(
    words: list[str], allowed: str
) -> None:
    assert settings(*words).allow_tcp_forwarding == allowed


@pytest.mark.parametrize(
    ("said", "words", "allowed"),
    [("no", ["-j"], "no"), ("local", ["-j"], "no"), ("remote", ["-j"], "remote")],
)
def test_j_takes_away_from_what_the_file_allows(
    tmp_path: Path, said: str, words: list[str], allowed: str
) -> None:
    path = tmp_path / "sshd.toml"
    path.write_text(f"allow_tcp_forwarding = '{said}'")
    assert settings("--config", str(path), *words).allow_tcp_forwarding == allowed


def test_a_lets_the_client_say_who_reaches_its_ports() -> None:
    assert settings("-a").gateway_ports == "clientspecified"
    assert settings().gateway_ports == "no"


def test_each_group_of_g_may_log_in() -> None:
    assert settings("-G", "staff", "-G", "backup").allow_groups == ("staff", "backup")


def test_k_asks_a_silent_client_and_i_ends_an_idle_one() -> None:
    config = settings("-K", "7", "-I", "9")
    assert (config.client_alive_interval, config.idle_timeout) == (7, 9)


def test_an_option_outweighs_the_tables_of_the_file_as_well(tmp_path: Path) -> None:
    path = tmp_path / "sshd.toml"
    path.write_text("[[match]]\nuser = 'root'\npermit_root_login = 'yes'\npermit_tty = false\n")
    (match,) = settings("--config", str(path), "-w").match
    assert match.given == {"user", "permit_tty"}
