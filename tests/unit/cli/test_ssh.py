"""What the client's letters mean: as settings, where ssh -G shows them."""

import subprocess
from pathlib import Path

import pytest

from appliance.cli import client_command
from appliance.cli.ssh import main
from appliance.client.ssh_keywords import SETTINGS
from tests.peers import find_program


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


# What ssh -G says only if it is set.
SET = """
LocalForward 8000 a:80
RemoteForward 9000 b:90
DynamicForward 1080
BindAddress 192.0.2.1
CertificateFile /c
ConnectTimeout 5
ControlPath /p
ControlPersist 5
GlobalKnownHostsFile /g
HostKeyAlias alias
IdentityAgent /a
IdentityFile /i
PermitRemoteOpen a:1
PreferredAuthentications publickey
RemoteCommand true
RevokedHostKeys /r
SendEnv X
SetEnv A=b
UserKnownHostsFile /u /v
Ciphers aes128-ctr
MACs hmac-sha2-256
KexAlgorithms curve25519-sha256
HostKeyAlgorithms ssh-ed25519
PubkeyAcceptedAlgorithms ssh-ed25519
CASignatureAlgorithms ssh-ed25519
ForwardAgent /f
"""


@pytest.mark.parametrize("way", ["ProxyJump a,b", "ProxyCommand nc %h %p"])
def test_a_setting_has_the_name_that_ssh_gives_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, way: str
) -> None:
    config = tmp_path / "config"
    config.write_text(f"{SET}{way}\n")
    theirs = subprocess.run(
        [find_program("ssh"), "-G", "-F", config, "host"],
        capture_output=True, text=True, check=True, timeout=10,
    )  # fmt: skip
    assert main(["-F", str(config), "-G", "host"], "ssh") == 0
    ours = capsys.readouterr().out
    names = [{line.split(" ")[0] for line in text.splitlines()} for text in (ours, theirs.stdout)]
    assert names[0] - names[1] == {"profile", "x11clipboard"}, "OpenSSH has none of these"
    other_way = ({"ProxyJump", "ProxyCommand"} - {way.split()[0]}).pop().lower()
    assert {*SETTINGS, "host"} - names[0] == {"proxy", "hostkeyline", other_way}


@pytest.mark.parametrize(
    ("words", "forwarded", "trusted"),
    [
        ((), "no", "no"),
        (("-X",), "yes", "no"),
        (("-Y",), "yes", "yes"),
        (("-X", "-x"), "no", "no"),
        (("-x", "-Y"), "yes", "yes"),
        (("-Y", "-X"), "yes", "no"),
        (("-X", "-oForwardX11=no"), "yes", "no"),
        (("-X", "-oForwardX11Trusted=yes"), "yes", "yes"),
        (("-Y", "-oForwardX11Trusted=no"), "yes", "yes"),
    ],
)
def test_the_last_letter_of_x11_counts(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], forwarded: str, trusted: str
) -> None:
    shown = described(capsys, *words)
    assert (shown["forwardx11"], shown["forwardx11trusted"]) == (forwarded, trusted)
    assert (shown["forwardx11timeout"], shown["x11clipboard"]) == ("1200", "out")


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
    names = {"configfile", "stdioforward", "identityfilesgiven"}
    assert not names & described(capsys, "-W", "a:1").keys()


def test_a_mistake_of_ours_ends_with_the_status_of_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise AssertionError("a mistake of ours")

    monkeypatch.setattr(client_command, "run", fails)
    assert main(["-F", "none", "host"], "ssh") == 255
    assert "a mistake of ours" in caplog.text
