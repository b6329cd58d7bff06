"""known_hosts, in all of OpenSSH's forms and against its ssh-keygen."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.crypto.keys import generate
from appliance.crypto.known_hosts import (
    SALT_BYTES,
    Decision,
    KnownKey,
    add_line,
    hash_host,
    lookup,
    matches_host,
    parse,
    remove,
)
from appliance.errors import UsageError
from tests.unit.crypto.conftest import RunProgram

A, B, C = (generate("ssh-ed25519").public for _ in range(3))
EC = generate("ecdsa-sha2-nistp256").public
SALT = bytes(range(SALT_BYTES))


def decide(text: str, host: str = "host", port: int = 22, key: object = A) -> Decision:
    return lookup(text, host, port).decide(key)  # type: ignore[arg-type]


# -- decisions ---------------------------------------------------------------------------


def test_a_host_is_trusted_by_its_very_key() -> None:
    assert decide(f"host {A.line()}\n") is Decision.TRUSTED
    assert decide(f"host {B.line()}\nhost {A.line('comment')}") is Decision.TRUSTED


def test_a_host_that_is_not_in_the_file_is_unknown() -> None:
    for text in ("", "\n", "# host\n", f"other {A.line()}", f"host2,[host]:22 {A.line()}"):
        assert decide(text) is Decision.UNKNOWN


@pytest.mark.parametrize("known", [B, EC])
def test_a_host_that_is_known_by_another_key_of_whatever_type_has_changed(known: object) -> None:
    text = f"# comment\nhost {known.line()}\n"  # type: ignore[attr-defined]
    found = lookup(text, "host", 22)
    assert found.decide(A) is Decision.CHANGED
    assert found.offending(A) == KnownKey(known, 2)  # type: ignore[arg-type]


def test_the_offending_line_is_the_one_of_the_same_type() -> None:
    found = lookup(f"host {EC.line()}\nhost {B.line()}\n", "host", 22)
    assert found.offending(A) == KnownKey(B, 2)
    assert found.key_types == (EC.key_type, B.key_type)
    assert lookup("", "host", 22).offending(A) is None


def test_a_revoked_key_is_refused_even_where_it_is_trusted_as_well() -> None:
    for hosts in ("host", "*", "h?st", hash_host("host", SALT)):
        text = f"host {A.line()}\n@revoked {hosts} {A.line()}\n"
        assert decide(text) is Decision.REVOKED
    assert decide(f"host {A.line()}\n@revoked other {A.line()}\n") is Decision.TRUSTED
    assert decide(f"@revoked host {B.line()}\n") is Decision.UNKNOWN


def test_a_key_revoked_for_the_bare_name_or_the_address_is_refused() -> None:
    assert decide(f"@revoked host {A.line()}\n", port=2222) is Decision.REVOKED
    text = f"host {A.line()}\n@revoked 192.0.2.1 {A.line()}\n"
    assert lookup(text, "host", 22, "192.0.2.1").decide(A) is Decision.REVOKED
    assert lookup(text, "host", 22, "192.0.2.2").decide(A) is Decision.TRUSTED


def test_an_address_that_is_trusted_does_not_make_the_name_trusted() -> None:
    assert lookup(f"192.0.2.1 {A.line()}", "host", 22, "192.0.2.1").decide(A) is Decision.UNKNOWN


def test_a_certificate_authority_is_no_host_key() -> None:
    found = lookup(f"@cert-authority *.example {A.line()}\n", "host.example", 22)
    assert found.authorities == (KnownKey(A, 1),)
    assert found.decide(A) is Decision.UNKNOWN


def test_another_port_has_a_name_of_its_own_and_falls_back_to_the_bare_one() -> None:
    text = f"[host]:2222 {A.line()}\nhost {B.line()}\n"
    assert decide(text, port=2222, key=A) is Decision.TRUSTED
    assert decide(text, port=2222, key=B) is Decision.CHANGED
    assert decide(text, port=22, key=A) is Decision.CHANGED
    assert decide(text, port=23, key=B) is Decision.TRUSTED
    assert decide(text, port=23, key=A) is Decision.UNKNOWN


@pytest.mark.parametrize(
    ("hosts", "matches"),
    [
        ("host.example", True),
        ("HOST.Example", True),
        ("other,host.example", True),
        ("*.example", True),
        ("h?st.example", True),
        ("*.example,!host.*", False),
        ("!host.example,*", False),
        ("*.other", False),
        ("host", False),
        (hash_host("host.example", SALT), True),
        (hash_host("host.example", SALT)[:-1], False),
        (hash_host("other.example", SALT), False),
        ("|1|", False),
        ("|1|!!|!!", False),
        ("|2|AAAA|AAAA", False),
    ],
)
def test_the_first_word_of_a_line_matches_as_sshd_8_says(hosts: str, matches: bool) -> None:
    assert matches_host(hosts, "host.example") is matches
    expected = Decision.TRUSTED if matches else Decision.UNKNOWN
    assert decide(f"{hosts} {A.line()}\n", "Host.EXAMPLE") is expected


def test_what_several_files_know_adds_up() -> None:
    both = lookup(f"host {A.line()}", "host", 22) + lookup(f"@revoked * {B.line()}", "host", 22)
    assert [both.decide(key) for key in (A, B, C)] == [
        Decision.TRUSTED,
        Decision.REVOKED,
        Decision.CHANGED,
    ]


def test_broken_lines_are_listed_and_passed_over() -> None:
    words = A.line().split()
    text = "\n".join(
        [
            "host",
            f"@nonsense host {A.line()}",
            "host ssh-ed25519 !!!!",
            "host ssh-ed25519 AAAA",
            f"host ssh-rsa {words[1]}",
            "@revoked",
            f"host {A.line()}",
        ]
    )
    found = lookup(text, "host", 22)
    assert [number for number, _ in found.ignored] == [1, 2, 3, 4, 5, 6]
    assert found.keys == (KnownKey(A, 7),)


@given(st.text(max_size=60), st.sampled_from(["host", "[host]:1", "", "|1|", "@revoked", "\n"]))
def test_no_text_makes_a_lookup_raise(text: str, part: str) -> None:
    for whole in (text, f"{part} {text}", f"host ssh-ed25519 {text}", f"{text} {A.line()}"):
        lookup(whole, "host", 22, "192.0.2.1").decide(A)
        remove(whole, "host", 22)


# -- writing -----------------------------------------------------------------------------


@pytest.mark.parametrize("hashed", [False, True])
@pytest.mark.parametrize(("host", "port"), [("host", 22), ("Host", 2222), ("::1", 22), ("::1", 1)])
def test_a_line_that_was_added_is_found_again(host: str, port: int, hashed: bool) -> None:
    line = add_line(host, port, A, hashed, SALT)
    assert decide(line, host, port) is Decision.TRUSTED
    assert (host.lower() in line) is not hashed
    assert "\n" not in line


@pytest.mark.parametrize(
    "host", ["", "a,b", "*", "a b", "a\nb", "|1|x", "!a", "#a", "@revoked", "\x1b"]
)
def test_a_name_that_would_mean_other_hosts_is_not_written(host: str) -> None:
    with pytest.raises(UsageError):
        add_line(host, 22, A)


def test_remove_takes_the_hosts_lines_and_leaves_the_rest_as_it_was() -> None:
    text = "\n".join(
        [
            "# comment",
            "",
            f"host {A.line()}",
            f"  other,host {B.line('c')}",
            "nonsense",
            f"[host]:2222 {A.line()}",
            f"@revoked host {C.line()}",
            f"@cert-authority host {C.line()}",
            add_line("host", 22, C, True, SALT),
        ]
    )
    kept, removed = remove(text, "Host", 22)
    assert [line.number for line in removed] == [3, 4, 9]
    lines = text.split("\n")
    assert kept == "\n".join([*lines[:2], *lines[4:8], ""])
    assert remove(kept, "host", 22) == (kept, ())


# -- against ssh-keygen ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["host.example", "[host.example]:2222"])
def test_ssh_keygen_finds_what_we_add(name: str, run: RunProgram, tmp_path: Path) -> None:
    port = 2222 if name.startswith("[") else 22
    for hashed in (False, True):
        path = tmp_path / f"known_hosts{hashed}"
        path.write_text(add_line("host.example", port, A, hashed, SALT) + "\n")
        assert f"# Host {name} found: line 1" in run("ssh-keygen", "-F", name, "-f", path)


def test_we_find_what_ssh_keygen_hashed(run: RunProgram, tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"host,192.0.2.1 {A.line()}\n[host]:2222 {B.line()}\n")
    run("ssh-keygen", "-q", "-H", "-f", path)
    text = path.read_text()
    assert all(line.hosts.startswith("|1|") for line in parse(text))
    assert decide(text, "host", 22, A) is Decision.TRUSTED
    assert decide(text, "192.0.2.1", 22, A) is Decision.TRUSTED
    assert decide(text, "host", 2222, B) is Decision.TRUSTED
    assert decide(text, "host", 2222, A) is Decision.CHANGED
