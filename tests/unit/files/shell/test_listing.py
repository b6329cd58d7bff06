"""Lines of sftp's ls."""

import os
import time

import pytest

from appliance.files.shell.listing import long_line
from appliance.files.shell.sizes import scaled
from appliance.wire.sftp import Attributes, FileIdentity

NOW = 1_700_000_000


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TZ", "UTC")
    time.tzset()


def test_a_line_is_that_of_openssh() -> None:
    attributes = Attributes(3000, (0, 1000), 0o100644, (NOW, NOW - 3600))
    line = long_line(attributes, {0: "root"}, {1000: "people"}, False, NOW)
    assert line == "-rw-r--r--    ? root     people       3000 Nov 14 21:13"
    assert long_line(attributes, {}, {}, True, NOW) == (
        "-rw-r--r--    ? 0        1000         2.9K Nov 14 21:13"
    )


def test_an_old_file_is_shown_with_its_year() -> None:
    for seconds in (0, NOW + 10, NOW - 190 * 86400):
        line = long_line(Attributes(times=(0, seconds)), {}, {}, False, NOW)
        assert line.endswith(time.strftime("%b %e  %Y", time.gmtime(seconds)))


def test_what_is_not_known_is_shown_as_such() -> None:
    assert long_line(Attributes(), {}, {}, False, NOW) == (
        "??????????    ? ?        ?               ? ?"
    )


def test_our_server_s_link_count_is_shown() -> None:
    identity = FileIdentity(1, 2, 17, 8, 0, 0, (0, 0))
    line = long_line(Attributes(permissions=0o040755, identity=identity), {}, {}, False, NOW)
    assert line.startswith("drwxr-xr-x   17 ")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0B"),
        (6, "6B"),
        (1023, "1023B"),
        (1024, "1.0K"),
        (3000, "2.9K"),
        (4096, "4.0K"),
        (102400, "100K"),
        (1048575, "1024K"),
        (252 << 30, "252G"),
        ((1 << 64) - 1, "16.0E"),
    ],
)
def test_a_size_has_few_digits(count: int, text: str) -> None:
    assert scaled(count) == text
