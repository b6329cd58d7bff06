"""The binary packet protocol (RFC 4253 section 6): one object per direction.

Each owns a buffer that the socket sends from or receives into directly. Packets are encrypted
and decrypted in place. A buffer is compacted once for each read or write, not for each packet.
"""

import struct
import zlib
from collections.abc import Callable, Iterable
from typing import Final

from ..crypto.ciphers import Decryption, Encryption, NoCipher
from ..errors import CompressionError, ProtocolError
from ..wire.codec import Buffer
from ..wire.messages import CHANNEL_DATA_HEADER, ChannelData

# RFC 4253 section 6
MINIMUM_PADDING: Final = 4
MINIMUM_PACKET: Final = 5  # bytes: padding_length and the shortest padding

# Our own choices
HANDSHAKE_PACKET_LIMIT: Final = 40_000  # bytes before the login; RFC 4253 6.1 demands 35000
PACKET_LIMIT: Final = 256 << 10  # bytes; OpenSSH's
INITIAL_BUFFER: Final = 16 << 10  # bytes: what an idle connection costs
MAXIMUM_BUFFER: Final = 512 << 10  # bytes; a buffer grows up to this while a peer fills it

_HEADER = struct.Struct(">IB")
_DATA_HEADER = struct.Struct(">IBBII")  # of a whole CHANNEL_DATA packet
_CHANNEL_DATA: Final = ChannelData.number


