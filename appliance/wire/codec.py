"""The data types of RFC 4251 section 5, and records declared over them.

A record is a class whose annotated fields are wire types; encoding and decoding follow
from the declaration, so nobody writes them by hand::

    class ChannelOpenFailure(Message, number=92):
        recipient_channel: UInt32
        reason_code: UInt32
        description: Text = ""
        language_tag: Text = ""

Readers are strict: every length is checked, bytes left over are an error, and no bytes
raise anything but MalformedMessage.

This module imports no more than struct, so that a program that a session waits for, such as
sftp-server, may use it: importing ``typing`` takes longer than starting Python.
"""

from __future__ import annotations

import struct

from ..errors import MalformedMessage

TYPE_CHECKING = False  # type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar, Self, dataclass_transform
else:

    def dataclass_transform():  # for type checkers alone
        return lambda metaclass: metaclass


Buffer = bytes | bytearray | memoryview  # any object that holds bytes

_UINT32 = struct.Struct(">I")
_UINT64 = struct.Struct(">Q")

# Our own choices
NAMES_LIMIT = 1000  # names in one list: far more than any real KEXINIT has, and cheap to read
MPINT_LIMIT = 2052  # bytes: a modulus of 16384 bits, the largest that anybody uses, and its sign


class Reader:
    """Reads wire types from one buffer, in order; raises MalformedMessage."""

    __slots__ = ("_data", "_offset")

    def __init__(self, data: Buffer) -> None:
        self._data = data if isinstance(data, bytes) else bytes(data)
        self._offset = 0

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        start = self._offset
        end = start + count
        if end > len(self._data):
            raise MalformedMessage("a field runs past the end of its message")
        self._offset = end
        return self._data[start:end]

    def byte(self) -> int:
        """One byte as a number."""
        return self.take(1)[0]

    def boolean(self) -> bool:
        """One byte; all values but 0 are true (RFC 4251 section 5)."""
        return self.take(1) != b"\0"

    def uint32(self) -> int:
        """Four bytes, most significant first."""
        try:
            value: int = _UINT32.unpack_from(self._data, self._offset)[0]
        except struct.error as error:
            raise MalformedMessage("a field runs past the end of its message") from error
        self._offset += 4
        return value

    def peek(self, layout: struct.Struct) -> tuple[Any, ...] | None:
        """What stands next in this layout, without taking it; None if fewer bytes are left."""
        if layout.size > len(self._data) - self._offset:
            return None
        return layout.unpack_from(self._data, self._offset)

    def skip(self, count: int) -> None:
        """Takes ``count`` bytes that ``peek`` has shown."""
        self._offset += count

    def uint64(self) -> int:
        """Eight bytes, most significant first."""
        value: int = _UINT64.unpack(self.take(8))[0]
        return value

    def string(self) -> bytes:
        """The bytes of a string: a length, then as many bytes."""
        data, start = self._data, self._offset + 4
        try:
            end = start + _UINT32.unpack_from(data, self._offset)[0]
        except struct.error as error:
            raise MalformedMessage("a field runs past the end of its message") from error
        if end > len(data):
            raise MalformedMessage("a field runs past the end of its message")
        self._offset = end
        return data[start:end]

    def text(self) -> str:
        """A string in UTF-8."""
        try:
            return self.string().decode()
        except UnicodeDecodeError as error:
            raise MalformedMessage("a text is not UTF-8") from error

    def shown(self) -> str:
        """A string to be shown to a person; bytes that are not UTF-8 are escaped."""
        return self.string().decode(errors="backslashreplace")

    def name(self) -> str:
        """A string in US-ASCII."""
        try:
            return self.string().decode("ascii")
        except UnicodeDecodeError as error:
            raise MalformedMessage("a name is not ASCII") from error

    def names(self) -> tuple[str, ...]:
        """A comma-separated list of names, none of which is empty."""
        text = self.name()
        if not text:
            return ()
        names = tuple(text.split(","))
        if len(names) > NAMES_LIMIT or "" in names:
            raise MalformedMessage("a name-list is too long or holds an empty name")
        return names

    def offered(self) -> tuple[str, ...]:
        """A peer's list of names, without the empty ones.

        libssh 0.10 ends its lists of ciphers with a comma.
        """
        names = tuple(filter(None, self.name().split(",")))
        if len(names) > NAMES_LIMIT:
            raise MalformedMessage("a name-list is too long")
        return names

    def mpint(self) -> int:
        """A signed integer of any size, in the shortest two's complement form."""
        data = self.string()
        if len(data) > MPINT_LIMIT:
            raise MalformedMessage("an mpint is too long")
        if len(data) > 1 and data[0] in (0, 0xFF) and (data[0] ^ data[1]) < 0x80:
            raise MalformedMessage("an mpint has needless leading bytes")
        if data == b"\0":
            raise MalformedMessage("an mpint of zero is the empty string")
        return int.from_bytes(data, "big", signed=True)

    @property
    def offset(self) -> int:
        """How many bytes were read."""
        return self._offset

    @property
    def at_end(self) -> bool:
        """Whether nothing is left."""
        return self._offset == len(self._data)

    def rest(self) -> bytes:
        """All bytes that are left."""
        return self.take(len(self._data) - self._offset)

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return len(self._data) - self._offset

    def end(self) -> None:
        """Raises MalformedMessage if any bytes are left."""
        if self._offset != len(self._data):
            raise MalformedMessage("bytes left over at the end of a message")


