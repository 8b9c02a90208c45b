"""Scalable streams: which layer a packet is of, and what of the layers a route sends.

A stream in spatial and temporal layers (SVC) is one row of numbers. A route that leaves layers out sends the
rest without holes: a sent number is smaller than in the plain epoch (``route.py``) by what was left out
before it::

    received   10(S0) 11(S1) 12(S2) 13(S0) 14(S1) 15(S2)      only S0 and S1:
    sent            0      1             2      3             and the marker on 11 and 14

What is lost on the way here keeps its number free. If it comes late and turns out to be of a layer that is
left out, a packet of nothing but padding takes the number: the subscriber waits for nothing.

Layers are read from the VP9 payload descriptor (RFC 9628), or from the dependency descriptor (appendix A of
the AV1 RTP payload format, https://aomediacodec.github.io/av1-rtp-spec/). The native twin is
``csrc/layers.c``.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final

from mediaserver.forwarder.interface import ForwarderError
from mediaserver.forwarder.wire import VP9, RtpPacket, element

ALL: Final = 255
"""No layer is left out."""
COUNTED: Final = 4
"""Spatial and temporal layers that are counted; higher ones are counted as the highest of these."""
WINDOW: Final = 1024
MAX_TEMPLATES: Final = 64
_SWITCH: Final = 2


def layer_rows(counts: Sequence[int]) -> list[list[int]]:
    """Return counts of layers, spatial × COUNTED + temporal, as rows of temporal ones."""
    return [list(counts[at : at + COUNTED]) for at in range(0, COUNTED * COUNTED, COUNTED)]


def layers_wanted(spatial: int | None, temporal: int | None) -> tuple[int, int]:
    """Return the highest layers as bytes, 255 for all. Raises ``ForwarderError``."""
    wanted = tuple(255 if layer is None else layer for layer in (spatial, temporal))
    if any(not 0 <= layer <= 255 for layer in wanted):
        raise ForwarderError(f"no such layers: {spatial}, {temporal}")
    return wanted[0], wanted[1]


class Layered:
    """What a packet says of its layer."""

    __slots__ = ("ends", "generation", "spatial", "starts", "temporal", "up")

    def __init__(self, spatial: int, temporal: int, up: int, *, starts: bool, ends: bool) -> None:
        self.spatial = spatial
        self.temporal = temporal
        self.up = up
        """After this picture pictures up to this temporal layer need none that was left out before."""
        self.starts = starts
        """First packet of its layer's frame."""
        self.ends = ends
        self.generation = 0
        """Of the structure in force; see ``Structure``."""


