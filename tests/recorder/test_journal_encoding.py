"""Records as bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorder.journal.encoding import JournalError, decode, encode, record_time
from recorder.records import (
    ClockRecord,
    EndRecord,
    EventRecord,
    GapRecord,
    Record,
    RtcpRecord,
    RtpRecord,
    SessionRecord,
    TrackRecord,
)
from tests.recorder.journal_tools import some_of_each, track

NS = st.integers(0, 2**63 - 1)
TRACK = st.integers(0, 0xFFFF)
TEXT = st.text(max_size=10)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
RECORDS: st.SearchStrategy[Record] = st.one_of(
    st.builds(RtpRecord, TRACK, NS, st.binary(max_size=50)),
    st.builds(RtcpRecord, TRACK, NS, st.binary(max_size=50)),
    st.builds(SessionRecord, NS, st.integers(1, 99), st.dictionaries(TEXT, JSON, max_size=3)),
    st.builds(TrackRecord, NS, st.just(track(7))),
    st.builds(EventRecord, NS, st.dictionaries(TEXT, JSON, max_size=3)),
    st.builds(
        ClockRecord,
        NS,
        NS,
        st.integers(-(2**62), 2**62),
        TEXT,
        st.integers(0, 255),
        st.sampled_from(["trusted", "degraded"]),
    ),
    st.builds(GapRecord, TRACK, NS, NS, st.integers(0, 2**32 - 1), TEXT),
    st.builds(EndRecord, NS, st.booleans(), TEXT),
)


@given(st.lists(RECORDS, max_size=20))
def test_what_is_encoded_is_decoded(records: list[Record]) -> None:
    assert list(decode(encode(records))) == records


@given(st.lists(st.integers(0, 20_000_000_000), min_size=1, max_size=40))
def test_packets_far_apart_in_time_are_kept_in_order(arrivals: list[int]) -> None:
    records: list[Record] = [RtpRecord(1, at_ns, bytes((index,))) for index, at_ns in enumerate(arrivals)]
    assert list(decode(encode(records))) == records


def test_a_packet_costs_eight_bytes() -> None:
    records = [RtpRecord(1, 10**9 + index, bytes(1000)) for index in range(100)]
    assert len(encode(records)) == 5 + 12 + 100 * (8 + 1000)


def test_unknown_types_are_skipped_unless_critical() -> None:
    known = encode([EndRecord(1, True, "stop")])
    assert list(decode(b"\x70\x00\x00\x00\x03abc" + known)) == [EndRecord(1, True, "stop")]
    with pytest.raises(JournalError, match="critical record type 0xf0"):
        list(decode(b"\xf0\x00\x00\x00\x03abc" + known))


def test_truncated_at_every_length() -> None:
    records = some_of_each(10**9)
    chunk = encode(records)
    for size in range(len(chunk)):
        found = []
        try:
            for record in decode(chunk[:size]):
                found.append(record)
        except JournalError:
            pass
        assert found == records[: len(found)]


@given(st.binary(max_size=60), st.sampled_from([0x81, 0x82, 0x83, 0x84, 0x05, 0x06, 0x07, 0x88, 0x20]))
@settings(max_examples=200)
def test_rubbish_raises_journal_error_only(value: bytes, number: int) -> None:
    for chunk in (value, bytes((number,)) + len(value).to_bytes(4, "big") + value):
        try:
            for record in decode(chunk):
                record_time(record)
        except JournalError:
            continue


def test_what_fits_no_journal_is_refused() -> None:
    for record in (
        RtpRecord(70000, 1, b"x"),
        RtpRecord(1, 1, bytes(70000)),
        EventRecord(1, {"data": b"bytes are no JSON"}),
        GapRecord(-1, 0, 0, 0, ""),
    ):
        with pytest.raises(JournalError):
            encode([record])
