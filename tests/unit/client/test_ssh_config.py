"""ssh_config: the same settings that the real ``ssh -G`` finds, and clear errors."""

import logging
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.client import ssh_config
from appliance.client.host_options import HostOptions
from appliance.client.ssh_config import Person, check_host, check_user, expand, load, split_words
from appliance.client.ssh_keywords import ALIASES, NOT_YET, SETTINGS, TUNING, TUNNEL_ANY
from appliance.errors import UsageError
from tests.peers import find_program

Load = Callable[..., HostOptions]

PERSON = Person("me", 1234, "/home/me", "machine.example.com")


@pytest.fixture
def config(tmp_path: Path) -> Load:
    """A function that loads the settings for a host from a configuration's text."""

    def load_text(text: str, host: str = "host", *options: str | tuple[str, str]) -> HostOptions:
        path = tmp_path / "config"
        path.write_text(text)
        return load(host, options, str(path), PERSON)

    return load_text


# -- against ssh -G ----------------------------------------------------------------------

CONFIGURATION = r"""
# a comment
IgnoreUnknown Foo*,Bar
FooBar x
Include {folder}/included*  {folder}/missing
Host *.example !bad.example
    HostName = %h.internal
    User "alice"
    SendEnv A B  # a comment behind
    SetEnv X=1 "Y=a b" 'Z="q"'
Host web.example
    IdentityFile {folder}/%h_%r_%p
    IdentityFile "{folder}/a b/${{CULVERT_TEST}}"
    ConnectTimeout 1m30
    RekeyLimit 1G 1h
    Tunnel yes
    TunnelDevice 3:any
Match host *.internal user bob,al* !originalhost foo
    SendEnv C
    SetEnv Z=3
    StrictHostKeyChecking off
Match originalhost=foo.*,FOO.* user *
    ServerAliveCountMax 7
    PreferredAuthentications publickey,password
Match final host *.internal
    Port 99
    ServerAliveInterval 5m
    RemoteCommand echo "%h"  #x %n
    UserKnownHostsFile {folder}/%h {folder}/known\ hosts
    LogLevel debug
Match canonical
    BatchMode yes
    ServerAliveInterval 7
Match user nobody
    Port 1
Match all
    NumberOfPasswordPrompts 2
    User other
    ChallengeResponseAuthentication no
    Compression yes
"""

# keyword of ssh -G -> how it prints our value
PRINTED: dict[str, Callable[[HostOptions], str]] = {
    "hostname": lambda o: o.host_name,
    "user": lambda o: o.user,
    "port": lambda o: str(o.port),
    "connecttimeout": lambda o: str(o.connect_timeout or "none"),
    "serveraliveinterval": lambda o: str(o.server_alive_interval),
    "serveralivecountmax": lambda o: str(o.server_alive_count_max),
    "numberofpasswordprompts": lambda o: str(o.number_of_password_prompts),
    "batchmode": lambda o: "yes" if o.batch_mode else "no",
    "compression": lambda o: "yes" if o.compression else "no",
    "kbdinteractiveauthentication": lambda o: "yes" if o.kbd_interactive_authentication else "no",
    "stricthostkeychecking": lambda o: "false" if o.strict_host_key_checking == "no" else "ask",
    "rekeylimit": lambda o: "{} {}".format(*o.rekey_limit),
    "tunnel": lambda o: "false" if o.tunnel == "no" else o.tunnel,
    "tunneldevice": lambda o: ":".join(
        "any" if unit == TUNNEL_ANY else str(unit) for unit in o.tunnel_device
    ),
    "loglevel": lambda o: o.log_level,
}


