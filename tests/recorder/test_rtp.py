"""RTP packets: round trips, every truncation, hostile bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorder.rtp import (
    RtpError,
    RtpPacket,
    Unwrapper,
    audio_level,
    is_rtcp,
    sequence_after,
    video_rotation,
)

WORD = st.integers(0, 0xFFFFFFFF)
EXTENSIONS = st.one_of(
    st.dictionaries(st.integers(1, 14), st.binary(min_size=1, max_size=16), max_size=5),
    st.dictionaries(st.integers(1, 255), st.binary(max_size=255), max_size=5),
)
PACKETS = st.builds(
    RtpPacket,
    payload_type=st.integers(0, 127),
    sequence_number=st.integers(0, 0xFFFF),
    timestamp=WORD,
    ssrc=WORD,
    payload=st.binary(max_size=40),
    marker=st.booleans(),
    csrcs=st.lists(WORD, max_size=15).map(tuple),
    extensions=EXTENSIONS,
    padding_size=st.integers(0, 255),
)

# RFC 8285 section 4.2, figure of the one-byte header, around a two-byte payload.
ONE_BYTE = bytes.fromhex(
    "90e0 0001 00000002 00000003 bede 0003 10aa 21bbbb 0000 33cccccccc 0102".replace(" ", "")
)


@given(PACKETS)
def test_what_is_built_is_parsed_back(packet: RtpPacket) -> None:
    assert RtpPacket.parse(packet.build()) == packet


def wrong_field(data: bytes) -> str | None:
    """Return the field that ``RtpPacket.parse`` complains of, None if it parses."""
    try:
        RtpPacket.parse(data)
    except RtpError as error:
        return error.field
    return None


def test_one_byte_extensions_with_padding_between_them() -> None:
    packet = RtpPacket.parse(ONE_BYTE)
    assert packet.extensions == {1: b"\xaa", 2: b"\xbb\xbb", 3: b"\xcc" * 4}
    assert packet.marker
    assert packet.payload == b"\x01\x02"


def test_id_fifteen_ends_the_one_byte_form() -> None:
    packet = bytes.fromhex("9060000100000002 00000003 bede0002 10aa f0000000 2100".replace(" ", "")) + b"\0\0"
    assert RtpPacket.parse(packet).extensions == {1: b"\xaa"}


def test_another_profile_is_kept() -> None:
    packet = RtpPacket(96, 1, 2, 3, b"x", other_extension=(0x4242, b"abcd"))
    assert RtpPacket.parse(packet.build()) == packet


@pytest.mark.parametrize(
    "packet",
    [
        RtpPacket(111, 1, 2, 3, b"payload", csrcs=(5, 6), extensions={1: b"a", 5: b"bcd"}, padding_size=4),
        RtpPacket(96, 65535, 0xFFFFFFFF, 0xFFFFFFFF, b"p", extensions={1: b"", 200: bytes(30)}),
    ],
)
def test_truncated_at_every_length_it_parses_or_names_the_field(packet: RtpPacket) -> None:
    data = packet.build()
    fields = {wrong_field(data[:size]) for size in range(len(data))}
    assert fields <= {None, "header", "csrcs", "extension", "padding"}
    with pytest.raises(RtpError, match="header: 11 of 12"):
        RtpPacket.parse(data[:11])


@given(st.binary(max_size=80))
def test_hostile_bytes_raise_nothing_else(data: bytes) -> None:
    for candidate in (data, b"\x90" + data, b"\xbf\x60" + data, b"\xb0\x60" + bytes(10) + b"\xbe\xde" + data):
        try:
            packet = RtpPacket.parse(candidate)
        except RtpError:
            continue
        assert packet.payload in candidate


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (bytes(12), "version"),
        (b"\x82" + bytes(11), "csrcs"),
        (b"\x90" + bytes(11), "extension"),
        (b"\x90" + bytes(11) + b"\xbe\xde\x00\x02" + bytes(4), "extension"),
        (b"\x90" + bytes(11) + b"\xbe\xde\x00\x01\x1f\x00\x00\x00", "extension"),
        (b"\xa0" + bytes(11) + b"\x00", "padding"),
        (b"\xa0" + bytes(11) + b"\x02", "padding"),
        (b"\xa0" + bytes(11), "padding"),
    ],
)
def test_errors_name_the_field(data: bytes, field: str) -> None:
    with pytest.raises(RtpError) as caught:
        RtpPacket.parse(data)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "packet",
    [
        RtpPacket(128, 0, 0, 0),
        RtpPacket(0, 0, 0, 0, csrcs=(1,) * 16),
        RtpPacket(0, 0, 0, 0, padding_size=256),
        RtpPacket(0, 0, 0, 0, extensions={256: b"a"}),
        RtpPacket(0, 0, 0, 0, extensions={1: bytes(256)}),
        RtpPacket(0, 0, 0, 0, extensions={1: b"a"}, other_extension=(1, b"")),
    ],
)
def test_what_does_not_fit_is_refused(packet: RtpPacket) -> None:
    with pytest.raises(RtpError):
        packet.build()


def test_a_padding_probe_has_an_empty_payload() -> None:
    probe = RtpPacket(96, 1, 2, 3, padding_size=255)
    assert RtpPacket.parse(probe.build()).payload == b""


@given(st.integers(-(2**40), 2**40), st.lists(st.integers(-0x7FFF, 0x7FFF), max_size=30))
def test_unwrapping_follows_a_counter_that_rolls_over(start: int, steps: list[int]) -> None:
    unwrapper = Unwrapper(16)
    first = unwrapper.unwrap(start & 0xFFFF)
    value = start
    for step in steps:
        value += step
        assert unwrapper.unwrap(value & 0xFFFF) - first == value - start


def test_distance_on_the_circle() -> None:
    assert sequence_after(65535, 0) == 1
    assert sequence_after(0, 65535) == -1
    assert sequence_after(0, 0x8000) == -0x8000
    assert sequence_after(0xFFFFFFFF, 5, 32) == 6


def test_rtcp_is_told_from_rtp() -> None:
    assert is_rtcp(b"\x80\xc8")
    assert not is_rtcp(b"\x80\x60")
    assert not is_rtcp(b"\x80")


def test_values_of_extensions() -> None:
    assert [video_rotation(bytes((value,))) for value in (0, 1, 2, 3, 0x0B)] == [0, 90, 180, 270, 270]
    assert video_rotation(b"") == 0
    assert audio_level(b"\x85") == (5, True)
    assert audio_level(b"") == (127, False)