def write_byte(value: int) -> bytes:
    """One byte."""
    return bytes((value,))


def write_boolean(value: bool) -> bytes:
    """One byte, 0 or 1."""
    return b"\1" if value else b"\0"


def write_uint32(value: int) -> bytes:
    """Four bytes."""
    return _UINT32.pack(value)


def write_uint64(value: int) -> bytes:
    """Eight bytes."""
    return _UINT64.pack(value)


def write_string(value: Buffer) -> bytes:
    """A length and the bytes."""
    data = bytes(value)
    return _UINT32.pack(len(data)) + data


def write_text(value: str) -> bytes:
    """A string in UTF-8."""
    return write_string(value.encode())


def write_name(value: str) -> bytes:
    """A string in US-ASCII."""
    return write_string(value.encode("ascii"))


def write_names(value: tuple[str, ...]) -> bytes:
    """A name-list."""
    return write_name(",".join(value))


def write_mpint(value: int) -> bytes:
    """A signed integer in the shortest two's complement form; zero is empty."""
    if value == 0:
        return b"\0\0\0\0"
    length = (value.bit_length() if value > 0 else (value + 1).bit_length()) // 8 + 1
    return write_string(value.to_bytes(length, "big", signed=True))


class Field:
    """How a wire type is read and written."""

    __slots__ = ("read", "write")

    def __init__(self, read: Callable[[Reader], Any], write: Callable[[Any], bytes]) -> None:
        self.read = read
        self.write = write


def _read_cookie(reader: Reader) -> bytes:
    return reader.take(16)


def _read_extensions(reader: Reader) -> tuple[tuple[str, bytes], ...]:
    count = reader.uint32()
    if count > NAMES_LIMIT:
        raise MalformedMessage("too many extensions")
    return tuple((reader.name(), reader.string()) for _ in range(count))


def _write_extensions(value: tuple[tuple[str, bytes], ...]) -> bytes:
    pairs = b"".join(write_name(name) + write_string(data) for name, data in value)
    return write_uint32(len(value)) + pairs


def _read_prompts(reader: Reader) -> tuple[tuple[str, bool], ...]:
    count = reader.uint32()
    if count > NAMES_LIMIT:
        raise MalformedMessage("too many prompts")
    return tuple((reader.shown(), reader.boolean()) for _ in range(count))


def _write_prompts(value: tuple[tuple[str, bool], ...]) -> bytes:
    pairs = b"".join(write_text(text) + write_boolean(echo) for text, echo in value)
    return write_uint32(len(value)) + pairs


def _read_strings(reader: Reader) -> tuple[bytes, ...]:
    count = reader.uint32()
    if count > NAMES_LIMIT:
        raise MalformedMessage("too many strings")
    return tuple(reader.string() for _ in range(count))


def _write_strings(value: tuple[bytes, ...]) -> bytes:
    return write_uint32(len(value)) + b"".join(map(write_string, value))


# The wire types: to a type checker the type of the value, and to a record how it is read.
if TYPE_CHECKING:
    Byte = int
    Boolean = bool
    UInt32 = int
    UInt64 = int
    String = bytes
    Text = str
    Shown = str
    Name = str
    NameList = tuple[str, ...]
    Offered = tuple[str, ...]
    MPInt = int
    Rest = bytes
    Cookie = bytes
    Extensions = tuple[tuple[str, bytes], ...]
    Prompts = tuple[tuple[str, bool], ...]
    Strings = tuple[bytes, ...]
