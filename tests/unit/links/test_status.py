"""What people and programs see of the links."""

import json
import re

import pytest

from appliance.links.status import (
    LinkStatus,
    MountStatus,
    duration,
    from_json,
    rate,
    to_json,
    to_openmetrics,
    to_table,
)


def link(**fields: object) -> LinkStatus:
    usual = {
        "name": "office", "host": "office.example.org", "state": "up", "since": 75.0,
        "device": "tun0", "address": "192.0.2.1", "software": "Culvert_0.1.0", "offload": True,
        "addresses": ("10.9.0.1/30",), "routes": ("192.168.2.0/24",), "received_bytes": 1000,
        "sent_bytes": 2000, "received_rate": 125_000.0, "sent_rate": 0.0,
        "dropped": {"no_window": 7, "device_gone": 0}, "round_trip": 0.0123,
        "connects": 3, "reconnects": 2, "retry_in": None, "last_error": "",
    }  # fmt: skip
    return LinkStatus(**(usual | fields))  # type: ignore[arg-type]


def mount(**fields: object) -> MountStatus:
    usual = {
        "name": "photos", "host": "nas.example.org", "state": "up", "since": 5.0,
        "received_bytes": 7, "sent_bytes": 9, "received_rate": 1540.0, "sent_rate": 0.0,
        "round_trip": 0.02, "connects": 1, "reconnects": 0, "retry_in": None, "last_error": "",
        "mountpoint": "/mnt/photos", "source": "joe@nas.example.org:/srv",
    }  # fmt: skip
    return MountStatus(**(usual | fields))  # type: ignore[arg-type]


def test_json_has_links_and_mounts_apart() -> None:
    text = to_json([mount(), link()])
    table = json.loads(text)
    assert [[each["name"] for each in table[kind]] for kind in ("links", "mounts")] == [
        ["office"],
        ["photos"],
    ]
    assert "device" not in table["mounts"][0]
    assert from_json(text)[1].name == "photos"
    assert isinstance(from_json(text)[1], MountStatus)


def test_a_mount_is_a_row_with_its_place() -> None:
    lost = mount(name="music", state="dialling", last_error="the server is silent")
    _, first, second, error = to_table([mount(), lost], 200).splitlines()
    assert first.split() == [
        "photos", "up", "5s", "/mnt/photos", "nas.example.org", "12.3", "kbit/s", "0", "bit/s",
        "20.0", "ms", "0",
    ]  # fmt: skip
    assert second.split()[:2] == ["music", "dialling"]
    assert error.strip() == "the server is silent"


def test_mounts_have_metrics_of_their_own() -> None:
    lines = to_openmetrics([link(), mount()]).splitlines()
    place = '{mount="photos",host="nas.example.org"}'
    assert f"culvert_mount_up{place} 1" in lines
    assert f"culvert_mount_received_bytes_total{place} 7" in lines
    assert 'culvert_mount_state{mount="photos",culvert_mount_state="dialling"} 0' in lines
    assert sum(line.startswith("culvert_link_up{") for line in lines) == 1
    assert "culvert_mount" not in to_openmetrics([link()])


def test_json_survives_the_round_trip() -> None:
    links = [link(), link(name="home", state="backing_off", retry_in=3.0, round_trip=None)]
    again = from_json(to_json(links))
    assert to_json(again) == to_json(links)
    assert [each.name for each in again] == ["office", "home"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"links": [1]}', '{"links": [{"name": 1}]}'])
def test_json_of_something_else_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        from_json(text)


def test_a_table_has_a_row_for_each_link_and_its_last_error_below() -> None:
    waiting = link(
        name="home", state="backing_off", retry_in=3.4, round_trip=None, last_error="no answer"
    )
    head, first, second, error = to_table([link(), waiting], 200).splitlines()
    assert head.split() == [
        "LINK", "STATE", "FOR", "DEVICE", "SERVER", "IN", "OUT", "RTT", "RECONNECTS",
    ]  # fmt: skip
    assert first.split()[:4] == ["office", "up", "1m15s", "tun0"]
    assert "1 Mbit/s" in first
    assert "12.3 ms" in first
    assert "again in 3 s" in second
    assert error.strip() == "no answer"


def test_a_link_that_is_up_does_not_show_an_error_of_the_past() -> None:
    assert "no answer" not in to_table([link(last_error="no answer")], 200)


def test_a_table_fits_the_terminal() -> None:
    text = to_table([link(state="stopped", last_error="x" * 300)], 60)
    assert max(map(len, text.splitlines())) <= 60


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.9, "59s"), (60, "1m00s"), (3599, "59m59s"), (3600, "1h00m"),
     (86399, "23h59m"), (86400 * 12 + 3 * 3600, "12d03h")],
)  # fmt: skip
def test_durations_in_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("bytes_a_second", "text"),
    [(0, "0 bit/s"), (1, "8 bit/s"), (1540, "12.3 kbit/s"), (125e3, "1 Mbit/s"),
     (571e6, "4.57 Gbit/s"), (1.25e12, "1e+04 Gbit/s")],
)  # fmt: skip
def test_rates_in_bits(bytes_a_second: float, text: str) -> None:
    assert rate(bytes_a_second) == text


SAMPLE = re.compile(r'([a-z_]+)\{([a-z_]+="(?:[^"\\]|\\.)*",?)+\} -?[0-9.e+-]+')


def test_openmetrics_are_families_of_samples_and_an_end() -> None:
    links = [link(), link(name='o"dd\\name\n', round_trip=None), mount()]
    *lines, end = to_openmetrics(links).splitlines()
    assert end == "# EOF"
    family = ""
    for line in lines:
        if line.startswith("# TYPE "):
            family = line.split()[2]
        elif not line.startswith("# HELP "):
            match = SAMPLE.fullmatch(line)
            assert match, line
            assert match[1] in (family, f"{family}_total")
    assert 'culvert_link_sent_bytes_total{link="office",host="office.example.org"} 2000' in lines
    assert 'culvert_link_state{link="office",culvert_link_state="up"} 1' in lines
    assert sum(line.startswith("culvert_link_round_trip_seconds{") for line in lines) == 1


def test_dropped_packets_are_samples_with_a_reason() -> None:
    lines = to_openmetrics([link(name='o"dd')]).splitlines()
    family = "culvert_link_dropped_packets"
    place = r'link="o\"dd",host="office.example.org"'
    assert [line for line in lines if line.startswith(family)] == [
        f'{family}_total{{{place},reason="no_window"}} 7',
        f'{family}_total{{{place},reason="device_gone"}} 0',
    ]
    assert f"# TYPE {family} counter" in lines
    assert json.loads(to_json([link()]))["links"][0]["dropped"] == {
        "no_window": 7,
        "device_gone": 0,
    }
