"""What a program reads of a listing while it comes."""

import pytest

from appliance.mount.listing import Listing


@pytest.fixture
def listing() -> Listing:
    return Listing(0.0)


def test_names_that_are_made_while_it_comes_are_read_once(listing: Listing) -> None:
    names = listing.coming
    listing.change(b"before", b"1")
    listing.add([(b"a", b"1"), (b"before", b"old"), (b"b", b"1")])
    listing.change(b"after", b"2")
    listing.change(b"a", b"3")
    listing.add([(b"after", b"old"), (b"c", b"1")])
    listing.ended(None, 1.0, 1.0)
    assert names == [b"before", b"a", b"b", b"after", b"c"]
    assert listing.entries == {
        b"before": b"1", b"a": b"3", b"b": b"1", b"after": b"2", b"c": b"1",
    }  # fmt: skip


def test_a_name_that_is_removed_and_made_again_is_read_once(listing: Listing) -> None:
    names = listing.coming
    listing.add([(b"a", b"1")])
    for name in (b"a", b"new"):
        listing.change(name, b"2")
        listing.change(name, None)
        listing.change(name, b"3")
    listing.add([(b"new", b"old")])
    assert names == [b"a", b"new"]


def test_a_name_that_somebody_has_changed_is_read(listing: Listing) -> None:
    names = listing.coming
    listing.doubt(b"a")
    listing.add([(b"a", b"1"), (b"b", b"1")])
    assert names == [b"a", b"b"]
    assert listing.entries[b"a"] == b""


def test_a_listing_that_is_over_gives_no_more_names(listing: Listing) -> None:
    listing.ended(None, 1.0, 1.0)
    names = listing.coming
    listing.change(b"a", b"1")
    assert names == [] and listing.entries == {b"a": b"1"}
