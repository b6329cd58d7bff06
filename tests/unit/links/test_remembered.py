"""What a link remembers: only of its own host, only what is sound, and never at a price."""

from pathlib import Path

import pytest

from appliance.config.links import Link
from appliance.links import remembered
from appliance.links.remembered import ADDRESSES_LIMIT, Remembered

OFFICE = Link(name="office", host="office.example.org", from_server=True)
TABLE = {"addresses": ["10.9.0.1/30"], "routes": ["192.168.2.0/24"], "mtu": 1400}


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory, in which nothing stands yet."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    return tmp_path


def test_addresses_and_what_was_handed_out_outlive_the_process(state: Path) -> None:
    first = Remembered(OFFICE)
    assert (first.addresses, first.handed_out) == ([], None)
    first.learn_addresses(["192.0.2.1", "2001:db8::1%eth0"])
    first.learn_handed_out(TABLE)
    again = Remembered(OFFICE)
    assert again.addresses == ["192.0.2.1", "2001:db8::1"]
    assert again.handed_out == TABLE
    assert (state / "links/office.json").stat().st_mode & 0o777 == 0o600


def test_another_host_of_the_same_name_has_other_addresses() -> None:
    Remembered(OFFICE).learn_addresses(["192.0.2.1"])
    moved = Link(name="office", host="other.example.org", from_server=True)
    assert Remembered(moved).addresses == []


def test_no_answer_leaves_what_was_known() -> None:
    known = Remembered(OFFICE)
    known.learn_addresses(["192.0.2.1"])
    known.learn_addresses([])
    assert known.addresses == ["192.0.2.1"]


def test_another_order_is_no_news(state: Path) -> None:
    known = Remembered(OFFICE)
    known.learn_addresses(["192.0.2.1", "192.0.2.2"])
    (state / "links/office.json").unlink()
    known.learn_addresses(["192.0.2.2", "192.0.2.1"])
    assert not (state / "links/office.json").exists()


@pytest.mark.parametrize(
    "addresses", [["evil"], [""], ["192.0.2.1/24"], ["192.0.2.1"] * (ADDRESSES_LIMIT + 1)]
)
def test_what_is_no_address_or_too_many_is_an_error_and_not_kept(addresses: list[str]) -> None:
    known = Remembered(OFFICE)
    with pytest.raises(ValueError):
        known.learn_addresses(addresses)
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
    known.learn_addresses(["192.0.2.1"])
    assert known.addresses == ["192.0.2.1"]


def test_before_the_first_answer_the_name_servers_are_let_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 192.0.2.53\nnameserver 127.0.0.53\nnameserver x\nnameserver ::1\n")
    monkeypatch.setattr(remembered, "_RESOLVERS", (str(path), "/nowhere"))
    known = Remembered(OFFICE)
    assert known.let_through() == ["192.0.2.53"]
    known.learn_addresses(["192.0.2.1"])
    assert known.let_through() == ["192.0.2.1"]
