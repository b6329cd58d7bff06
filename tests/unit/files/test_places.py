"""Sources and targets of a copy."""

import pytest

from appliance.errors import UsageError
from appliance.files.places import Place, parse_destination, parse_place


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("file", Place("", "", 0, "file")),
        ("./a:b", Place("", "", 0, "./a:b")),
        ("/a:b", Place("", "", 0, "/a:b")),
        (":a", Place("", "", 0, ":a")),
        ("host:", Place("", "host", 0, "")),
        ("host:a:b", Place("", "host", 0, "a:b")),
        ("user@host:/a b", Place("user", "host", 0, "/a b")),
        ("a@b@host:x", Place("a@b", "host", 0, "x")),
        ("[::1]:x", Place("", "::1", 0, "x")),
        ("user@[fe80::1%eth0]:x", Place("user", "fe80::1%eth0", 0, "x")),
        ("scp://host", Place("", "host", 0, "")),
        ("scp://u%40v@host:2222//etc/a%20b", Place("u@v", "host", 2222, "/etc/a b")),
        ("sftp://u;fingerprint=x@[::1]:22/x", Place("u", "::1", 22, "x")),
    ],
)
def test_a_place_is_read_as_scp_does(text: str, place: Place) -> None:
    assert parse_place(text) == place


@pytest.mark.parametrize(
    "text", ["-oProxyCommand=x:", "scp://", "scp://host:0/", "scp://host:x/", "u@-h:x", "@:x"]
)
def test_an_unsafe_or_missing_host_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_place(text)


def test_a_name_alone_is_a_host_to_sftp() -> None:
    assert parse_destination("me@host") == Place("me", "host", 0, "")
    assert parse_destination("host:dir") == Place("", "host", 0, "dir")
