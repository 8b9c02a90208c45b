"""RTCP: round trips, every truncation, hostile bytes, captured packets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorder import rtcp
from recorder.rtcp import (
    Bye,
    FullIntraRequest,
    Nack,
    PictureLossIndication,
    ReceiverReport,
    Remb,
    ReportBlock,
    RtcpPacket,
    SenderReport,
    SourceDescription,
    TransportFeedback,
    UnknownRtcp,
)
from recorder.rtp import RtpError

WORD = st.integers(0, 0xFFFFFFFF)
BYTE = st.integers(0, 0xFF)
SEQUENCE = st.integers(0, 0xFFFF)
BLOCK = st.builds(ReportBlock, WORD, BYTE, st.integers(-0x800000, 0x7FFFFF), WORD, WORD, WORD, WORD)
BLOCKS = st.lists(BLOCK, max_size=3).map(tuple)
SDES_ITEM = st.tuples(st.integers(1, 8), st.binary(max_size=20))
PACKETS: st.SearchStrategy[RtcpPacket] = st.one_of(
    st.builds(SenderReport, WORD, st.integers(0, 2**64 - 1), WORD, WORD, WORD, BLOCKS),
    st.builds(ReceiverReport, WORD, BLOCKS),
    st.builds(
        SourceDescription,
        st.lists(st.tuples(WORD, st.lists(SDES_ITEM, max_size=3).map(tuple)), max_size=3).map(tuple),
    ),
    st.builds(Bye, st.lists(WORD, max_size=3).map(tuple), st.binary(max_size=20)),
    st.builds(Nack, WORD, WORD, st.lists(SEQUENCE, max_size=6, unique=True).map(lambda x: tuple(sorted(x)))),
    st.builds(PictureLossIndication, WORD, WORD),
    st.builds(FullIntraRequest, WORD, st.lists(st.tuples(WORD, BYTE), max_size=3).map(tuple)),
    st.builds(
        Remb, WORD, st.integers(0, 2**18 - 1).map(lambda x: x << 8), st.lists(WORD, max_size=3).map(tuple)
    ),
    st.builds(
        TransportFeedback,
        WORD,
        WORD,
        SEQUENCE,
        BYTE,
        st.integers(-(2**23), 2**23 - 1),
        st.lists(
            st.one_of(st.none(), st.integers(0, 255), st.integers(-0x8000, 0x7FFF)), min_size=1, max_size=60
        ).map(tuple),
    ),
    st.builds(UnknownRtcp, st.just(204), st.integers(0, 31), st.binary(max_size=5).map(lambda x: x * 4)),
)

SAMPLES: list[RtcpPacket] = [
    SenderReport(1, 2 << 32 | 3, 4, 5, 6, (ReportBlock(7, 8, -9, 10, 11, 12, 13),)),
    SourceDescription(((1, ((1, b"cname"), (2, b"name"))), (2, ()))),
    Nack(1, 2, (10, 11, 26, 65535, 3)),
    PictureLossIndication(1, 2),
    FullIntraRequest(1, ((2, 3), (4, 5))),
    Remb(1, 1_500_000 >> 4 << 4, (2, 3)),
    TransportFeedback(1, 2, 65530, 7, -5, (0, None, 255, 256, -1, None, None, 4)),
    Bye((1, 2), b"bye"),
]


def wrong_field(data: bytes) -> str | None:
    """Return the field that ``parse`` complains of, None if it parses."""
    try:
        rtcp.parse(data)
    except RtpError as error:
        return error.field
    return None


@given(st.lists(PACKETS, min_size=1, max_size=4))
def test_what_is_built_is_parsed_back(packets: list[RtcpPacket]) -> None:
    assert rtcp.parse(rtcp.build(packets)) == packets


@pytest.mark.parametrize("packet", SAMPLES, ids=lambda packet: type(packet).__name__)
def test_truncated_at_every_length(packet: RtcpPacket) -> None:
    data = packet.build()
    assert rtcp.parse(data) == [packet]
    fields = set()
    for size in range(len(data)):
        with pytest.raises(RtpError) as caught:
            rtcp.parse(data[:size])
        assert caught.value.field in {"header", "length"}
        if size >= 4:  # the same with a length field that fits: the part itself must notice or make do
            cut = data[: size // 4 * 4]
            cut = cut[:2] + (len(cut) // 4 - 1).to_bytes(2, "big") + cut[4:]
            fields.add(wrong_field(cut))
    assert fields <= {None, "sr", "sdes", "nack", "pli", "fir", "remb", "transport_cc", "bye"}


@given(st.binary(max_size=64), st.sampled_from([200, 201, 202, 203, 205, 206]), st.integers(0, 31))
def test_hostile_bytes_raise_nothing_else(body: bytes, packet_type: int, count: int) -> None:
    body += bytes(-len(body) % 4)
    for first in (0x80, 0xA0):
        data = bytes((first | count, packet_type)) + (len(body) // 4).to_bytes(2, "big") + body
        assert wrong_field(data) != ""


def test_padding_ends_the_compound() -> None:
    report = ReceiverReport(1).build()
    padded = b"\xa0" + PictureLossIndication(1, 2).build()[1:2] + b"\x00\x03" + bytes(8) + b"\x00\x00\x00\x04"
    assert rtcp.parse(report + b"\xa1" + padded[1:]) == [ReceiverReport(1), PictureLossIndication(0, 0)]
    with pytest.raises(RtpError, match="padding"):
        rtcp.parse(b"\xa1" + padded[1:] + report)
    with pytest.raises(RtpError, match="version"):
        rtcp.parse(b"\x00" + report[1:])
    with pytest.raises(RtpError, match="no bytes"):
        rtcp.parse(b"")


def test_a_sender_report_from_chromium() -> None:
    # SR + SDES of a Chromium 140 audio sender, as decrypted.
    data = bytes.fromhex(
        "80c80006 5d931534 ec9be8c3 1c3a2e9e 1f2e3d4c 000001f4 0000c350".replace(" ", "")
        + "81ca0006 5d931534 01 0e 7a4b5a5a4a6d3344566b7a6c6158 00 00 00 00".replace(" ", "")
    )
    report, description = rtcp.parse(data)
    assert isinstance(report, SenderReport)
    assert (report.ssrc, report.rtp_timestamp, report.packets) == (0x5D931534, 0x1F2E3D4C, 500)
    assert isinstance(description, SourceDescription)
    assert description.cname(0x5D931534) == "zKZZJm3DVkzlaX"
    assert rtcp.sender_reports([report, description]) == [report]


@given(st.integers(0, 2**62))
def test_ntp_and_unix_time_agree_to_a_nanosecond(utc_ns: int) -> None:
    utc_ns %= 2_000_000_000 * 1_000_000_000
    assert abs(rtcp.utc_ns_from_ntp(rtcp.ntp_from_utc_ns(utc_ns)) - utc_ns) <= 1


@given(
    st.lists(
        st.tuples(st.integers(1, 400), st.integers(-50_000_000, 12_000_000_000)), min_size=1, max_size=50
    ),
    st.integers(0, 2**32),
)
def test_transport_feedback_tells_every_arrival(steps: list[tuple[int, int]], start: int) -> None:
    number, now = start, 10**15
    arrivals = []
    for ahead, later in steps:
        number, now = number + ahead, now + later
        arrivals.append((number, now))
    feedbacks = TransportFeedback.from_arrivals(1, 2, 250, arrivals)
    told = []
    for index, feedback in enumerate(feedbacks):
        (again,) = rtcp.parse(feedback.build())
        assert again == feedback
        assert feedback.feedback_count == (250 + index) % 256
        assert feedback.deltas[0] is not None
        told += [pair for pair in feedback.arrivals_ns() if pair[1] is not None]
    period = (1 << 24) * 64_000_000
    assert [pair[0] for pair in told] == [number & 0xFFFF for number, _ in arrivals]
    for (_, at_ns), (_, arrival) in zip(told, arrivals, strict=True):
        assert at_ns is not None
        assert (arrival // 250_000 * 250_000 - at_ns) % period == 0


def test_nack_packs_runs() -> None:
    assert len(Nack(1, 2, tuple(range(100, 117))).build()) == 16
    assert len(Nack(1, 2, tuple(range(100, 118))).build()) == 20
    again = rtcp.parse(Nack(1, 2, (65534, 65535, 0, 5)).build())
    assert again == [Nack(1, 2, (65534, 65535, 0, 5))]
