"""Scalable streams as Chromium 156 sends them: VP9 and AV1 in three spatial and three temporal layers."""

from __future__ import annotations

from dataclasses import dataclass

from mediaserver.forwarder import DEPENDENCY
from tests.forwarder.ends import PUBLISHED, rtp

DEPENDENCY_ID = 13
EXTENSIONS = {**PUBLISHED, DEPENDENCY: DEPENDENCY_ID}
STRUCTURES = {
    "L1T2": "80000180011ea85141010c0efc086c",
    "L1T3": "800001800214eaa860414d141020842703bf021b",
    "L2T2_KEY": "8000018003187aaa0100a0a014d1413451802190888a194077c04340efc086c0",
    "L3T3_KEY": "c0000180081485214eaaaaa8000600004000100002aa80a8000600004000100002a000a8000600004000"
    "16d549241b5524906d54923157e001974ca864330e222396eca8655304224390eca8775300ef008601df010d03bf021b",
    "L3T3": "c1000180081485214eafffaaaa863cf0430c10c302afc0aaa0063c00430010c002a000a80006000040001d95"
    "4926e082b04a0941b820ac1282503157f974000ca864330e222222eca8655304224230eca8775300ef008601df010d03"
    "bf021b",
}
"""Dependency descriptors of first packets, captured."""
TEMPORAL = (0, 2, 1, 2)
"""Temporal layers of the pictures of L3T3_KEY, again and again."""
_TEMPLATES = {0: 1, 1: 2, 2: 3}
"""Temporal layer to template of L3T3_KEY, spatial layer 0; the others' are 5 and 10 further."""


@dataclass
class Sent:
    """A packet and what it is."""

    data: bytes
    spatial: int
    temporal: int
    picture: int
    key: bool
    last: bool
    """Of its layer's frame."""


class ScalableStream:
    """Makes packets of L3T3_KEY, picture by picture."""

    def __init__(
        self,
        codec: str,
        *,
        ssrc: int = 0x1111,
        packets: int = 2,
        layers: int = 3,
        first: int = 1000,
        dependency_id: int = DEPENDENCY_ID,
    ) -> None:
        """``packets`` for each layer's frame; ``first`` is the first sequence number."""
        self.codec, self.ssrc, self.packets, self.layers = codec, ssrc, packets, layers
        self.dependency_id = dependency_id
        self.sequence = first
        self.picture = self.frame = 0

    def next(self, *, key: bool = False) -> list[Sent]:
        """Make the packets of the next picture; the first is a keyframe."""
        key = key or self.picture == 0
        if key:
            self._since = 0
        temporal = TEMPORAL[self._since % 4]
        made = []
        for spatial in range(self.layers):
            for at in range(self.packets):
                first, last = at == 0, at == self.packets - 1
                made.append(
                    Sent(
                        rtp(
                            self.sequence,
                            ssrc=self.ssrc,
                            timestamp=3000 * self.picture,
                            marker=last and spatial == self.layers - 1,
                            payload=self._payload(spatial, temporal, key=key, first=first, last=last),
                            elements=[
                                (self.dependency_id, self._descriptor(spatial, temporal, key, first, last))
                            ],
                            two_byte=True,
                        ),
                        spatial,
                        temporal,
                        self.picture,
                        key,
                        last,
                    )
                )
                self.sequence += 1
            self.frame += 1
        self.picture += 1
        self._since += 1
        return made

    def pictures(self, count: int) -> list[Sent]:
        """Make so many pictures."""
        return [packet for _ in range(count) for packet in self.next()]

    def _payload(self, spatial: int, temporal: int, *, key: bool, first: bool, last: bool) -> bytes:
        body = bytes((spatial, temporal, self.picture & 0xFF, first, last)) * 8
        if self.codec == "AV1":
            return bytes((0x18 if key and first and not spatial else 0x10 if first else 0x90,)) + body
        # I, L and F; P on all but keyframes; B and E; U always, as Chromium says it.
        flags = 0xB0 | (0 if key else 0x40) | (0x08 if first else 0) | (0x04 if last else 0)
        number = 0x8000 | self.picture & 0x7FFF
        layer = temporal << 5 | 0x10 | spatial << 1 | (key and spatial > 0)
        references = b"" if key else b"\x02"
        return bytes((flags,)) + number.to_bytes(2, "big") + bytes((layer,)) + references + body

    def _descriptor(self, spatial: int, temporal: int, key: bool, first: bool, last: bool) -> bytes:
        template = 5 * spatial + (0 if key else _TEMPLATES[temporal])
        head = bytes((first << 7 | last << 6 | template,)) + (self.frame & 0xFFFF).to_bytes(2, "big")
        with_structure = key and first and not spatial
        return head + (bytes.fromhex(STRUCTURES["L3T3_KEY"])[3:] if with_structure else b"")