@pytest.mark.parametrize(
    "host",
    ["web.example", "bad.example", "FOO.example", "foo.example", "webber", "other", "192.0.2.1"],
)
def test_the_settings_are_those_that_ssh_finds(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CULVERT_TEST", "expanded")
    path = tmp_path / "config"
    path.write_text(CONFIGURATION.format(folder=tmp_path))
    (tmp_path / "included1").write_text("Host web*\n  Port 2201\n")
    (tmp_path / "included2").write_text("Port 2202\n")  # for every host
    result = subprocess.run(
        [find_program("ssh"), "-G", "-F", path, host], capture_output=True, text=True, timeout=10
    )
    assert result.returncode == 0, result.stderr
    theirs: dict[str, list[str]] = {}
    for line in result.stdout.splitlines():
        keyword, _, value = line.partition(" ")
        theirs.setdefault(keyword, []).append(value)
    ours = load(host, (), str(path))
    for keyword, printed in PRINTED.items():
        assert [printed(ours)] == theirs[keyword], keyword
    assert ours.remote_command == theirs.get("remotecommand", [None])[0]
    assert list(ours.send_env) == list(dict.fromkeys(theirs.get("sendenv", [])))
    assert [f"{name}={value}" for name, value in ours.set_env] == theirs.get("setenv", [])
    expected = "publickey,password" if ours.preferred_authentications else None
    assert theirs.get("preferredauthentications", [None]) == [expected]
    if ours.identity_files_given:
        expanded = [f"{tmp_path}/web.example.internal_alice_2201", f"{tmp_path}/a b/expanded"]
        assert list(ours.identity_files) == expanded


# No keyword sets these.
WITHOUT_KEYWORD = {
    "host", "identity_files_given", "config_file", "stdio_forward",
    "idle_timeout", "is_impostor", "jump_command", "x11_refused",
}  # fmt: skip


def test_every_keyword_sets_a_field_and_every_other_field_is_known() -> None:
    set_by_keywords = {row.field for row in SETTINGS.values()}
    assert set(HostOptions.__annotations__) - set_by_keywords == WITHOUT_KEYWORD
    assert set_by_keywords <= set(HostOptions.__annotations__)
    assert set_by_keywords.isdisjoint(WITHOUT_KEYWORD)


def test_a_keyword_is_of_one_kind() -> None:
    kinds = (set(SETTINGS), TUNING, set(NOT_YET), set(ALIASES))
    assert sum(map(len, kinds)) == len(set().union(*kinds))
    assert set(ALIASES.values()) <= set(SETTINGS)


# -- order and scope ---------------------------------------------------------------------


def test_without_any_file_the_defaults_hold() -> None:
    options = load("Host", (), "none", PERSON)
    assert (options.host, options.host_name, options.user, options.port) == (
        "Host",
        "host",
        "me",
        22,
    )
    assert options.identity_files == tuple(
        f"/home/me/.ssh/id_{kind}" for kind in ("rsa", "ecdsa", "ed25519")
    )
    assert not options.identity_files_given
    assert options.user_known_hosts_files[0] == "/home/me/.ssh/known_hosts"
    assert options.strict_host_key_checking == "ask"
    assert options.tunnel_device == (TUNNEL_ANY, TUNNEL_ANY)


def test_the_command_line_comes_first_and_the_first_value_counts(config: Load) -> None:
    text = "Port 1\nPort 2\nIdentityFile /a\nIdentityFile /b\nIdentityFile /a\n"
    options = config(text, "host", "Port=3", ("Port", "4"), "identityfile /c")
    assert options.port == 3
    assert options.identity_files == ("/c", "/a", "/b")


def test_a_value_from_a_letter_is_taken_as_it_is(config: Load) -> None:
    options = config("", "host", ("RemoteCommand", 'echo "a #b'), ("User", "a b"))
    assert options.remote_command == 'echo "a #b'
    assert options.user == "a b"


def test_send_env_takes_back_what_a_minus_names(config: Load) -> None:
    assert config("SendEnv LANG LC_*\nSendEnv -LC_* X\n").send_env == ("LANG", "X")


def test_the_users_file_comes_before_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = Person("me", os.getuid(), str(tmp_path), "machine")
    system = tmp_path / "system"
    system.write_text("Port 1\nUser system\n")
    monkeypatch.setattr(ssh_config, "SYSTEM_FILE", str(system))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text("Port 2\nInclude more\n")
    (tmp_path / ".ssh/config").chmod(0o600)
    (tmp_path / ".ssh/more").write_text("BatchMode yes\n")
    (tmp_path / ".ssh/more").chmod(0o600)
    options = load("host", (), None, person)
    assert (options.port, options.user, options.batch_mode) == (2, "system", True)


@pytest.mark.parametrize("name", ["config", "more"])
def test_a_users_file_that_others_may_write_is_refused_and_named(name: str, tmp_path: Path) -> None:
    person = Person("me", os.getuid(), str(tmp_path), "machine")
    (tmp_path / ".ssh").mkdir()
    for each in ("config", "more"):
        path = tmp_path / ".ssh" / each
        path.write_text("Include more\n" if each == "config" else "")
        path.chmod(0o620 if each == name else 0o600)
    with pytest.raises(UsageError, match=f"{name}: bad owner or permissions"):
        load("host", (), None, person)


@pytest.mark.root
def test_a_users_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text("")
    os.chown(tmp_path / ".ssh/config", 1, 1)
    with pytest.raises(UsageError, match="bad owner or permissions"):
        load("host", (), None, Person("me", 1000, str(tmp_path), "machine"))


def test_files_that_include_each_other_end_in_an_error(config: Load, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="16 files include each other"):
        config(f"Include {tmp_path}/config\n")


def test_a_host_block_in_an_included_file_ends_with_it(config: Load, tmp_path: Path) -> None:
    (tmp_path / "more").write_text("Host other\nPort 1\nHost *\nUser me\n")
    options = config(f"Host host\nInclude {tmp_path}/more\nPort 2\n")
    assert (options.port, options.user) == (2, "me")
    options = config(f"Host other\nInclude {tmp_path}/more\nPort 2\n")
    assert (options.port, options.user) == (22, "me")


# -- values ------------------------------------------------------------------------------

VALUES = [
    ("ConnectTimeout 1h30m5", "connect_timeout", 5405),
    ("ConnectTimeout none", "connect_timeout", None),
    ("RekeyLimit default 1h", "rekey_limit", (0, 3600)),
    ("RekeyLimit 512K none", "rekey_limit", (512 << 10, 0)),
    ("RekeyLimit 16", "rekey_limit", (16, 0)),
    ("EscapeChar ^b", "escape_char", "\x02"),
    ("EscapeChar none", "escape_char", None),
    ("EscapeChar !", "escape_char", "!"),
    ("StrictHostKeyChecking accept-new", "strict_host_key_checking", "accept-new"),
    ("StrictHostKeyChecking off", "strict_host_key_checking", "no"),
    ("PubkeyAuthentication host-bound", "pubkey_authentication", True),
    ("Tunnel ethernet", "tunnel", "ethernet"),
    ("Tunnel YES", "tunnel", "point-to-point"),
    ("TunnelDevice any:4", "tunnel_device", (TUNNEL_ANY, 4)),
    ("TunnelDevice 3", "tunnel_device", (3, TUNNEL_ANY)),
    ("RequestTTY force", "request_tty", "force"),
    ("SessionType none", "session_type", "none"),
    ("RemoteCommand none", "remote_command", None),
    ("UserKnownHostsFile none", "user_known_hosts_files", ()),
    ("IdentityAgent none", "identity_agent", ""),
    ("IdentityAgent SSH_AUTH_SOCK", "identity_agent", None),
    ("IdentityAgent ~/%u", "identity_agent", "/home/me/me"),
    ("IdentityFile none", "identity_files", ()),
    ("IdentityFile ~/.ssh/%L%%", "identity_files", ("/home/me/.ssh/machine%",)),
    ("CertificateFile ~/.ssh/%h-cert.pub", "certificate_files", ("/home/me/.ssh/host-cert.pub",)),
    ("CertificateFile none", "certificate_files", ()),
    ("RevokedHostKeys ~/%u", "revoked_host_keys", "/home/me/me"),
    ("RevokedHostKeys none", "revoked_host_keys", None),
    ("CASignatureAlgorithms -*nistp*", "ca_signature_algorithms", "-*nistp*"),
    ("LogLevel quiet", "log_level", "QUIET"),
    ("profile hardened", "profile", "hardened"),
    ("PubkeyAcceptedKeyTypes +x", "pubkey_accepted_algorithms", "+x"),
    ('"Port" = "2"', "port", 2),
    ("HostName 192.0.2.%h", "host_name", "192.0.2.host"),
]


@pytest.mark.parametrize(("line", "field", "value"), VALUES, ids=[row[0] for row in VALUES])
def test_a_value_becomes_a_typed_field(line: str, field: str, value: object, config: Load) -> None:
    assert getattr(config(line), field) == value


@pytest.mark.parametrize(
    "line",
    [
        "Port 0",
        "Port 65536",
        "Port ²",
        "Port " + "9" * 5000,
        "Port",
        'Port ""',
        "Port 1 2",
        "BatchMode maybe",
        "ConnectTimeout soon",
        "ConnectTimeout " + "9" * 5000,
        "StrictHostKeyChecking perhaps",
        "EscapeChar ab",
        "RekeyLimit 15",
        "RekeyLimit 1T",
        "RekeyLimit 1G 1h 1h",
        "Tunnel maybe",
        "TunnelDevice 3:x",
        "TunnelDevice 2147483647",
        "SetEnv A",
        "SendEnv A=1",
        "Ciphers a b",
        "Ciphers +",
        "UserKnownHostsFile none /a",
        "AddressFamily ipx",
        'IdentityFile "a',
        "IdentityFile %x",
        "IdentityFile a%",
        "IdentityFile ${CULVERT_NOT_SET}",
        "IdentityFile ${HOME",
        "HostName -x",
        "HostName a;b",
        "User $(x",
        "Match",
        "Match host",
        "Match all host x",
        "Match nonsense x",
        "Match exec true",
        "Match localnetwork 192.0.2.0/24",
        "Host",
        "Bad yes",
        "profile soft",
    ],
)
@pytest.mark.parametrize("source", ["file", "option"])
def test_a_mistake_is_one_line_that_names_where_and_what(
    line: str, source: str, config: Load, tmp_path: Path
) -> None:
    given = (f"# comment\n{line}\n", "host") if source == "file" else ("", "host", line)
    with pytest.raises(UsageError) as caught:
        config(*given)
    text = str(caught.value)
    assert "\n" not in text
    names_place = text.startswith((f"{tmp_path}/config line 2: ", "command line: "))
    names_keyword = text.startswith(("IdentityFile: ", "'-x' is", "'a;b' is", "'$(x' is"))
    assert names_place or names_keyword


def test_the_wording_of_errors(config: Load, tmp_path: Path) -> None:
    for line, text in [
        ("Port x", "Port: expected a port, not 'x'"),
        ("Compresion yes", "Bad configuration option: compresion"),
        ("ProxyUseFdpass yes", "ProxyUseFdpass is not supported"),
        (
            "ProxyJump a:0",
            "ProxyJump: expected [user@]host[:port], more of them behind commas, or none, not "
            "'a:0'",
        ),
        (
            "Proxy proxy:3128",
            "Proxy: expected http://[user:password@]host:port or socks5://[user:password@]host"
            ":port",
        ),
        ("Tunnel x", "Tunnel: expected no, point-to-point, ethernet or yes, not 'x'"),
    ]:
        with pytest.raises(UsageError) as caught:
            config(line)
        assert str(caught.value) == f"{tmp_path}/config line 1: {text}"


@pytest.mark.parametrize(
    "line",
    [
        "X11Security yes",
    ],
)
def test_what_is_not_supported_is_an_error_only_where_it_would_apply(
    line: str, config: Load
) -> None:
    with pytest.raises(UsageError, match="is not supported"):
        config(line)
    config(f"Host other\n{line}\n")
    keyword = line.split()[0]
    config(f"{keyword} no\n{line}\n")
    config(line, "host", f"{keyword}=none")


# -- the way to the host -----------------------------------------------------------------


def test_the_first_way_to_the_host_counts(config: Load) -> None:
    ways = ("Proxy http://p:1", "ProxyJump a,u@b:22", "ProxyCommand nc %h %p")
    for first in ways:
        for second in ways:
            options = config(f"{first}\n{second}\n")
            found = (options.proxy, options.proxy_jump, options.proxy_command)
            assert [bool(way) for way in found] == [way == first for way in ways]
            options = config(f"{first.split()[0]} none\n{second}\n")
            assert (options.proxy, options.proxy_jump, options.proxy_command) == (None, (), None)


def test_tokens_of_a_proxy_command_are_those_of_openssh(config: Load) -> None:
    text = "Port 7\nUser u\nHostName h.example\nProxyCommand  a '%h' %p %r %n 100%% # x \n"
    assert config(text).proxy_command == "a 'h.example' 7 u host 100% # x"
    for letter in "LCdiklux":
        with pytest.raises(UsageError, match=f"ProxyCommand: %{letter} is not known"):
            config(f"ProxyCommand nc %{letter}")


def test_jumps_are_kept_as_they_were_written(config: Load) -> None:
    assert config("ProxyJump a,u@b:22,[::1]:5").proxy_jump == ("a", "u@b:22", "[::1]:5")
    options = config("ProxyJump a", "host", ("ProxyJump", "b"))
    assert options.proxy_jump == ("b",)


@pytest.mark.parametrize(
    "text",
    [
        "Proxy http://u:secret@host",
        "Proxy http://u:secret@host:1 http://u:secret@host:1",
        "Proxy ftp://u:secret@host:1",
    ],
)
def test_a_proxys_password_is_in_no_error(config: Load, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        config(text)
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(config("Proxy http://u:secret@host:1").proxy)


def test_what_only_tunes_is_accepted_with_a_debug_line(
    config: Load, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        config("IPQoS lowdelay throughput\nGSSAPIAuthentication yes\nHost x\nIPQoS none\n")
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "ipqos has no effect here",
        "gssapiauthentication has no effect here",
    ]


def test_the_systems_file_of_debian_is_accepted(config: Load) -> None:
    text = """
Include /etc/ssh/ssh_config.d/*.conf
Host *
#   ForwardAgent no
    SendEnv LANG LC_* COLORTERM NO_COLOR
    HashKnownHosts yes
    GSSAPIAuthentication yes
"""
    assert config(text).hash_known_hosts


# -- algorithms --------------------------------------------------------------------------

DEFAULT = ("a1", "a2", "b1")
SUPPORTED = ("a1", "a2", "a3", "b1")


@pytest.mark.parametrize(
    ("written", "result"),
    [
        (None, "a1 a2 b1"),
        ("a3,a1", "a3 a1"),
        ("a3,nonsense", "a3"),
        ("a*", "a1 a2 a3"),
        ("+a3", "a1 a2 b1 a3"),
        ("+a3,a1", "a1 a2 b1 a3"),
        ("-a*", "b1"),
        ("^b1,a3", "b1 a3 a1 a2"),
    ],
)
def test_a_list_of_algorithms_adds_removes_and_moves(written: str | None, result: str) -> None:
    options = HostOptions()
    options.ciphers = written
    assert options.algorithms("ciphers", DEFAULT, SUPPORTED) == tuple(result.split())


@pytest.mark.parametrize("written", ["nonsense", "-*", "-a*,b*"])
def test_a_list_that_leaves_nothing_is_an_error_that_names_what_there_is(written: str) -> None:
    options = HostOptions()
    options.macs = written
    with pytest.raises(
        UsageError, match=f"MACs={written} leaves nothing; there are: a1,a2".replace("*", r"\*")
    ):
        options.algorithms("macs", DEFAULT, SUPPORTED)


# -- hostile names -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["", "-oProxyCommand=x", "a b", "a\nb", "a;b", "$(a)", "`a`", "a|b", "a'b", "a\x1bb", "a\\b"],
)
def test_a_host_name_with_shell_characters_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_host(name)
    with pytest.raises(UsageError):
        load(name, (), "none", PERSON)


@pytest.mark.parametrize("name", ["", "-l", "a;b", "a\nb", "`a`", "a'b", "a -b", "a\\", "a|b"])
def test_a_user_name_with_shell_characters_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_user(name)


@pytest.mark.parametrize("name", ["host.example", "192.0.2.1", "fe80::1%eth0", "a_b", "ö.example"])
def test_ordinary_host_names_are_accepted(name: str) -> None:
    assert load(name, (), "none", PERSON).host_name == name


@pytest.mark.parametrize(
    ("host", "user", "file"),
    [
        ("../../etc/shadow", "me", "/keys/%h"),
        ("host", "../root", "/keys/%r"),
        ("host", "a b", "/keys/%r"),
        ("a/b", "me", "/keys/%n"),
        ("..", "me", "/keys/%k"),
    ],
)
def test_a_user_or_host_name_leads_no_path_elsewhere(host: str, user: str, file: str) -> None:
    for keyword in ("IdentityFile", "UserKnownHostsFile", "IdentityAgent"):
        with pytest.raises(UsageError, match="not for a file"):
            load(host, [("User", user), (keyword, file)], "none", PERSON)


def test_a_percent_sign_in_a_name_is_not_expanded_again() -> None:
    options = load("a%h", [("IdentityFile", "/keys/%h")], "none", PERSON)
    assert options.identity_files == ("/keys/a%h",)


@pytest.mark.parametrize(
    ("host", "user"),
    [
        ("host", "a b"),
        ("host", "$HOME"),
        ("host", "x$IFS-oProxyCommand=/tmp/evil"),
        ("host", "a\\b"),
        ("host", "*"),
        ("host", "a?"),
        ("host", "[a-z]"),
        ("#host", "me"),
        ("!host", "me"),
        ("~root", "me"),
        ("h*st", "me"),
    ],
)
def test_a_user_or_host_name_is_one_word_of_a_command_or_none(host: str, user: str) -> None:
    """A name that is good for a login may still mean something to a shell."""
    letter = "r" if host == "host" else "h"
    given = [("User", user)]
    assert load(host, [*given, ("ProxyCommand", "nc proxy %p")], "none", PERSON).user == user
    for keyword in ("ProxyCommand", "RemoteCommand"):
        with pytest.raises(UsageError, match=f"{keyword}: %{letter} stands for .* one word"):
            load(host, [*given, (keyword, f"nc %{letter} %p")], "none", PERSON)


# -- words -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a  b\tc", ["a", "b", "c"]),
        ("a #b c", ["a"]),
        ("a#b c", ["a#b", "c"]),
        ("'a b' \"c d\"", ["a b", "c d"]),
        ("a'b c'd", ["ab cd"]),
        ("\"a'b\" 'a\"b'", ["a'b", 'a"b']),
        (r"a\ b \"c \'d \\e \f", ["a b", '"c', "'d", r"\e", r"\f"]),
        (r'"a\ b"', [r"a\ b"]),
        (r'"a\"b"', ['a"b']),
        ("''", [""]),
        ("", []),
    ],
)
def test_words_are_separated_as_ssh_separates_them(text: str, words: list[str]) -> None:
    assert split_words(text) == words


