"""Each row of the table: its name and its fields are those of the protocol, and it is kept to."""

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from appliance.x11.rules import BAD_ACCESS, BAD_MATCH, CORE, EXTENSIONS, LOCAL_ONLY, Act, Row
from tests.unit.x11.server import BAD, BASE, NO_OPERATION, OTHERS, OWN, ROOT, Talk

ROWS = [
    *((b"", row) for row in CORE),
    *((name, row) for name, rows in EXTENSIONS.items() for row in rows),
]
IDS = [f"{name.decode() or 'core'}-{row.name}" for name, row in ROWS]
EACH = pytest.mark.parametrize(("extension", "row"), ROWS, ids=IDS)
CODES = {Act.ERROR: BAD_ACCESS, Act.MATCH: BAD_MATCH}


def request(talk: Talk, extension: bytes, row: Row, fields: dict[int, int]) -> bytes:
    """A request with these resources in its fields, long enough for any judge."""
    words = [fields.get(offset, 0) for offset in range(4, 64, 4)]
    opcode = talk.extension(extension) if extension else row.opcode
    return talk.request(opcode, row.opcode if extension else 0, *words)


@pytest.mark.parametrize("order", ["<", ">"])
@EACH
def test_a_program_may_do_what_its_row_says_with_its_own_resources(
    extension: bytes, row: Row, order: str
) -> None:
    talk = Talk(order, clipboard="both")
    fields = dict.fromkeys(row.own, OWN)
    if row.special in ("change_property", "get_property", "send_event", "xi_select_events"):
        fields[4] = OWN
    if row.special in ("set_selection_owner", "convert_selection"):
        fields[8] = 1
    if row.special == "change_window_attributes":
        fields |= {4: OWN, 8: 2}
    if row.special == "create_window":
        fields[28] = 2
    if row.special in ("composite", "source_picture"):
        fields = {offset: OWN + offset for offset in row.own}
    data = request(talk, extension, row, fields)
    passed = talk.send(data)
    if row.allowed:
        assert passed == data
    else:
        assert passed == bytes((NO_OPERATION if row.otherwise is Act.DROP else BAD,)) + data[1:]


@pytest.mark.parametrize("order", ["<", ">"])
@EACH
def test_and_with_nobody_elses(extension: bytes, row: Row, order: str) -> None:
    fields = row.own if row.allowed else ()
    for offset, foreign in product(fields, (OTHERS, ROOT, BASE - 1, 0xFFFFFFFF, 0)):
        if (not foreign and offset in row.or_none) or (foreign == ROOT and offset in row.or_root):
            continue
        talk = Talk(order, clipboard="both")
        given = dict.fromkeys(row.own, OWN) | {offset: foreign}
        data = request(talk, extension, row, given)
        passed = talk.send(data)
        if row.otherwise is Act.DROP:
            assert passed == bytes((NO_OPERATION,)) + data[1:]
            continue
        assert passed == bytes((BAD,)) + data[1:]
        answer = talk.receive(talk.error())
        minor = row.opcode if extension else 0
        assert answer[:2] == bytes((0, CODES[row.otherwise]))
        assert answer[2:4] == talk.error()[2:4]
        assert answer[8:11] == (minor.to_bytes(2, "little" if order == "<" else "big")) + data[:1]


@pytest.mark.parametrize("name", [*sorted(LOCAL_ONLY), b"XTEST", b"RECORD", b"SECURITY", b"NEW"])
def test_an_extension_without_rows_is_not_there(name: bytes) -> None:
    assert Talk().extension(name) == 0


@pytest.mark.parametrize("name", sorted(LOCAL_ONLY))
def test_a_trusted_program_is_not_of_this_machine(name: bytes) -> None:
    assert Talk(trusted=True).extension(name) == 0


@pytest.mark.parametrize("name", [b"XTEST", b"RECORD", b"SECURITY", b"NEW", *EXTENSIONS])
def test_a_trusted_program_may_do_everything_else(name: bytes) -> None:
    talk = Talk(trusted=True)
    major = talk.extension(name)
    assert major
    for data in (talk.request(major, 99, ROOT), talk.request(73, 0, ROOT), talk.request(36, 0)):
        assert talk.send(data) == data


# The protocol as the XCB project describes it


XCB = Path("/usr/share/xcb")  # Debian's xcb-proto
SIZES = {"CARD8": 1, "INT8": 1, "BYTE": 1, "BOOL": 1, "CARD16": 2, "INT16": 2, "char": 1, "void": 1}
SIZES |= {"CARD32": 4, "INT32": 4, "float": 4, "double": 8, "CARD64": 8, "INT64": 8, "RECTANGLE": 8}


class Protocol:
    """All requests, and which of their fields are resources."""

    def __init__(self) -> None:
        self.roots: dict[str, ET.Element] = {}
        self.aliases: dict[str, str] = {}
        self.resources: set[str] = set()
        for path in XCB.glob("*.xml"):
            root = ET.parse(path).getroot()
            self.roots[root.get("extension-xname", root.get("header", ""))] = root
            for kind in ("xidtype", "xidunion"):
                self.resources |= {each.get("name", "") for each in root.iter(kind)}
            for each in root.iter("typedef"):
                self.aliases[each.get("newname", "")] = each.get("oldname", "")

    def requests(self, extension: bytes) -> dict[int, ET.Element]:
        root = self.roots[extension.decode() or "xproto"]
        return {int(each.get("opcode", "")): each for each in root.iter("request")}

    def fields(self, request: ET.Element, is_core: bool) -> Iterator[int]:
        """The offsets of the resources in the fixed part of a request."""
        at = 1 if is_core else 4
        for each in request:
            if at == 2:
                at = 4
            kind = each.get("type", "").rpartition(":")[2]
            if each.tag == "pad":
                at += int(each.get("bytes", 0)) or -at % int(each.get("align", 1))
            elif each.tag == "field" and kind in self.resources:
                at = at if at >= 4 else 4
                yield at
                at += 4
            elif each.tag in ("field", "exprfield"):
                while kind in self.aliases:
                    kind = self.aliases[kind]
                if kind not in SIZES:
                    return
                if at == 1 and SIZES[kind] > 1:
                    at = 4
                at += SIZES[kind]
            elif each.tag != "doc":
                return


@pytest.fixture(scope="module")
def protocol() -> Protocol:
    assert XCB.exists(), "xcb-proto is not installed"
    return Protocol()


@EACH
def test_a_row_has_the_name_and_the_fields_of_the_protocol(
    extension: bytes, row: Row, protocol: Protocol
) -> None:
    if (extension, row.name) == (b"XKEYBOARD", "GetGeometry"):
        return  # XCB leaves it out
    found = protocol.requests(extension)[row.opcode]
    assert found.get("name", "").lower() == row.name.lower()
    if row.name in ("KillClient",) or extension == b"Present":
        return  # a number that is a resource; a structure of another file
    assert set(row.own) <= set(protocol.fields(found, not extension))
    assert set(row.or_none) | set(row.or_root) <= set(row.own)
