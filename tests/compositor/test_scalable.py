"""Scalable streams as browsers send them: the best spatial layer is shown, whichever come and go."""

from __future__ import annotations

from pathlib import Path

import pytest

from compositor.decode import VideoDecoder
from compositor.timeline import Frame
from mediaserver.forwarder.layers import LayerReader
from mediaserver.forwarder.wire import CODECS, RtpPacket, parse_rtp
from recorder.depacketise import depacketiser
from tests.compositor.calls import track

STREAMS = sorted(Path(__file__).with_name("scalable").glob("*.rtp"))
DEPENDENCY_ID = 13
WIDTHS = (240, 480, 960)


def read(path: Path) -> tuple[str, list[RtpPacket]]:
    """Return a stream's media type and its packets, with their layers."""
    mime = f"video/{path.name.partition('-')[0].upper()}"
    reader = LayerReader(CODECS[mime.lower()], DEPENDENCY_ID)
    data, at, packets = path.read_bytes(), 0, []
    while at < len(data):
        size = int.from_bytes(data[at : at + 2], "big")
        packet = parse_rtp(data[at + 2 : at + 2 + size], 0)
        assert packet is not None
        reader.read(packet)
        packets.append(packet)
        at += 2 + size
    return mime, packets


def shown(mime: str, packets: list[RtpPacket], tops: list[int]) -> list[int]:
    """Return the width shown of each picture when only spatial layers up to ``tops`` were recorded."""
    assembled = depacketiser(mime)
    decoder = VideoDecoder(track(1, "customer#1", mime))
    timestamps = list(dict.fromkeys(packet.timestamp for packet in packets))
    found = []
    for number, timestamp in enumerate(timestamps):
        kept = [
            packet
            for packet in packets
            if packet.timestamp == timestamp
            and packet.layered is not None
            and packet.layered.spatial <= tops[number]
        ]
        for packet in kept:
            payload = packet.data[packet.payload_start : packet.payload_end]
            for made in assembled.push(payload, packet.timestamp, packet is kept[-1]):
                assert not made.damaged
                assert not made.lost_before
                frame = Frame(1, number, 0, made.data, made.keyframe, False, 0)
                picture = decoder.push(frame)
                assert picture is not None
                found.append(picture.planes.y.shape[1])
    assert decoder.damage.errors == 0
    return found


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_the_best_layer_is_shown(path: Path) -> None:
    mime, packets = read(path)
    assert shown(mime, packets, [2] * 12) == [960] * 12


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
@pytest.mark.parametrize("low", [0, 1])
def test_a_layer_that_goes_leaves_the_picture_below(path: Path, low: int) -> None:
    mime, packets = read(path)
    assert shown(mime, packets, [2] * 5 + [low] * 7) == [960] * 5 + [WIDTHS[low]] * 7


def test_all_streams_are_there() -> None:
    assert [path.stem for path in STREAMS] == ["av1-l3t3", "av1-l3t3_key", "vp9-l3t3", "vp9-l3t3_key"]
