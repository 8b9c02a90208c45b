"""What is known of a stream that a peer publishes: sequence, loss, jitter, and the packets that can be
resent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mediaserver.forwarder.counters import StreamStats
from mediaserver.forwarder.interface import (
    AUDIO_LEVEL,
    CACHE_PACKETS,
    DEPENDENCY,
    StreamParameters,
)
from mediaserver.forwarder.layers import LayerReader
from mediaserver.forwarder.wire import CODECS, RtpPacket, is_keyframe_start

if TYPE_CHECKING:
    from mediaserver.forwarder.peer import Peer
    from mediaserver.forwarder.route import Route

CACHE_TOTAL_BYTES: Final = 256 << 20
"""Hard cap over all streams of a forwarder: about one second of 2,000 Mbit/s."""

_CYCLE: Final = 1 << 16
_WINDOW_MASK: Final = CACHE_PACKETS - 1


class CacheBudget:
    """Bytes that the caches of all streams of a forwarder hold together."""

    __slots__ = ("used",)

    def __init__(self) -> None:
        self.used = 0


class Stream:
    """One received RTP stream. Extended sequence numbers begin in cycle 1, so that a packet before the first
    fits."""

    def __init__(
        self, number: int, peer: Peer, ssrc: int, parameters: StreamParameters, budget: CacheBudget
    ) -> None:
        self.number = number
        self.peer = peer
        self.ssrc = ssrc
        self.parameters = parameters
        self.track = parameters.track
        self.tap_from: Stream | None = None
        self.tap_floor = -1
        self.payload_type = parameters.payload_type
        self.rtx_payload_type = parameters.rtx_payload_type
        self.red_payload_type = parameters.red_payload_type
        self.clock_rate = parameters.clock_rate
        self.codec = CODECS.get(parameters.mime.lower(), 0) if parameters.kind == "video" else 0
        self.rtx_ssrc = parameters.rtx_ssrc
        self.audio_level_id = parameters.extensions.get(AUDIO_LEVEL, 0)
        self.layers = LayerReader(self.codec, parameters.extensions.get(DEPENDENCY, 0))
        self.routes: list[Route] = []
        self.packets = self.bytes = self.recovered = self.duplicates = self.late = 0
        self.other_payload = self.malformed = self.keyframes = 0
        self.base = self.highest = -1
        self.jitter_x16 = 0
        self.last_timestamp = self.last_arrival_ns = self.first_arrival_ns = self.last_keyframe_ns = 0
        self.keyframe_extended = -1
        self.audio_level = 127
        self.voice = False
        self._transit = 0
        self._seen = [-1] * CACHE_PACKETS
        self._keep_ns = parameters.keep_ms * 1_000_000
        self._budget = budget
        self.cache: dict[int, RtpPacket] = {}
        self.cached_bytes = 0

    def account(self, packet: RtpPacket, *, recovered: bool) -> tuple[int, int] | bool | None:
        """Count a packet and set its ``extended`` and ``keyframe``.

        Return ``False`` if it must be dropped (twice, too late), the gap ``(first, last)`` before it, or
        ``None``.
        """
        gap: tuple[int, int] | None = None
        if self.highest < 0:
            extended = packet.sequence + _CYCLE
            self.base = self.highest = extended
            self.first_arrival_ns = packet.arrival_ns
            newest = True
        else:
            delta = (packet.sequence - self.highest) & 0xFFFF
            if delta >= 0x8000:
                delta -= _CYCLE
            extended = self.highest + delta
            if delta <= -CACHE_PACKETS or extended < 0:
                self.late += 1
                return False
            if self._seen[extended & _WINDOW_MASK] == extended:
                self.duplicates += 1
                return False
            newest = delta > 0
            if delta > 1:
                gap = (self.highest + 1) & 0xFFFF, (extended - 1) & 0xFFFF
            if newest:
                self.highest = extended
            elif extended < self.base:
                self.base = extended
        self._seen[extended & _WINDOW_MASK] = extended
        packet.extended = extended
        self.packets += 1
        self.bytes += packet.payload_end - packet.payload_start
        if recovered:
            self.recovered += 1
        else:
            self._measure_jitter(packet)
        if newest:
            self.last_timestamp = packet.timestamp
            self.last_arrival_ns = packet.arrival_ns
        if self.codec and is_keyframe_start(
            self.codec, packet.data, packet.payload_start, packet.payload_end
        ):
            packet.keyframe = True
            self.keyframes += 1
            self.last_keyframe_ns = packet.arrival_ns
            # H.264 in Chromium: parameter sets, then the IDR picture in packets of their own; a replay begins
            # with the former.
            first = self.cache.get(self.keyframe_extended)
            same = first is not None and first.timestamp == packet.timestamp
            if extended > self.keyframe_extended and not same:
                self.keyframe_extended = extended
        if self.codec:
            self.layers.read(packet)
        if self.audio_level_id:
            for number, at, length in packet.elements:
                if number == self.audio_level_id and length:
                    self.audio_level = packet.data[at] & 0x7F
                    self.voice = packet.data[at] & 0x80 != 0
        return gap

    def _measure_jitter(self, packet: RtpPacket) -> None:
        # RFC 3550 appendix A.8, in sixteenths.
        arrival = packet.arrival_ns // 1000 * self.clock_rate // 1_000_000
        transit = (arrival - packet.timestamp) & 0xFFFFFFFF
        if self.packets > 1:
            difference = (transit - self._transit) & 0xFFFFFFFF
            if difference >= 0x80000000:
                difference = 0x100000000 - difference
            self.jitter_x16 += difference - ((self.jitter_x16 + 8) >> 4)
        self._transit = transit

    def stay(self) -> bool:
        """Call a move of a tap to this stream off; false if it has taken place."""
        self.tap_from = None
        return self.track is None

    def keep(self, packet: RtpPacket) -> None:
        """Put a packet into the cache; old ones leave by age, number, the stream's bytes and the
        forwarder's."""
        size = len(packet.data)
        self.evict(packet.arrival_ns - self._keep_ns)
        while self.cache and (
            self.cached_bytes + size > self.parameters.keep_bytes
            or len(self.cache) >= CACHE_PACKETS
            or self._budget.used + size > CACHE_TOTAL_BYTES
        ):
            self._drop_oldest()
        if size > self.parameters.keep_bytes or self._budget.used + size > CACHE_TOTAL_BYTES:
            return
        self.cache[packet.extended] = packet
        self.cached_bytes += size
        self._budget.used += size

    def evict(self, before_ns: int) -> None:
        """Drop what arrived before ``before_ns``."""
        while self.cache and next(iter(self.cache.values())).arrival_ns < before_ns:
            self._drop_oldest()

    def clear(self) -> None:
        """Drop everything."""
        while self.cache:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        oldest = next(iter(self.cache))
        size = len(self.cache.pop(oldest).data)
        self.cached_bytes -= size
        self._budget.used -= size

    def missing(self, span: int) -> list[int]:
        """Return what ``Forwarder.missing`` does."""
        if self.highest < 0:
            return []
        first = max(self.base, self.highest - min(span, CACHE_PACKETS - 1) + 1)
        found = [e & 0xFFFF for e in range(first, self.highest) if self._seen[e & _WINDOW_MASK] != e]
        return found[:256]

    def stats(self) -> StreamStats:
        """Return the counters."""
        began = self.highest >= 0
        expected = self.highest - self.base + 1 if began else 0
        return StreamStats(
            ssrc=self.ssrc,
            packets=self.packets,
            bytes=self.bytes,
            lost=expected - self.packets,
            expected=expected,
            base_sequence=max(self.base - _CYCLE, 0) if began else 0,
            max_sequence=max(self.highest - _CYCLE, 0) if began else 0,
            jitter=self.jitter_x16 >> 4,
            last_timestamp=self.last_timestamp,
            last_arrival_ns=self.last_arrival_ns,
            first_arrival_ns=self.first_arrival_ns,
            last_keyframe_ns=self.last_keyframe_ns,
            keyframes=self.keyframes,
            recovered=self.recovered,
            duplicates=self.duplicates,
            late=self.late,
            other_payload=self.other_payload,
            malformed=self.malformed,
            audio_level=self.audio_level,
            voice=self.voice,
            cached_packets=len(self.cache),
            cached_bytes=self.cached_bytes,
        )
