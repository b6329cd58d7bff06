"""Writes the status of the links: as JSON, as OpenMetrics text, and as a table for people."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkStatus:
    """The status of one link; the JSON uses the same names.

    Times are in seconds, rates in bytes per second.
    """

    name: str
    host: str
    state: str  # idle, dialling, up, backing_off, stopped
    since: float  # how long the link has been in this state
    device: str
    address: str  # of the server
    software: str  # of the server
    offload: bool
    addresses: tuple[str, ...]  # in the tunnel
    routes: tuple[str, ...]
    received_bytes: int
    sent_bytes: int
    received_rate: float
    sent_rate: float
    dropped: Mapping[str, int]  # packets, by reason (services/tunnel/drops.py)
    round_trip: float | None
    connects: int
    reconnects: int
    retry_in: float | None
    last_error: str


def to_json(links: Sequence[LinkStatus]) -> str:
    """Returns all fields as JSON, for programs."""
    return json.dumps({"links": [asdict(link) for link in links]}, indent=2)


def from_json(text: str) -> list[LinkStatus]:
    """Reads the text of ``to_json``; raises ValueError."""
    try:
        links: list[dict[str, Any]] = json.loads(text)["links"]
        return [LinkStatus(**link) for link in links]
    except (KeyError, TypeError) as error:
        raise ValueError(f"no status of links: {error}") from error


class _Metric(NamedTuple):
    """A family of samples, one for each link."""

    name: str
    kind: str
    help: str
    read: Callable[[LinkStatus], float | None]  # None leaves the sample out


_METRICS: Final = (
    _Metric("up", "gauge", "Whether the link carries packets.", lambda s: s.state == "up"),
    _Metric("connects", "counter", "How often the link came up.", lambda s: s.connects),
    _Metric("received_bytes", "counter", "Bytes out of the tunnel.", lambda s: s.received_bytes),
    _Metric("sent_bytes", "counter", "Bytes into the tunnel.", lambda s: s.sent_bytes),
    _Metric("round_trip_seconds", "gauge", "Keepalive round trip.", lambda s: s.round_trip),
    _Metric("state_seconds", "gauge", "Time since the state changed.", lambda s: s.since),
)
_STATES: Final = ("idle", "dialling", "up", "backing_off", "stopped")


def to_openmetrics(links: Sequence[LinkStatus]) -> str:
    """Returns the status in the exposition format of OpenMetrics 1.0."""
    lines = []
    for metric in _METRICS:
        family = f"culvert_link_{metric.name}"
        lines += [f"# TYPE {family} {metric.kind}", f"# HELP {family} {metric.help}"]
        suffix = "_total" if metric.kind == "counter" else ""
        for link in links:
            value = metric.read(link)
            if value is not None:
                lines.append(f"{family}{suffix}{{{_labels(link)}}} {float(value):.10g}")
    lines += [
        "# TYPE culvert_link_dropped_packets counter",
        "# HELP culvert_link_dropped_packets Packets that the tunnel did not carry.",
    ]
    for link in links:
        for reason, packets in link.dropped.items():
            labels = f'{_labels(link)},reason="{_escaped(reason)}"'
            lines.append(f"culvert_link_dropped_packets_total{{{labels}}} {packets}")
    lines += ["# TYPE culvert_link_state stateset", "# HELP culvert_link_state The link's state."]
    for link in links:
        for state in _STATES:
            labels = f'link="{_escaped(link.name)}",culvert_link_state="{state}"'
            lines.append(f"culvert_link_state{{{labels}}} {int(link.state == state)}")
    return "\n".join([*lines, "# EOF", ""])


def _labels(link: LinkStatus) -> str:
    return f'link="{_escaped(link.name)}",host="{_escaped(link.host)}"'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


_COLUMNS: Final = ("LINK", "STATE", "FOR", "DEVICE", "SERVER", "IN", "OUT", "RTT", "RECONNECTS")


def to_table(links: Sequence[LinkStatus], width: int) -> str:
    """Returns rows of at most ``width`` characters; a link's last error is in a row below it."""
    rows = [_COLUMNS, *(_row(link) for link in links)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = []
    for index, row in enumerate(rows):
        cells = (cell.ljust(size) for cell, size in zip(row, widths, strict=True))
        lines.append("  ".join(cells).rstrip()[:width])
        if index and (error := links[index - 1].last_error) and links[index - 1].state != "up":
            lines.append(f"    {error}"[:width])
    return "\n".join(lines)


def _row(link: LinkStatus) -> tuple[str, ...]:
    state = link.state.replace("_", " ")
    if link.retry_in is not None:
        state = f"again in {link.retry_in:.0f} s"
    up = link.state == "up"
    return (
        link.name,
        state,
        duration(link.since),
        link.device or "-",
        link.address or link.host,
        f"{rate(link.received_rate)}" if up else "-",
        f"{rate(link.sent_rate)}" if up else "-",
        "-" if link.round_trip is None else f"{link.round_trip * 1000:.1f} ms",
        str(link.reconnects),
    )


def duration(seconds: float) -> str:
    """Returns text such as '17s', '5m03s', '7h12m' or '12d03h'."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def rate(bytes_a_second: float) -> str:
    """Returns text such as '0 bit/s', '12.3 kbit/s' or '4.57 Gbit/s'."""
    bits = bytes_a_second * 8
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if bits < 1000:
            return f"{bits:.3g} {unit}"
        bits /= 1000
    return f"{bits:.3g} Gbit/s"