else:
    Byte = Field(Reader.byte, write_byte)
    Boolean = Field(Reader.boolean, write_boolean)
    UInt32 = Field(Reader.uint32, write_uint32)
    UInt64 = Field(Reader.uint64, write_uint64)
    String = Field(Reader.string, write_string)
    Text = Field(Reader.text, write_text)
    Shown = Field(Reader.shown, write_text)
    Name = Field(Reader.name, write_name)
    NameList = Field(Reader.names, write_names)
    Offered = Field(Reader.offered, write_names)
    MPInt = Field(Reader.mpint, write_mpint)
    Rest = Field(Reader.rest, bytes)
    Cookie = Field(_read_cookie, bytes)
    Extensions = Field(_read_extensions, _write_extensions)
    Prompts = Field(_read_prompts, _write_prompts)
    Strings = Field(_read_strings, _write_strings)


@dataclass_transform()
class _RecordType(type):
    """Turns annotations into slots; far cheaper to import than forty dataclasses."""

    def __new__(
        mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any
    ) -> _RecordType:
        fields: dict[str, Field] = {}
        for base in bases:
            fields.update(getattr(base, "_fields", {}))
        defaults: dict[str, Any] = {}
        for base in bases:
            defaults.update(getattr(base, "_defaults", {}))
        own = []
        for field, hint in namespace.get("__annotations__", {}).items():
            if isinstance(hint, str) and not hint.startswith("ClassVar"):
                raise TypeError(f"{name}.{field}: a record's module must not postpone annotations")
            if isinstance(hint, Field):
                fields[field] = hint
                own.append(field)
                if field in namespace:
                    defaults[field] = namespace.pop(field)
        namespace["__slots__"] = tuple(own)
        namespace["_fields"] = fields
        namespace["_defaults"] = defaults
        return super().__new__(mcs, name, bases, namespace, **options)


class Record(metaclass=_RecordType):
    """A sequence of named wire fields; compares by value."""

    _fields: ClassVar[dict[str, Field]]
    _defaults: ClassVar[dict[str, Any]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        names = tuple(self._fields)
        given = dict(zip(names, args, strict=False)) | kwargs
        if len(args) > len(names) or len(given) != len(args) + len(kwargs):
            raise TypeError(f"{type(self).__name__} takes the fields {', '.join(names)}")
        for name in names:
            if name in given:
                setattr(self, name, given.pop(name))
            elif name in self._defaults:
                setattr(self, name, self._defaults[name])
            else:
                raise TypeError(f"{type(self).__name__} lacks {name}")
        if given:
            raise TypeError(f"{type(self).__name__} has no {', '.join(given)}")

    def encode(self) -> bytes:
        """The record's bytes."""
        return b"".join([f.write(getattr(self, name)) for name, f in self._fields.items()])

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Reads the fields; ``reader`` then stands behind the last one."""
        record = cls.__new__(cls)
        for name, field in cls._fields.items():
            setattr(record, name, field.read(reader))
        return record

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """The inverse of ``encode``; raises MalformedMessage."""
        reader = Reader(data)
        record = cls.read(reader)
        reader.end()
        return record

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self._fields)

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in self._fields))

    def __repr__(self) -> str:
        """Shows the length of bytes, but no bytes: no password or payload gets into a log."""
        values = ((name, getattr(self, name)) for name in self._fields)
        shown = (
            f"{n}=<{len(v)} bytes>" if isinstance(v, bytes) else f"{n}={v!r}" for n, v in values
        )
        return f"{type(self).__name__}({', '.join(shown)})"


class Message(Record):
    """A record with a message number in front (RFC 4250 section 4.1)."""

    number: ClassVar[int] = 0

    def __init_subclass__(cls, number: int) -> None:
        cls.number = number

    def encode(self) -> bytes:
        """The payload of a packet: number and fields."""
        return bytes((self.number,)) + super().encode()

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """The inverse of ``encode``; the number must be this message's."""
        reader = Reader(data)
        if reader.byte() != cls.number:
            raise MalformedMessage(f"not a {cls.__name__}")
        record = cls.read(reader)
        reader.end()
        return record