class PacketWriter:
    """The sending direction: keys, sequence number, compression and unsent bytes."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._pad = random(255)  # padding is encrypted, so it need not change
        self._buffer = bytearray(INITIAL_BUFFER)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._encryption: Encryption = NoCipher()
        self._compress: Callable[[Buffer], bytes] | None = None
        self.trace: Callable[[Buffer], None] | None = None  # called with each payload
        self.sequence = 0
        self.packets = 0  # since these keys are used
        self.sent_bytes = 0  # since these keys are used; unsent packets are included

    def rekey(self, encryption: Encryption, restart_sequence: bool) -> None:
        """Uses new keys from the next packet on."""
        self._encryption = encryption
        self._compress = None
        self.packets = self.sent_bytes = 0
        if restart_sequence:
            self.sequence = 0

    def start_compression(self) -> None:
        """Compresses every payload from now on."""
        deflate = zlib.compressobj(6)

        def compress(payload: Buffer) -> bytes:
            return deflate.compress(payload) + deflate.flush(zlib.Z_SYNC_FLUSH)

        self._compress = compress

    def raw(self, data: bytes) -> None:
        """Writes bytes outside of packets: the identification string."""
        self._reserve(len(data))
        self._view[self._end : self._end + len(data)] = data
        self._end += len(data)

    def packet(self, payload: bytes) -> None:
        """Writes one message as a packet."""
        if self.trace is not None:
            self.trace(payload)
        if self._compress is not None:
            payload = self._compress(payload)
        encryption = self._encryption
        block = encryption.block_size
        aside = 1 if encryption.length_aside else 5
        padding = block - (aside + len(payload)) % block
        if padding < MINIMUM_PADDING:
            padding += block
        length = 1 + len(payload) + padding
        self._reserve(4 + length + encryption.tag_length)
        start, view = self._end, self._view
        _HEADER.pack_into(self._buffer, start, length, padding)
        body = start + 5 + len(payload)
        view[start + 5 : body] = payload
        end = body + padding
        view[body:end] = self._pad[:padding]
        self._end = encryption.seal(view, start, end, self.sequence)
        self.sequence = (self.sequence + 1) & 0xFFFFFFFF
        self.packets += 1
        self.sent_bytes += length

    def channel_data(self, recipient_channel: int, pieces: Iterable[Buffer]) -> None:
        """Writes a CHANNEL_DATA packet for each piece: the hot path of all bulk data."""
        if self._compress is not None or self.trace is not None:
            for piece in pieces:
                head = CHANNEL_DATA_HEADER.pack(_CHANNEL_DATA, recipient_channel, len(piece))
                self.packet(head + piece)
            return
        encryption = self._encryption
        seal, block, tag = encryption.seal, encryption.block_size, encryption.tag_length
        aside = 10 if encryption.length_aside else 14
        pad, pack, sequence = self._pad, _DATA_HEADER.pack_into, self.sequence
        sequence_before, sent = sequence, 0
        buffer, view, start = self._buffer, self._view, self._end
        for piece in pieces:
            size = len(piece)
            padding = block - (aside + size) % block
            if padding < MINIMUM_PADDING:
                padding += block
            length = 10 + size + padding
            end = start + 4 + length
            if end + tag > len(buffer):
                self._end = start
                self._reserve(4 + length + tag)
                buffer, view, start = self._buffer, self._view, self._end
                end = start + 4 + length
            pack(buffer, start, length, padding, _CHANNEL_DATA, recipient_channel, size)
            body = start + 14 + size
            view[start + 14 : body] = piece
            view[body:end] = pad[:padding]
            start = seal(view, start, end, sequence)
            sequence = (sequence + 1) & 0xFFFFFFFF
            sent += length
        self._end = start
        self.packets += (sequence - sequence_before) & 0xFFFFFFFF
        self.sent_bytes += sent
        self.sequence = sequence

    def _reserve(self, count: int) -> None:
        """Makes room for ``count`` bytes behind the end."""
        if self._end + count <= len(self._buffer):
            return
        unsent = self._view[self._start : self._end]
        size = len(self._buffer)
        while size < len(unsent) + count:
            size *= 2
        if size == len(self._buffer):
            self._view[: len(unsent)] = bytes(unsent)
        else:
            buffer = bytearray(size)
            buffer[: len(unsent)] = unsent
            self._buffer, self._view = buffer, memoryview(buffer)
        self._start, self._end = 0, len(unsent)

    @property
    def unsent(self) -> int:
        """Bytes that wait for the socket."""
        return self._end - self._start

    def data_to_send(self) -> memoryview:
        """The unsent bytes; call ``sent`` before anything else is written."""
        return self._view[self._start : self._end]

    def sent(self, count: int) -> int:
        """Drops ``count`` bytes, which the socket took; returns how many are left."""
        self._start += count
        if self._start == self._end:
            self._start = self._end = 0
        return self._end - self._start


class PacketReader:
    """The receiving direction: keys, sequence number, decompression and unread bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray(INITIAL_BUFFER)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._decryption: Decryption = NoCipher()
        self._inflate: zlib._Decompress | None = None
        self.limit = HANDSHAKE_PACKET_LIMIT
        self.trace: Callable[[Buffer], None] | None = None  # called with each payload
        self.sequence = 0  # of the next packet
        self.packets = 0  # since these keys are used
        self.earlier_packets = 0
        self.received_bytes = 0

    def rekey(self, decryption: Decryption, restart_sequence: bool) -> None:
        """Uses new keys from the next packet on."""
        self._decryption = decryption
        self._inflate = None
        self.earlier_packets += self.packets
        self.packets = self.received_bytes = 0
        if restart_sequence:
            self.sequence = 0

    def start_decompression(self) -> None:
        """Inflates every payload from now on."""
        self._inflate = zlib.decompressobj()

    def space(self) -> memoryview:
        """The memory for the next bytes; payloads that were returned before are now invalid."""
        unread = self._end - self._start
        if self._start:
            self._view[:unread] = self._view[self._start : self._end]
            self._start, self._end = 0, unread
        room = len(self._buffer) - unread
        if room < len(self._buffer) // 2:  # a long packet, or a peer that sends much
            self._grow(len(self._buffer) * 2)
        return self._view[self._end :]

    def _grow(self, size: int) -> None:
        buffer = bytearray(size)
        buffer[: self._end] = self._view[: self._end]
        self._buffer, self._view = buffer, memoryview(buffer)

    def filled(self, count: int) -> None:
        """Adds ``count`` received bytes, which were put into ``space()``."""
        self._end += count
        if self._end == len(self._buffer) and self._end < MAXIMUM_BUFFER:
            self._grow(self._end * 2)

    @property
    def unread(self) -> int:
        """Bytes that have arrived and are not consumed."""
        return self._end - self._start

    def line(self, limit: int) -> bytes | None:
        """One line, without its end, before packets begin; ``limit`` in bytes."""
        end = self._buffer.find(b"\n", self._start, self._end)
        if end < 0:
            if self.unread > limit:
                raise ProtocolError("the peer's identification string is too long")
            return None
        if end - self._start > limit:
            raise ProtocolError("the peer's identification string is too long")
        line = bytes(self._view[self._start : end])
        self._start = end + 1
        return line.removesuffix(b"\r")

    def next(self) -> memoryview | None:
        """The next packet's payload, of at least one byte, or None until all of it has arrived.

        It stays valid until ``space`` is called.
        """
        decryption, view, sequence = self._decryption, self._view, self.sequence
        start = self._start
        if self._end - start < decryption.peek:
            return None
        length = decryption.length(view, start, sequence)
        aside = 0 if decryption.length_aside else 4
        if (
            length > self.limit
            or length < MINIMUM_PACKET
            or (length + aside) % decryption.block_size
        ):
            raise ProtocolError(f"a packet of {length} bytes: too long, too short or unaligned")
        end = start + 4 + length
        after = end + decryption.tag_length
        if after > self._end:
            return None
        decryption.open(view, start, end, sequence)
        self._start = after
        self.sequence = (sequence + 1) & 0xFFFFFFFF
        self.packets += 1
        self.received_bytes += length
        padding = self._buffer[start + 4]
        if padding < MINIMUM_PADDING or padding + 2 > length:
            raise ProtocolError("a packet's padding is too short or too long")
        payload = view[start + 5 : end - padding]
        if self._inflate is not None:
            payload = self._inflated(payload)
        if self.trace is not None:
            self.trace(payload)
        return payload

    def _inflated(self, payload: memoryview) -> memoryview:
        assert self._inflate is not None
        try:
            data = self._inflate.decompress(payload, PACKET_LIMIT)
        except zlib.error as error:
            raise CompressionError("a packet does not inflate") from error
        if self._inflate.unconsumed_tail or self._inflate.eof or not data:
            raise CompressionError("a packet inflates to nothing, or to too much")
        return memoryview(data)
