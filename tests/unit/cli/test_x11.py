"""What the words of culvert x11 are to ssh."""

import pytest

from appliance.cli import client_command, ssh, x11
from appliance.cli.client_command import CommandLine
from appliance.client.host_options import HostOptions


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[HostOptions, str]]:
    """The settings and the command of each session that was to be run."""
    calls: list[tuple[HostOptions, str]] = []

    def run(settings: HostOptions, line: CommandLine) -> int:
        calls.append((settings, line.command))
        return 7

    monkeypatch.setattr(client_command, "run", run)
    monkeypatch.setenv("DISPLAY", ":1")
    monkeypatch.setenv("XAUTHORITY", "/nonexistent")
    return calls


def call(*words: str) -> int:
    return x11.main(["-F", "none", *words], "x11")


def test_the_first_hosts_are_jump_hosts_and_the_last_one_runs_the_command(
    called: list[tuple[HostOptions, str]],
) -> None:
    assert call("a", "u@b:2", "v@[2001:db8::1]:3", "--", "xterm", "-e", "top -d 1") == 7
    settings, command = called[0]
    assert settings.proxy_jump == ("a", "u@b:2")
    assert (settings.host_name, settings.user, settings.port) == ("2001:db8::1", "v", 3)
    assert command == "xterm -e top -d 1"
    assert (settings.forward_x11, settings.forward_x11_trusted) == (True, False)
    assert settings.x11_refused == "fail"


@pytest.mark.parametrize(
    ("word", "user", "host", "port"),
    [
        ("u@h:1", "u", "h", 1),
        ("h:1", None, "h", 1),
        ("u@h", "u", "h", 22),
        ("[::1]:1", None, "::1", 1),
        ("u@[::1]", "u", "::1", 22),
        ("::1", None, "::1", 22),
        ("ssh://u@h:1", "u", "h", 1),
    ],
)
def test_the_last_host_is_written_as_jump_hosts_are(
    word: str, user: str | None, host: str, port: int, called: list[tuple[HostOptions, str]]
) -> None:
    assert call("-p", "22", "a", word, "--") == 7
    settings = called[0][0]
    assert (settings.host_name, settings.port) == (host, port)
    assert user in (None, settings.user)


def test_one_host_needs_no_command_and_has_no_jump_host(
    called: list[tuple[HostOptions, str]],
) -> None:
    assert call("pi@board") == 7
    settings, command = called[0]
    assert (settings.host, settings.user, settings.port, command) == ("board", "pi", 22, "")
    assert settings.proxy_jump == ()


def test_a_shell_at_the_end_of_several_hops_takes_the_dashes(
    called: list[tuple[HostOptions, str]],
) -> None:
    assert call("a", "b", "--") == 7
    assert called[0][1] == ""


def test_options_stand_before_and_between_the_hosts(
    called: list[tuple[HostOptions, str]],
) -> None:
    assert call("-Y", "a", "-p", "2222", "b", "-oCompression=yes", "--", "-x", "-Y") == 7
    settings, command = called[0]
    assert (settings.forward_x11, settings.forward_x11_trusted) == (True, True)
    assert (settings.host, settings.port, settings.compression) == ("b", 2222, True)
    assert command == "-x -Y"


def test_the_help_text_alone_says_how_it_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    shown = capsys.readouterr().out
    assert "HOST... -- [COMMAND [ARG...]]" in shown
    assert "--check" in shown


def test_every_letter_but_check_is_one_of_sshs() -> None:
    ours = {row.name for row in x11.SPEC} - {"check"}
    assert ours < {row.name for row in ssh.SPEC}
