"""How a subscriber sees a stream: one continuous sequence, whatever is switched or paused behind it.

A route's history is a row of *epochs*. Within an epoch sent number = received number + constant, so
reordering and loss pass through unchanged. A new epoch begins where a stream begins, is switched to, or goes
on after a pause::

    received  A: 10 11 12 13 14 | pause | 20 21(key) 22      B: 500(key) 501
    sent          0  1  2  3  4 |       |     5       6   switch    7   8
    offset       -10            |       |   -16             |    -493

Packets of a stream from before its epoch's first (the *floor*) would collide with numbers already given: not
sent.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from mediaserver.forwarder import red
from mediaserver.forwarder.counters import RouteStats
from mediaserver.forwarder.interface import (
    ABS_SEND_TIME,
    DEPENDENCY,
    MID,
    REPAIRED_RID,
    RID,
    TRANSPORT_CC,
    RouteParameters,
)
from mediaserver.forwarder.layers import ALL, LayerFilter, Verdict, rewrite_descriptor
from mediaserver.forwarder.wire import VP8, RtpPacket, element, vp8_numbers

if TYPE_CHECKING:
    from mediaserver.forwarder.peer import Peer
    from mediaserver.forwarder.receive import Stream

_HEADER: Final = Struct("!BBHII")
_ONE_BYTE: Final = [bytes((i,)) for i in range(256)]
_OWN: Final = frozenset((MID, RID, REPAIRED_RID, TRANSPORT_CC, ABS_SEND_TIME))

SENT_RING: Final = 1024
"""Sent packets a NACK can name, as many as a cache holds."""
RESEND_BUDGET: Final = 256
"""Packets that may be resent at once; each first sending gives one back, so NACKs at most double a route's
rate."""
RESEND_INTERVAL_NS: Final = 10_000_000
"""A packet is not resent sooner than this after its last resending: a burst of NACKs asks for the same
loss."""


MIN_FILLER_BYTES: Final = 200
"""Shorter packets fill the line badly."""


class Epoch:
    """One stretch of a route; see the module's text."""

    __slots__ = (
        "dependency_id",
        "floor",
        "frame_offset",
        "index_offset",
        "mapping",
        "payload_type",
        "picture_offset",
        "red_from",
        "red_to",
        "rtx_payload_type",
        "sequence_offset",
        "stream",
        "timestamp_offset",
    )

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.floor = 0
        self.sequence_offset = 0
        self.timestamp_offset = 0
        self.picture_offset = 0
        self.index_offset = 0
        self.frame_offset = 0
        self.dependency_id = stream.parameters.extensions.get(DEPENDENCY, 0)
        self.payload_type = 0
        self.rtx_payload_type: int | None = None
        self.red_from = stream.red_payload_type
        self.red_to: int | None = None
        """As what RED is sent; None: its primary block alone."""
        self.mapping: tuple[tuple[int, int], ...] = ()

    def sent_from(self, packet: RtpPacket) -> int:
        """Return where what is sent of a payload begins: of RED the primary block, for a subscriber
        without."""
        start = packet.payload_start
        if packet.payload_type != self.red_from or self.red_to is not None:
            return start
        return max(start, red.primary(packet.data, start, packet.payload_end, None))


class Sent:
    """What a plain resending must repeat bit by bit: the same nonce must never protect two different
    packets."""

    __slots__ = (
        "epoch",
        "extended",
        "fill",
        "marker",
        "mask",
        "number",
        "received",
        "resent_ns",
        "seconds",
        "targets",
        "waiting",
    )

    def __init__(self, extended: int, epoch: Epoch, received: int, number: int | None, seconds: int) -> None:
        self.extended = extended
        self.epoch = epoch
        self.received = received
        self.number = number
        self.seconds = seconds
        self.resent_ns = 0
        self.marker = 0
        self.mask = self.targets = 0
        """What of its layers is sent, as ``LayerFilter.mask`` says it."""
        self.fill = False
        """Nothing but padding."""
        self.waiting = False
        """For the peer's pace: nobody has it yet, so it is not sent again."""


