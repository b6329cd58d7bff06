"""authorized_keys: what a line grants, and that no line grants more than its author meant."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.crypto.authorized_keys import (
    LOG_LIMIT,
    Entry,
    parse,
    parse_principals,
)
from appliance.crypto.keys import SK_ED25519, generate
from appliance.crypto.permissions import TUNNEL_ANY, Permissions
from appliance.crypto.sources import from_matches
from tests.security_keys import Token
from tests.unit.crypto.conftest import KINDS

KEY = generate("ssh-ed25519").public
LINE = KEY.line("somebody@somewhere")


class Log(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)


@pytest.fixture
def log() -> Log:
    return Log()


def permissions(options: str) -> Permissions:
    log = Log()
    (entry,) = parse(f"{options} {LINE}\n".encode(), log)
    assert not log
    return entry.options


def refused(options: str) -> str:
    """The one line of the log about a line with such options."""
    log = Log()
    assert list(parse(f"{options} {LINE}\n".encode(), log)) == []
    (text,) = log
    return text


# -- lines -------------------------------------------------------------------------------


def test_a_line_without_options_permits_everything(log: Log) -> None:
    assert list(parse(LINE.encode(), log)) == [Entry(KEY, Permissions(), "somebody@somewhere", 1)]


def test_keys_of_every_type_are_read(openssh_keys: dict[str, Path], log: Log) -> None:
    data = b"".join(Path(f"{path}.pub").read_bytes() for path in openssh_keys.values())
    assert [entry.key.key_type for entry in parse(data, log)] == list(KINDS)


def test_comments_blank_lines_tabs_and_windows_line_ends_are_passed_over(log: Log) -> None:
    data = f"# {LINE}\n\n   \t\n \t{LINE}\r\n\trestrict\t{KEY.line()}\r\n".encode()
    entries = list(parse(data, log))
    assert [entry.line_number for entry in entries] == [4, 5]
    assert entries[0].comment == "somebody@somewhere"
    assert not entries[1].options.pty
    assert not log


def test_one_line_is_one_line_however_long(log: Log) -> None:
    """Dropbear 2026.92: the end of a long line was read as a line of its own."""
    for length in (1000, 4096, 8192, 65536, 500_000):
        hidden = KEY.line()
        line = f'command="{"x" * length} {hidden}" {LINE} {"y" * length} {hidden}'
        (entry,) = parse(line.encode(), log)
        assert entry.options.command == f"{'x' * length} {hidden}"
        assert list(parse(f"# {'x' * length} {hidden}".encode(), log)) == []
    assert not log


def test_a_broken_line_refuses_its_key_and_no_other(log: Log) -> None:
    data = f"ssh-ed25519 AAAA\n{LINE}\nssh-ed25519\nssh-rsa {LINE.split()[1]}\n".encode()
    assert [entry.line_number for entry in parse(data, log)] == [2]
    assert [text.partition(":")[0] for text in log] == ["line 1", "line 3", "line 4"]


def test_a_key_of_a_type_that_is_not_supported_is_named_in_the_log(log: Log) -> None:
    assert list(parse(b"ssh-dss AAAAB3NzaC1kc3M= old\n", log)) == []
    assert log == ["line 1: keys of type 'ssh-dss' are not supported, so this key is refused"]


def test_a_file_full_of_mistakes_does_not_flood_the_log(log: Log) -> None:
    list(parse(b"nonsense\n" * 1000, log))
    assert len(log) == LOG_LIMIT + 1
    assert log[-1].startswith("980 more")


def test_what_the_log_says_of_a_line_holds_none_of_its_control_characters() -> None:
    text = refused("\x1b[2Jevil\x07option" + "x" * 500)
    assert text.isprintable()
    assert len(text) < 120


@given(
    st.lists(
        st.sampled_from(
            [
                "restrict",
                "pty",
                'command="',
                '"',
                "\\",
                '\\"',
                ",",
                "=",
                " ",
                "\t",
                "from=",
                "\n",
                LINE,
                "#",
                "ssh-ed25519",
                "tunnel=",
                "environment=",
                "\0",
                "é",
                "expiry-time=",
            ]
        ),
        max_size=12,
    )
)
def test_no_text_makes_the_parser_raise(parts: list[str]) -> None:
    for entry in parse("".join(parts).encode(), lambda text: None):
        assert entry.key == KEY


@given(st.binary(max_size=100))
def test_no_bytes_make_the_parser_raise_or_let_anybody_in(data: bytes) -> None:
    assert list(parse(data, lambda text: None)) == []


# -- options -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "field"),
    [
        ("no-pty", "pty"),
        ("no-port-forwarding", "port_forwarding"),
        ("no-agent-forwarding", "agent_forwarding"),
        ("no-X11-forwarding", "x11_forwarding"),
        ("no-user-rc", "user_rc"),
    ],
)
def test_a_flag_takes_away_and_its_opposite_gives_back(option: str, field: str) -> None:
    positive = option.removeprefix("no-")
    assert getattr(permissions(option), field) is False
    assert getattr(permissions(option.upper()), field) is False
    assert getattr(permissions(f"restrict,{positive}"), field) is True
    assert getattr(permissions(f"{positive},restrict"), field) is False
    assert getattr(permissions(f"{option},{positive}"), field) is True


def test_restrict_takes_everything_away() -> None:
    restricted = permissions("restrict")
    flags = [value for value in restricted[:8] if isinstance(value, bool)]
    assert flags == [False] * 6
    assert restricted.tunnel_allowed is False


def test_restrict_and_disabled_forwarding_cover_tun_and_only_tunnel_n_reopens_it() -> None:
    assert permissions("pty").tunnel_allowed
    for options in ("restrict", "no-port-forwarding", "restrict,port-forwarding"):
        assert permissions(options).tunnel_allowed is False
    for options in ('restrict,tunnel="3"', 'tunnel="3",restrict', 'no-port-forwarding,tunnel="3"'):
        reopened = permissions(options)
        assert reopened.tunnel_allowed
        assert reopened.tunnel == 3
    assert permissions('tunnel="any"').tunnel == TUNNEL_ANY
    assert permissions('tunnel="0"').tunnel == 0


@pytest.mark.parametrize("unit", ["", "-1", "3x", "0x3", " 3", "2147483646", "9" * 5000, "²", "no"])
def test_a_tunnel_that_is_not_the_number_of_a_device_is_refused(unit: str) -> None:
    assert "'tunnel'" in refused(f'tunnel="{unit}"')


@pytest.mark.parametrize(
    "option",
    [
        "permitopen",
        'cert-authority="yes"',
        "nonsense",
        'nonsense="a"',
        "no-restrict",
        "no-touch-required-",
        "command",
        "from",
        'pty="yes"',
    ],
)
def test_an_unknown_option_refuses_that_key_and_says_so_in_the_log(option: str) -> None:
    name = option.partition("=")[0]
    for options in (option, f"pty,{option}", f"{option},pty"):
        text = refused(options)
        assert text == f"line 1: option '{name}' is not supported, so this key is refused"


@pytest.mark.parametrize(
    "options",
    [
        "pty,",
        ",pty",
        "pty,,restrict",
        "command=ls",
        'command="ls',
        'command="ls"x',
        'command="ls"pty',
        'command="a",command="b"',
        'from="a",from="b"',
        'principals="a",principals="b"',
        '"pty"',
        'environment="1+1=2"',
        'environment="=2"',
        'environment="A"',
    ],
)
def test_a_mistake_in_the_options_refuses_the_key(options: str) -> None:
    assert refused(options).startswith("line 1: ")


def test_a_command_may_hold_blanks_commas_and_escaped_quotes() -> None:
    assert permissions(r'command="echo \"a, b\" #c" ').command == 'echo "a, b" #c'
    assert permissions(r'command="a\\b"').command == r"a\\b"
    assert permissions('command=""').command == ""


def test_a_command_keeps_bytes_of_any_encoding(log: Log) -> None:
    (entry,) = parse(b'command="caf\xe9" ' + LINE.encode(), log)
    assert entry.options.command is not None
    assert entry.options.command.encode(errors="surrogateescape") == b"caf\xe9"


def test_of_two_values_of_a_variable_the_first_counts() -> None:
    options = permissions('environment="A=1",environment="B_2=x=y",environment="A=3"')
    assert options.environment == (("A", "1"), ("B_2", "x=y"))


def test_touch_and_verification_of_a_security_key_are_the_lines_business(log: Log) -> None:
    assert permissions("pty").touch_required
    assert not permissions("no-touch-required").touch_required
    assert not permissions("pty").verify_required
    line = (
        f"verify-required {Token(SK_ED25519).public.line()}\ncert-authority,verify-required {LINE}"
    )
    for entry in parse(line.encode(), log):
        assert entry.options.verify_required
    assert not log


@pytest.mark.parametrize(
    ("value", "pair"),
    [
        ("host.example:80", ("host.example", 80)),
        ("192.0.2.1:65535", ("192.0.2.1", 65535)),
        ("[2001:db8::1]:1", ("2001:db8::1", 1)),
        ("[host]:22", ("host", 22)),
        ("host:*", ("host", 0)),
        ("*:25", ("*", 25)),
    ],
)
def test_permitopen_and_permitlisten_take_a_host_and_a_port(
    value: str, pair: tuple[str, int]
) -> None:
    assert permissions(f'permitopen="{value}"').permit_open == (pair,)
    assert permissions(f'permitlisten="{value}"').permit_listen == (pair,)
    assert permissions("pty").permit_open is permissions("pty").permit_listen is None


def test_permitlisten_without_a_host_is_for_every_address_and_permitopen_needs_one() -> None:
    assert permissions('permitlisten="8080"').permit_listen == (("*", 8080),)
    assert permissions('permitlisten="*"').permit_listen == (("*", 0),)
    assert "'permitopen'" in refused('permitopen="8080"')
    assert "'permitopen'" in refused('permitopen="*"')


def test_several_permitopen_and_permitlisten_add_up() -> None:
    several = permissions('permitopen="a:1",permitlisten="1",permitopen="b:2",permitlisten="c:*"')
    assert several.permit_open == (("a", 1), ("b", 2))
    assert several.permit_listen == (("*", 1), ("c", 0))


@pytest.mark.parametrize(
    "port",
    [
        "",
        "0",
        "65536",
        "0xffffffff",
        "4294967295",
        "no",
        "any",
        "-1",
        "+1",
        "1 ",
        "²",
        "http",
        "**",
    ],
)
def test_the_port_of_a_forward_is_parsed_strictly_and_a_mistake_never_means_any(port: str) -> None:
    for name in ("permitopen", "permitlisten"):
        for value in (f"host:{port}", f"[::1]:{port}", port):
            assert f"'{name}'" in refused(f'{name}="{value}"')


@pytest.mark.parametrize("value", [":80", "[]:80", "::1:80", "a:b:80", "[::1]80", "[::1:80"])
def test_the_host_of_a_forward_is_parsed_strictly(value: str) -> None:
    for name in ("permitopen", "permitlisten"):
        assert f"'{name}'" in refused(f'{name}="{value}"')


def test_a_line_may_be_of_an_authority_and_name_its_principals(log: Log) -> None:
    options = ("cert-authority", 'cert-authority,principals="a,b c"', "pty")
    data = "".join(f"{each} {LINE}\n" for each in options).encode()
    found = [(entry.is_authority, entry.principals) for entry in parse(data, log)]
    assert found == [(True, None), (True, ("a", "b c")), (False, None)]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ('principals="x"', "option 'principals' is for a cert-authority"),
        ('principals=""', "option 'principals' is for a cert-authority"),
        ('restrict,principals="a,b"', "option 'principals' is for a cert-authority"),
        ("verify-required", "option 'verify-required' is for a security key"),
        ('from="!bad.example,*"', "option 'from' excludes 'bad.example': no names are looked up"),
        ('from="192.0.2.*,!*.cafe"', "option 'from' excludes '*.cafe': no names are looked up"),
    ],
)
def test_a_restriction_that_cannot_take_effect_refuses_its_key(options: str, why: str) -> None:
    assert refused(options) == f"line 1: {why}, so this key is refused"


@pytest.mark.parametrize(
    "excluded", ["192.0.2.1", "192.0.2.?", "2001:db8::*", "192.0.2.0/24", "::"]
)
def test_addresses_may_be_excluded(excluded: str) -> None:
    assert permissions(f'from="!{excluded},*"').from_patterns


@pytest.mark.parametrize("option", ["cert-authority", 'principals="a"'])
def test_an_option_of_an_authority_means_nothing_before_a_principal(option: str) -> None:
    said: list[str] = []
    assert list(parse_principals(f"{option} ops\n".encode(), said.append)) == []
    assert "are for authorized_keys" in said[0]


# -- times -------------------------------------------------------------------------------


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "expires"),
    [
        ("20300102Z", 1893542400),
        ("203001020304Z", 1893553440),
        ("20300102030405Z", 1893553445),
        ("20300102", 1893538800),
        ("203007020304", 1909184640),
    ],
)
def test_an_expiry_time_is_local_unless_it_ends_in_z(
    text: str, expires: int, log: Log, berlin: None
) -> None:
    (entry,) = parse(f'expiry-time="{text}" {LINE}'.encode(), log, time.mktime)
    assert entry.options.expires == expires


def test_of_two_expiry_times_the_earlier_counts() -> None:
    for first, second in (("20300101", "20310101"), ("20310101", "20300101")):
        options = permissions(f'expiry-time="{first}Z",expiry-time="{second}Z"')
        assert options.expires == 1893456000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Z",
        "2030",
        "20301301",
        "20300230",
        "2030010203",
        "203001022500",
        "x" * 8,
        "19700101Z",
        "00000101",
        "²0300102",
        "-2030101",
    ],
)
def test_an_expiry_time_that_is_none_refuses_the_key(text: str) -> None:
    assert "'expiry-time'" in refused(f'expiry-time="{text}"')


# -- from --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "address", "hostname", "matches"),
    [
        ("192.0.2.7", "192.0.2.7", None, True),
        ("192.0.2.7", "192.0.2.70", None, False),
        ("192.0.2.0/24", "192.0.2.70", None, True),
        ("192.0.2.0/24", "192.0.3.70", None, False),
        ("192.0.2.0/24,!192.0.2.7", "192.0.2.7", None, False),
        ("!192.0.2.7,192.0.2.0/24", "192.0.2.7", None, False),
        ("!192.0.2.0/24", "192.0.3.1", None, False),
        ("192.0.2.*", "192.0.2.7", None, True),
        ("192.0.2.?", "192.0.2.77", None, False),
        ("192.0.2.0/24", "::ffff:192.0.2.7", None, True),
        ("2001:db8::/32", "2001:db8::1", None, True),
        ("2001:DB8::/32", "2001:db8:0::1", None, True),
        ("2001:db8::/32", "192.0.2.7", None, False),
        ("fe80::/10", "fe80::1%eth0", None, True),
        ("*.example.com", "192.0.2.7", "a.EXAMPLE.com", True),
        ("*.example.com", "192.0.2.7", None, False),
        ("*,!192.0.2.7", "192.0.2.7", "a.example.com", False),
        ("*", "UNKNOWN", None, True),
        ("192.0.2.0/24", "UNKNOWN", None, False),
    ],
)
def test_from_matches_addresses_networks_and_names(
    patterns: str, address: str, hostname: str | None, matches: bool
) -> None:
    assert from_matches(patterns, address, hostname) is matches
    assert permissions(f'from="{patterns}"').from_patterns == (patterns,)


def test_a_name_that_is_excluded_is_not_matched() -> None:
    assert not from_matches("*.Example.com,!b.*", "192.0.2.7", "b.example.com")


@pytest.mark.parametrize(
    "patterns",
    [
        "",
        "a,,b",
        "!",
        "192.0.2.7/24",
        "192.0.2.0/33",
        "192.0.2.0/",
        "192.0.2.0/255.255.255.0",
        "x/8",
    ],
)
def test_a_from_list_with_a_mistake_refuses_the_key_and_matches_nobody(patterns: str) -> None:
    assert "'from'" in refused(f'from="{patterns}"')
    assert not from_matches(f"*,{patterns}" if patterns else "", "192.0.2.7", None)
