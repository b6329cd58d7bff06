"""What a link remembers: only of its own host, only what is sound, and never at a price."""

from pathlib import Path

import pytest

from appliance.config.links import Link
from appliance.links.remembered import Remembered

OFFICE = Link(name="office", host="office.example.org", from_server=True)
TABLE = {"addresses": ["10.9.0.1/30"], "routes": ["192.168.2.0/24"], "mtu": 1400}


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory, in which nothing stands yet."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    return tmp_path


def test_an_address_and_what_was_handed_out_outlive_the_process(state: Path) -> None:
    first = Remembered(OFFICE)
    assert (first.addresses, first.handed_out) == ([], None)
    first.learn("2001:db8::1", TABLE)
    again = Remembered(OFFICE)
    assert again.addresses == ["2001:db8::1"]
    assert again.handed_out == TABLE
    assert (state / "links/office.json").stat().st_mode & 0o777 == 0o600


def test_another_host_of_the_same_name_has_other_addresses() -> None:
    Remembered(OFFICE).learn("192.0.2.1", None)
    moved = Link(name="office", host="other.example.org", from_server=True)
    assert Remembered(moved).addresses == []


def test_what_is_known_is_no_news(state: Path) -> None:
    known = Remembered(OFFICE)
    known.learn("192.0.2.1", None)
    (state / "links/office.json").unlink()
    known.learn("192.0.2.1", None)
    assert not (state / "links/office.json").exists()


@pytest.mark.parametrize("address", ["evil", "192.0.2.1/24"])
def test_what_is_no_address_is_an_error_and_not_kept(address: str) -> None:
    known = Remembered(OFFICE)
    with pytest.raises(ValueError):
        known.learn(address, None)
    assert known.addresses == []


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "null", '{"host": "office.example.org"}',
        '{"host": "office.example.org", "addresses": ["x"], "handed_out": null}',
        '{"host": "office.example.org", "addresses": 7, "handed_out": null}',
        '{"host": "office.example.org", "addresses": [], "handed_out": {"routes": ["x"]}}',
        '{"host": "office.example.org", "addresses": [], "handed_out": [1]}',
    ],
)  # fmt: skip
def test_a_file_that_is_damaged_is_not_used(state: Path, text: str) -> None:
    (state / "links").mkdir()
    (state / "links/office.json").write_text(text)
    known = Remembered(OFFICE)
    assert (known.addresses, known.handed_out) == ([], None)


def test_a_disk_that_takes_nothing_is_no_reason_to_stop(state: Path) -> None:
    (state / "links").write_text("in the way")
    known = Remembered(OFFICE)
    known.learn("192.0.2.1", None)
    assert known.addresses == ["192.0.2.1"]
