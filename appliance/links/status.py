"""Writes the status of links and mounts: as JSON, as OpenMetrics, and as a table for people."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What the status of a link and that of a mount share; the JSON uses the same names.

    Times are in seconds, rates in bytes per second.
    """

    name: str
    host: str
    state: str  # idle, dialling, up, backing_off, stopped
    since: float  # how long it has been in this state
    received_bytes: int
    sent_bytes: int
    received_rate: float
    sent_rate: float
    round_trip: float | None
    connects: int
    reconnects: int
    retry_in: float | None
    last_error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkStatus(Status):
    """The status of one link; its bytes are those in the tunnel."""

    device: str
    address: str  # of the server
    software: str  # of the server
    offload: bool
    addresses: tuple[str, ...]  # in the tunnel
    routes: tuple[str, ...]
    dropped: Mapping[str, int]  # packets, by reason (services/tunnel/drops.py)


@dataclass(frozen=True, slots=True, kw_only=True)
class MountStatus(Status):
    """The status of one mount; its bytes are those of SFTP."""

    mountpoint: str
    source: str  # [user@]host:[directory]


def to_json(status: Sequence[Status]) -> str:
    """Returns all fields as JSON, for programs."""
    table = {
        kind: [asdict(each) for each in status if isinstance(each, row)]
        for kind, row in _KINDS.items()
    }
    return json.dumps(table, indent=2)


def from_json(text: str) -> list[Status]:
    """Reads the text of ``to_json``; raises ValueError."""
    try:
        table: dict[str, list[dict[str, Any]]] = json.loads(text)
        return [row(**each) for kind, row in _KINDS.items() for each in table[kind]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"no status of links: {error}") from error


_KINDS: Final[dict[str, type[Status]]] = {"links": LinkStatus, "mounts": MountStatus}


class _Metric(NamedTuple):
    """A family of samples, one for each link or mount."""

    name: str
    kind: str
    help: str
    read: Callable[[Status], float | None]  # None leaves the sample out


_STATE_SECONDS: Final = _Metric(
    "state_seconds", "gauge", "Time since the state changed.", lambda s: s.since
)
_LINK_METRICS: Final = (
    _Metric("up", "gauge", "Whether the link carries packets.", lambda s: s.state == "up"),
    _Metric("connects", "counter", "How often the link came up.", lambda s: s.connects),
    _Metric("received_bytes", "counter", "Bytes out of the tunnel.", lambda s: s.received_bytes),
    _Metric("sent_bytes", "counter", "Bytes into the tunnel.", lambda s: s.sent_bytes),
    _Metric("round_trip_seconds", "gauge", "Keepalive round trip.", lambda s: s.round_trip),
    _STATE_SECONDS,
)
_MOUNT_METRICS: Final = (
    _Metric("up", "gauge", "Whether it is mounted and connected.", lambda s: s.state == "up"),
    _Metric("connects", "counter", "How often the mount came up.", lambda s: s.connects),
    _Metric("received_bytes", "counter", "Bytes from the server.", lambda s: s.received_bytes),
    _Metric("sent_bytes", "counter", "Bytes to the server.", lambda s: s.sent_bytes),
    _Metric("round_trip_seconds", "gauge", "Shortest answer.", lambda s: s.round_trip),
    _STATE_SECONDS,
)
_STATES: Final = ("idle", "dialling", "up", "backing_off", "stopped")


def to_openmetrics(status: Sequence[Status]) -> str:
    """Returns the status in the exposition format of OpenMetrics 1.0."""
    links = [each for each in status if isinstance(each, LinkStatus)]
    mounts = [each for each in status if isinstance(each, MountStatus)]
    lines = [
        *_families("link", _LINK_METRICS, links),
        *_dropped_packets(links),
        *_states("link", links),
    ]
    if mounts:
        lines += [*_families("mount", _MOUNT_METRICS, mounts), *_states("mount", mounts)]
    return "\n".join([*lines, "# EOF", ""])


def _families(what: str, metrics: Sequence[_Metric], status: Sequence[Status]) -> Iterator[str]:
    for metric in metrics:
        family = f"culvert_{what}_{metric.name}"
        yield f"# TYPE {family} {metric.kind}"
        yield f"# HELP {family} {metric.help}"
        suffix = "_total" if metric.kind == "counter" else ""
        for each in status:
            value = metric.read(each)
            if value is not None:
                yield f"{family}{suffix}{{{_labels(what, each)}}} {float(value):.10g}"


def _dropped_packets(links: Sequence[LinkStatus]) -> Iterator[str]:
    yield "# TYPE culvert_link_dropped_packets counter"
    yield "# HELP culvert_link_dropped_packets Packets that the tunnel did not carry."
    for link in links:
        for reason, packets in link.dropped.items():
            labels = f'{_labels("link", link)},reason="{_escaped(reason)}"'
            yield f"culvert_link_dropped_packets_total{{{labels}}} {packets}"


def _states(what: str, status: Sequence[Status]) -> Iterator[str]:
    family = f"culvert_{what}_state"
    yield f"# TYPE {family} stateset"
    yield f"# HELP {family} The {what}'s state."
    for each in status:
        for state in _STATES:
            labels = f'{what}="{_escaped(each.name)}",{family}="{state}"'
            yield f"{family}{{{labels}}} {int(each.state == state)}"


def _labels(what: str, status: Status) -> str:
    return f'{what}="{_escaped(status.name)}",host="{_escaped(status.host)}"'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


_COLUMNS: Final = ("LINK", "STATE", "FOR", "DEVICE", "SERVER", "IN", "OUT", "RTT", "RECONNECTS")


def to_table(status: Sequence[Status], width: int) -> str:
    """Returns rows of at most ``width`` characters; the last error is in a row below."""
    rows = [_COLUMNS, *(_row(each) for each in status)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = []
    for index, row in enumerate(rows):
        cells = (cell.ljust(size) for cell, size in zip(row, widths, strict=True))
        lines.append("  ".join(cells).rstrip()[:width])
        if index and (error := status[index - 1].last_error) and status[index - 1].state != "up":
            lines.append(f"    {error}"[:width])
    return "\n".join(lines)


def _row(status: Status) -> tuple[str, ...]:
    state = status.state.replace("_", " ")
    if status.retry_in is not None:
        state = f"again in {status.retry_in:.0f} s"
    up = status.state == "up"
    return (
        status.name,
        state,
        duration(status.since),
        place_of(status) or "-",
        server_of(status),
        f"{rate(status.received_rate)}" if up else "-",
        f"{rate(status.sent_rate)}" if up else "-",
        "-" if status.round_trip is None else f"{status.round_trip * 1000:.1f} ms",
        str(status.reconnects),
    )


def place_of(status: Status) -> str:
    """Returns the device or the mount point; '' before a device is chosen."""
    match status:
        case LinkStatus():
            return status.device
        case MountStatus():
            return status.mountpoint
    raise TypeError(status)


def server_of(status: Status) -> str:
    """Returns the server's address, or else its name."""
    return (status.address if isinstance(status, LinkStatus) else "") or status.host


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
