"""What the client's letters mean: as settings, where ssh -G shows them."""

from pathlib import Path

import pytest

from appliance.cli import client_command
from appliance.cli.ssh import main


def described(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, str]:
    """What -G says."""
    assert main(["-F", "none", "-G", *words, "host"], "ssh") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return dict(line.split(" ", 1) for line in captured.out.splitlines())


def test_the_ways_to_a_host_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert described(capsys, "-J", "a,u@b:2")["proxyjump"] == "a,u@b:2"
    assert described(capsys, "-oProxyCommand=nc %h %p")["proxycommand"] == "nc host 22"
    shown = described(capsys, "-oProxy=http://u:secret@[::1]:3")
    assert shown["proxy"] == "http://u:...@[::1]:3"
    assert described(capsys, "-oProxy=socks5://p:3")["proxy"] == "socks5://p:3"
    assert not {"proxy", "proxyjump", "proxycommand"} & described(capsys).keys()


def test_minus_w_is_no_session(capsys: pytest.CaptureFixture[str]) -> None:
    shown = described(capsys, "-W", "[::1]:22", "-tt", "-s")
    assert (shown["sessiontype"], shown["requesttty"]) == ("none", "no")


@pytest.mark.parametrize(
    ("words", "level"),
    [
        ((), "INFO"),
        (("-v",), "DEBUG1"),
        (("-vv", "-v", "-v"), "DEBUG3"),
        (("-q",), "QUIET"),
        (("-q", "-v"), "DEBUG1"),
        (("-o", "LogLevel=ERROR", "-v"), "DEBUG1"),
        (("-o", "LogLevel=ERROR"), "ERROR"),
    ],
)
def test_v_and_q_are_log_levels(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], level: str
) -> None:
    assert described(capsys, *words)["loglevel"] == level


def test_what_no_keyword_sets_is_not_shown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    names = {"configfile", "hostkeyline", "stdioforward", "identityfilesgiven"}
    assert not names & described(capsys, "-W", "a:1").keys()


def test_a_mistake_of_ours_ends_with_the_status_of_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise AssertionError("a mistake of ours")

    monkeypatch.setattr(client_command, "run", fails)
    assert main(["-F", "none", "host"], "ssh") == 255
    assert "a mistake of ours" in caplog.text