class Route:
    """One stream on its way to one subscriber."""

    def __init__(self, number: int, peer: Peer, parameters: RouteParameters) -> None:
        self.number = number
        self.peer = peer
        self.parameters = parameters
        self.ssrc = parameters.ssrc
        self.payload_type = parameters.payload_type
        self.rtx_payload_type = parameters.rtx_payload_type
        self.stream: Stream | None = None
        self.pending: Stream | None = None
        self.epoch: Epoch | None = None
        self.paused = False
        self.waiting = True
        self.next = 0
        """Extended number of the next packet when an epoch begins; ``last`` + 1 afterwards."""
        self.next_rtx = 0
        self.last = -1
        self.last_timestamp = 0
        self.last_sent_ns = 0
        self.packets = self.bytes = self.retransmitted = self.missed = self.padding = 0
        self.fraction_lost = self.report_ns = 0
        self.sent: list[Sent | None] = [None] * SENT_RING
        self.made: Sent | None = None
        """What ``first`` made last."""
        self.budget = RESEND_BUDGET
        extensions = parameters.extensions
        self.transport_cc_id = extensions.get(TRANSPORT_CC, 0)
        self._abs_id = extensions.get(ABS_SEND_TIME, 0)
        self._mid_id = extensions.get(MID, 0) if parameters.mid else 0
        self._mid = parameters.mid.encode()
        self._two_byte = any(value > 14 for value in extensions.values())
        self._picture = -1
        self._index = -1
        self._frame = -1
        self.filter: LayerFilter | None = None
        """None: nothing was ever left out; below, what it says of the packet that is sent."""
        self._shift = 0
        self._fill = False

    def begin(self, stream: Stream, packet: RtpPacket) -> None:
        """Begin an epoch with this packet of ``stream``."""
        last = self.epoch
        epoch = Epoch(stream)
        epoch.floor = packet.extended
        epoch.payload_type = self.payload_type
        epoch.rtx_payload_type = self.rtx_payload_type
        if self.parameters.rtx_payload_type is None:  # RTX speaks of one payload type only
            epoch.red_to = self.parameters.red_payload_type
        epoch.sequence_offset = (self.last + 1 if self.last >= 0 else self.next) - packet.extended
        if self.last >= 0 and last is not None:
            if last.stream is stream:
                epoch.timestamp_offset = last.timestamp_offset
            else:
                elapsed = max(packet.arrival_ns - self.last_sent_ns, 0) // 1000
                ticks = max(elapsed * stream.clock_rate // 1_000_000, 1)
                epoch.timestamp_offset = (self.last_timestamp + ticks - packet.timestamp) & 0xFFFFFFFF
        if stream.codec == VP8:
            picture, bits, index = vp8_numbers(packet.data, packet.payload_start, packet.payload_end)
            if bits and self._picture >= 0:
                value = _picture_id(packet.data, picture, bits)
                epoch.picture_offset = (self._picture + 1 - value) & 0x7FFF
            if index and self._index >= 0:
                epoch.index_offset = (self._index + 1 - packet.data[index]) & 0xFF
        told = element(packet, epoch.dependency_id) if epoch.dependency_id else None
        if told is not None and len(told) >= 3 and self._frame >= 0:
            epoch.frame_offset = (self._frame + 1 - _frame_number(told)) & 0xFFFF
        if self.filter is not None:
            self.filter.begin(packet.extended - 1)
        received, sent = stream.parameters.extensions, self.parameters.extensions
        epoch.mapping = tuple(
            (received[uri], sent[uri]) for uri in received if uri in sent and uri not in _OWN
        )
        self.epoch = epoch
        self.stream = stream
        self.pending = None
        self.waiting = False

    def judge(self, packet: RtpPacket, epoch: Epoch) -> bool:
        """Tell whether something is to be sent for ``packet``; ``first`` is called next for it."""
        if self.filter is None:
            return True
        verdict = self.filter.judge(packet)
        self._shift, self._fill = self.filter.shift, verdict is Verdict.FILL
        return verdict is not Verdict.LEAVE_OUT

    def first(self, packet: RtpPacket, epoch: Epoch, seconds: int, *, waits: bool = False) -> bytes:
        """Make the packet that is sent for ``packet`` and remember it; ``released`` makes one that waits
        anew."""
        extended = packet.extended + epoch.sequence_offset - self._shift
        number = 0 if waits and self.peer.measured else self._number()
        sent = self.sent[extended % SENT_RING] = Sent(extended, epoch, packet.extended, number, seconds)
        sent.waiting = waits
        self.made = sent
        sent.marker, sent.fill = packet.marker, self._fill
        if self.filter is not None:
            sent.marker = self.filter.marker
            sent.mask, sent.targets = self.filter.mask(packet, epoch.stream.layers.structure)
        newest = extended > self.last
        if newest:
            self.last = extended
            self.last_timestamp = (packet.timestamp + epoch.timestamp_offset) & 0xFFFFFFFF
            self.last_sent_ns = packet.arrival_ns
            told = element(packet, epoch.dependency_id) if epoch.dependency_id else None
            if told is not None and len(told) >= 3:
                self._frame = (_frame_number(told) + epoch.frame_offset) & 0xFFFF
        self.packets += 1
        if not sent.fill:
            self.bytes += packet.payload_end - epoch.sent_from(packet)
        if self.budget < RESEND_BUDGET:
            self.budget += 1
        return self.build(
            packet,
            sent,
            self.ssrc,
            epoch.payload_type,
            extended & 0xFFFF,
            number,
            seconds,
            None,
            newest=newest,
        )

    def released(self, packet: RtpPacket, sent: Sent, seconds: int) -> bytes:
        """Make a packet that has waited: it has its number and its sending time now."""
        sent.waiting = False
        sent.seconds = seconds
        if sent.number is not None and self.transport_cc_id:
            sent.number = self.peer.next_number()
        sequence, payload_type = sent.extended & 0xFFFF, sent.epoch.payload_type
        return self.build(packet, sent, self.ssrc, payload_type, sequence, sent.number, seconds, None)

    def _number(self) -> int | None:
        """Draw the next number; ``None``: neither number nor sending time is sent."""
        if not self.peer.measured:
            return None
        return self.peer.next_number() if self.transport_cc_id else 0

    def again(self, sequence: int, now_ns: int, seconds: int) -> bytes | None:
        """Make the packet that answers a NACK for ``sequence``; ``None`` if that cannot or should not be."""
        sent = self.sent[sequence % SENT_RING]
        if sent is None or sent.extended & 0xFFFF != sequence or sent.waiting or self.budget <= 0:
            self.missed += 1
            return None
        epoch = sent.epoch
        packet = epoch.stream.cache.get(sent.received)
        if packet is None or now_ns - sent.resent_ns < RESEND_INTERVAL_NS:
            self.missed += 1
            return None
        sent.resent_ns = now_ns
        self.budget -= 1
        self.retransmitted += 1
        if epoch.rtx_payload_type is None or self.parameters.rtx_ssrc is None:
            return self.build(
                packet, sent, self.ssrc, epoch.payload_type, sequence, sent.number, sent.seconds, None
            )
        return self._as_rtx(packet, sent, self.parameters.rtx_ssrc, epoch.rtx_payload_type, sequence, seconds)

    def _as_rtx(
        self, packet: RtpPacket, sent: Sent, ssrc: int, payload_type: int, original: int, seconds: int
    ) -> bytes:
        number = self._number()
        sequence = self.next_rtx & 0xFFFF
        self.next_rtx += 1
        return self.build(packet, sent, ssrc, payload_type, sequence, number, seconds, original)

    def filler(self, at: int, seconds: int) -> tuple[bytes, int]:
        """Make a packet that only fills the line: a cached one, from the extended number ``at`` downwards, as
        RTX, else one of nothing but padding. Return it with where to look next; empty if there is no RTX."""
        ssrc, current = self.parameters.rtx_ssrc, self.epoch
        if ssrc is None or current is None or current.rtx_payload_type is None:
            return b"", at
        while at > self.last - SENT_RING and at >= 0:
            sent = self.sent[at % SENT_RING]
            at -= 1
            if sent is None or sent.fill or sent.waiting or sent.extended != at + 1:
                continue
            if sent.epoch.rtx_payload_type is None:
                continue
            packet = sent.epoch.stream.cache.get(sent.received)
            if packet is None or packet.payload_end - packet.payload_start < MIN_FILLER_BYTES:
                continue
            original = sent.extended & 0xFFFF
            return self._as_rtx(packet, sent, ssrc, sent.epoch.rtx_payload_type, original, seconds), at
        number = self._number()
        extension = self._written(self._own(number, seconds), two_byte=self._two_byte)
        first = 0xB0 if extension else 0xA0
        head = _HEADER.pack(
            first, current.rtx_payload_type, self.next_rtx & 0xFFFF, self.last_timestamp, ssrc
        )
        self.next_rtx += 1
        return head + extension + bytes(254) + b"\xff", at

    def build(
        self,
        packet: RtpPacket,
        sent: Sent,
        ssrc: int,
        payload_type: int,
        sequence: int,
        number: int | None,
        seconds: int,
        original: int | None,
        *,
        newest: bool = False,
    ) -> bytes:
        """Rewrite a packet: plain, or as RTX of the number ``original``."""
        data, epoch = packet.data, sent.epoch
        if sent.fill:
            extension = self._written(self._own(number, seconds), two_byte=self._two_byte)
            timestamp = (packet.timestamp + epoch.timestamp_offset) & 0xFFFFFFFF
            head = _HEADER.pack(0xB0 if extension else 0xA0, payload_type, sequence, timestamp, ssrc)
            return head + extension + (b"" if original is None else original.to_bytes(2, "big")) + b"\x01"
        extension = self._extension(packet, sent, number, seconds)
        first = 0x80 | data[0] & 0x2F | (0x10 if extension else 0)
        timestamp = (packet.timestamp + epoch.timestamp_offset) & 0xFFFFFFFF
        payload = data[epoch.sent_from(packet) :]
        if packet.payload_type == epoch.red_from and epoch.red_to is not None:
            size = packet.payload_end - packet.payload_start
            payload = red.renumbered(payload[:size], epoch.payload_type) + payload[size:]
            payload_type = epoch.red_to
        head = _HEADER.pack(first, sent.marker | payload_type, sequence, timestamp, ssrc)
        if epoch.stream.codec == VP8:
            payload = self._renumber(packet, epoch, payload, newest=newest)
        if original is not None:
            payload = original.to_bytes(2, "big") + payload
        return head + data[12 : packet.csrcs_end] + extension + payload

    def _renumber(self, packet: RtpPacket, epoch: Epoch, payload: bytes, *, newest: bool) -> bytes:
        numbers = packet.vp8
        if numbers is None:
            numbers = packet.vp8 = vp8_numbers(packet.data, packet.payload_start, packet.payload_end)
        picture, bits, index = numbers
        changed: bytearray | None = None
        if epoch.picture_offset or epoch.index_offset:
            changed = bytearray(payload)
        if bits:
            value = (_picture_id(packet.data, picture, bits) + epoch.picture_offset) & (1 << bits) - 1
            if changed is not None:
                at = picture - packet.payload_start
                if bits == 15:
                    changed[at : at + 2] = (value | 0x8000).to_bytes(2, "big")
                else:
                    changed[at] = value
            if newest:
                self._picture = value
        if index:
            value = (packet.data[index] + epoch.index_offset) & 0xFF
            if changed is not None:
                changed[index - packet.payload_start] = value
            if newest:
                self._index = value
        return payload if changed is None else bytes(changed)

    def _extension(self, packet: RtpPacket, sent: Sent, number: int | None, seconds: int) -> bytes:
        epoch = sent.epoch
        copied = packet.copied.get(epoch.mapping)
        if copied is None:
            mapping = dict(epoch.mapping)
            copied = packet.copied[epoch.mapping] = [
                (mapping[found], packet.data[at : at + length])
                for found, at, length in packet.elements
                if found in mapping
            ]
        two_byte = self._two_byte or (
            packet.two_byte
            and self.parameters.allow_mixed
            and any(len(value) > 16 or not value for _, value in copied)
        )
        if epoch.dependency_id and (epoch.frame_offset or sent.targets):
            described = dict(epoch.mapping).get(epoch.dependency_id)
            copied = [
                (i, self._described(value, sent, two_byte=two_byte) if i == described else value)
                for i, value in copied
            ]
        return self._written(self._own(number, seconds) + copied, two_byte=two_byte)

    def _described(self, value: bytes, sent: Sent, *, two_byte: bool) -> bytes:
        room = 250 if two_byte else 11  # it grows by up to 5 bytes
        targets = 0 if len(value) > room else sent.targets
        return rewrite_descriptor(value, sent.epoch.frame_offset, sent.mask, targets)

    def _own(self, number: int | None, seconds: int) -> list[tuple[int, bytes]]:
        values: list[tuple[int, bytes]] = []
        if self._mid_id:
            values.append((self._mid_id, self._mid))
        if number is None:
            return values
        if self._abs_id:
            values.append((self._abs_id, seconds.to_bytes(3, "big")))
        if self.transport_cc_id:
            values.append((self.transport_cc_id, number.to_bytes(2, "big")))
        return values

    def _written(self, values: list[tuple[int, bytes]], *, two_byte: bool) -> bytes:
        if two_byte:
            body = b"".join([bytes((i, len(v))) + v for i, v in values])
            profile = b"\x10\x00"
        else:
            body = b"".join([_ONE_BYTE[i << 4 | len(v) - 1] + v for i, v in values if 0 < len(v) <= 16])
            profile = b"\xbe\xde"
        if not body:
            return b""
        words = (len(body) + 3) // 4
        return profile + words.to_bytes(2, "big") + body.ljust(4 * words, b"\0")

    def stats(self) -> RouteStats:
        """Return the counters."""
        epoch = self.epoch
        return RouteStats(
            stream=self.stream.number if self.stream else 0,
            peer=self.peer.number,
            ssrc=self.ssrc,
            packets=self.packets,
            bytes=self.bytes,
            retransmitted=self.retransmitted,
            retransmit_missed=self.missed,
            last_sequence=self.last,
            last_timestamp=self.last_timestamp,
            last_sent_ns=self.last_sent_ns,
            sequence_offset=epoch.sequence_offset & 0xFFFF if epoch else 0,
            timestamp_offset=epoch.timestamp_offset if epoch else 0,
            paused=self.paused,
            waiting=self.waiting or self.pending is not None,
            pending_stream=self.pending.number if self.pending else 0,
            padding=self.padding,
            fraction_lost=self.fraction_lost,
            report_ns=self.report_ns,
            spatial=self.filter.now[0] if self.filter else ALL,
            temporal=self.filter.now[1] if self.filter else ALL,
        )


def _frame_number(descriptor: bytes) -> int:
    return descriptor[1] << 8 | descriptor[2]


def _picture_id(data: bytes, at: int, bits: int) -> int:
    return (data[at] & 0x7F) << 8 | data[at + 1] if bits == 15 else data[at] & 0x7F