@given(st.text("ab '\"\\#\t", max_size=12))
def test_no_text_makes_the_separation_raise_anything_but_a_value_error(text: str) -> None:
    try:
        split_words(text)
    except ValueError:
        assert "'" in text or '"' in text


@given(st.text("%ha$ {}", max_size=10))
def test_no_text_makes_the_expansion_raise_anything_but_a_usage_error(text: str) -> None:
    try:
        assert "%" in text or expand(text, {"h": "x"}, "Keyword") == text
        expand(text, {"h": "x"}, "Keyword")
    except UsageError:
        assert "%" in text


@given(
    st.lists(
        st.sampled_from(
            [
                "Host",
                "Match",
                "host",
                "all",
                "final",
                "Port",
                "22",
                "=",
                '"',
                "*",
                "!",
                ",",
                "\n",
                "Include",
                "IdentityFile",
                "%h",
                "User",
                "exec",
                "x",
                "SetEnv",
                "A=b",
                "\x1b",
            ]
        ),
        max_size=12,
    )
)
def test_no_text_makes_an_option_raise_anything_but_a_usage_error(parts: list[str]) -> None:
    for text in (" ".join(parts), "".join(parts)):
        try:
            load("host", [line for line in text.split("\n") if line.strip()], "none", PERSON)
        except UsageError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