class _Bits:
    """Bits of a descriptor, most significant first; reading past the end raises ``IndexError``."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def read(self, count: int) -> int:
        end = self.at + count
        if end > 8 * len(self.data):
            raise IndexError
        first, last = self.at // 8, (end + 7) // 8
        value = int.from_bytes(self.data[first:last], "big") >> (8 * last - end)
        self.at = end
        return value & (1 << count) - 1

    def below(self, limit: int) -> int:
        """Read ns(limit): a value below ``limit`` in as few bits as possible."""
        width = limit.bit_length()
        spare = (1 << width) - limit
        value = self.read(width - 1)
        return value if value < spare else (value << 1 | self.read(1)) - spare


class Structure:
    """Templates and decode targets of a stream, told with a keyframe and in force until the next."""

    __slots__ = ("active", "end", "generation", "offset", "spatial", "targets", "temporal", "up")

    def __init__(self, bits: _Bits) -> None:
        """Read ``template_dependency_structure``. Raises ``IndexError`` if it is cut off, ``ValueError`` if
        it says what cannot be."""
        self.generation = 0
        self.offset = bits.read(6)
        count = bits.read(5) + 1
        self.spatial: list[int] = []
        self.temporal: list[int] = []
        self._layers(bits)
        templates = len(self.spatial)
        indications = [[bits.read(2) for _ in range(count)] for _ in range(templates)]
        for _ in range(templates):
            while bits.read(1):
                bits.read(4)
        chains = bits.below(count + 1)
        if chains:
            for _ in range(count):
                bits.below(chains)
            for _ in range(templates * chains):
                bits.read(4)
        if bits.read(1):
            for _ in range(self.spatial[-1] + 1):
                bits.read(32)
        self.targets: list[tuple[int, int]] = []
        """(spatial, temporal) of each decode target."""
        for target in range(count):
            of = [at for at in range(templates) if indications[at][target]]
            self.targets.append(
                (
                    max((self.spatial[at] for at in of), default=0),
                    max((self.temporal[at] for at in of), default=0),
                )
            )
        self.up = [
            max(
                (
                    temporal
                    for (spatial, temporal), told in zip(self.targets, indications[at], strict=True)
                    if spatial == self.spatial[at] and told == _SWITCH
                ),
                default=self.temporal[at],
            )
            for at in range(templates)
        ]
        self.active = (1 << count) - 1
        self.end = bits.at

    def _layers(self, bits: _Bits) -> None:
        spatial = temporal = 0
        while len(self.spatial) < MAX_TEMPLATES:
            self.spatial.append(spatial)
            self.temporal.append(temporal)
            step = bits.read(2)
            if step == 3:
                return
            if step == 1:
                temporal += 1
            elif step == 2:
                spatial, temporal = spatial + 1, 0
            if spatial > 3 or temporal > 7:
                break
        raise ValueError

    def mask(self, spatial: int, temporal: int) -> int:
        """Return the active decode targets within these layers, bit 0 for the first."""
        inside = (1 << at for at, (s, t) in enumerate(self.targets) if s <= spatial and t <= temporal)
        return sum(inside) & self.active


class LayerReader:
    """Reads the layer of each packet of one stream."""

    def __init__(self, codec: int, dependency_id: int) -> None:
        self._codec = codec
        self._id = dependency_id
        self.structure: Structure | None = None
        self.bytes = [0] * (COUNTED * COUNTED)
        """Payload octets by spatial layer × COUNTED + temporal layer."""

    def read(self, packet: RtpPacket) -> None:
        """Set ``packet.layered``, None if nothing is told or it is malformed."""
        value = element(packet, self._id) if self._id else None
        found = self._dependency(value) if value is not None else None
        if self._codec == VP9:
            found = vp9_layer(packet.data, packet.payload_start, packet.payload_end)
        packet.layered = found
        if found is not None:
            if self.structure is not None:
                found.generation = self.structure.generation
            at = min(found.spatial, COUNTED - 1) * COUNTED + min(found.temporal, COUNTED - 1)
            self.bytes[at] += packet.payload_end - packet.payload_start

    def _dependency(self, data: bytes) -> Layered | None:
        if len(data) < 3:
            return None
        if len(data) > 3:
            try:
                self._extended(_Bits(data))
            except (IndexError, ValueError):
                return None
        structure = self.structure
        if structure is None:
            return None
        template = ((data[0] & 0x3F) - structure.offset) % MAX_TEMPLATES
        if template >= len(structure.spatial):
            return None
        return Layered(
            structure.spatial[template],
            structure.temporal[template],
            structure.up[template],
            starts=data[0] & 0x80 != 0,
            ends=data[0] & 0x40 != 0,
        )

    def _extended(self, bits: _Bits) -> None:
        bits.at = 24
        flags = bits.read(5)
        structure = self.structure
        if flags & 0x10:
            generation = 0 if structure is None else structure.generation + 1 & 0xFF
            structure = Structure(bits)
            structure.generation = generation
        if flags & 0x08 and structure is not None:
            active = bits.read(len(structure.targets))
            structure.active = active
        self.structure = structure


def vp9_layer(data: bytes, start: int, end: int) -> Layered | None:
    """Read the layer of a VP9 payload (RFC 9628 section 4.2); None if it says none or is cut off."""
    if start >= end:
        return None
    first = data[start]
    if not first & 0x20:
        return None
    at = start + 1
    if first & 0x80:
        at += 2 if at < end and data[at] & 0x80 else 1
    if at >= end:
        return None
    told = data[at]
    temporal = told >> 5
    return Layered(
        told >> 1 & 7,
        temporal,
        7 if told & 0x10 else temporal,
        starts=first & 0x08 != 0,
        ends=first & 0x04 != 0,
    )


def rewrite_descriptor(data: bytes, frame_offset: int, mask: int, targets: int) -> bytes:
    """Write a dependency descriptor anew: its frame number moved, and with ``targets`` > 0 with ``mask`` as
    the active decode targets. What cannot be read only has its number moved, if it is long enough for one."""
    if len(data) < 3:
        return data
    number = ((data[1] << 8 | data[2]) + frame_offset) & 0xFFFF
    head = data[:1] + number.to_bytes(2, "big")
    if not targets:
        return head + data[3:]
    if len(data) == 3:
        return head + _packed(0x08 << targets | mask, 5 + targets)
    bits = _Bits(data)
    bits.at = 24
    flags = bits.read(5)
    try:
        if flags & 0x10 and len(Structure(bits).targets) != targets:
            return head + data[3:]
        middle = bits.at
        if flags & 0x08:
            bits.read(targets)
    except (IndexError, ValueError):
        return head + data[3:]
    whole, size = int.from_bytes(data, "big"), 8 * len(data)
    left = size - bits.at
    value = flags | 0x08
    value = value << middle - 29 | whole >> size - middle & (1 << middle - 29) - 1
    value = value << targets | mask
    value = value << left | whole & (1 << left) - 1
    return head + _packed(value, middle - 24 + targets + left)


def _packed(value: int, bits: int) -> bytes:
    size = (bits + 7) // 8
    return (value << 8 * size - bits).to_bytes(size, "big")


class Verdict(Enum):
    """What becomes of a packet."""

    SEND = 1
    LEAVE_OUT = 2
    FILL = 3
    """Its number is free and must not stay so: padding takes it."""


class LayerFilter:
    """What one route leaves out of its stream."""

    __slots__ = (
        "_left_out",
        "_picture",
        "highest",
        "marker",
        "masked",
        "now",
        "shift",
        "wanted",
        "window",
    )

    def __init__(self, highest: int, picture: int | None) -> None:
        """Begin with all layers. ``highest`` is the last number sent without a filter, ``picture`` its
        time stamp."""
        self.wanted = (ALL, ALL)
        """Highest spatial and temporal layer."""
        self.now = (ALL, ALL)
        self.masked = False
        """Decode targets were taken off: from now on the descriptors say which ones are left."""
        self.shift = 0
        """Of the packet that was judged last: how many were left out before it; below, its marker."""
        self.marker = 0
        self.window: list[tuple[int, tuple[int, int]]] = []
        self._picture: int | None = None
        self.begin(highest)
        self._picture = picture
        self.window = [(0, self.now)] * WINDOW

    def begin(self, highest: int) -> None:
        """Begin anew after the number ``highest``, with a keyframe."""
        self.highest = highest
        self._left_out = 0
        self._picture = None
        self.now = self.wanted
        self.masked = self.masked or self.now != (ALL, ALL)

    def judge(self, packet: RtpPacket) -> Verdict:
        """Decide on a packet and set ``shift`` and ``marker`` for it."""
        number, layer = packet.extended, packet.layered
        if number > self.highest:
            late = False
            for missing in range(max(self.highest + 1, number - WINDOW + 1), number):
                self.window[missing % WINDOW] = self._left_out, self.now
            self.highest = number
            if layer is not None:
                self._advance(packet, layer)
            self.window[number % WINDOW] = self._left_out, self.now
        elif number <= self.highest - WINDOW:
            return Verdict.LEAVE_OUT
        else:
            late = True
        self.shift, (spatial, temporal) = self.window[number % WINDOW]
        self.marker = packet.marker
        if layer is None:
            return Verdict.SEND
        if layer.spatial > spatial or layer.temporal > temporal:
            if late:
                return Verdict.FILL
            self._left_out += 1
            return Verdict.LEAVE_OUT
        if layer.ends and layer.spatial == spatial:
            self.marker = 0x80
        return Verdict.SEND

    def _advance(self, packet: RtpPacket, layer: Layered) -> None:
        """Go down at a new picture, up at a keyframe; temporally up where the stream says that one can."""
        if packet.timestamp == self._picture and not packet.keyframe:
            return
        self._picture = packet.timestamp
        (spatial, temporal), wanted = self.now, self.wanted
        if packet.keyframe:
            spatial, temporal = wanted
        else:
            spatial, temporal = min(spatial, wanted[0]), min(temporal, wanted[1])
            begins = layer.starts and layer.spatial == 0 and layer.temporal <= temporal
            if begins and layer.up > temporal:
                temporal = wanted[1] if layer.up >= 7 else min(wanted[1], layer.up)
        self.now = spatial, temporal
        self.masked = self.masked or self.now != (ALL, ALL)

    def mask(self, packet: RtpPacket, structure: Structure | None) -> tuple[int, int]:
        """Return (mask, number of decode targets) to tell with this packet; (0, 0): nothing."""
        layer = packet.layered
        if not self.masked or structure is None or layer is None:
            return 0, 0
        if not layer.starts or layer.spatial or layer.generation != structure.generation:
            return 0, 0
        return structure.mask(*self.window[packet.extended % WINDOW][1]), len(structure.targets)
