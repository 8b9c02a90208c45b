"""How the laboratory counts: what is missing, how late, how long nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recorder.records import Record, RtpRecord, TrackInfo, TrackRecord
from recorder.rtp import RtpPacket
from tests.lab.call import delays_ms, longest_pause_s, missing_packets
from tests.lab.table import Table


def journal(kind: str, numbers: list[int]) -> list[Record]:
    """Return the records of one track with these sequence numbers, in order of arrival."""
    info = TrackInfo(1, "a", "agent#1", "agent", "", kind, "camera", "video/VP8", 90000, 96, 7)
    packets = [RtpPacket(96, number, 0, 7, b"x").build() for number in numbers]
    return [TrackRecord(0, info), *(RtpRecord(1, 0, packet) for packet in packets)]


@pytest.mark.parametrize(
    ("numbers", "missing", "expected"),
    [
        ([1, 2, 3], 0, 3),
        ([1, 3, 2], 0, 3),
        ([1, 4], 2, 4),
        ([1, 4, 2], 1, 4),
        ([65534, 65535, 1, 2], 1, 5),
        ([2, 65535, 0, 1], 0, 4),
        ([5, 5, 6], 0, 2),
    ],
)
def test_missing_packets_are_those_whose_number_never_came(
    numbers: list[int], missing: int, expected: int
) -> None:
    assert missing_packets(journal("video", numbers))["video"] == (missing, expected)


def test_a_journal_without_packets_misses_none() -> None:
    assert missing_packets(journal("audio", [])) == {"audio": (0, 0), "video": (0, 0)}


def test_a_picture_is_as_late_as_its_last_capture_before() -> None:
    captured = [(0, 100.0), (66, 166.0), (0, 20_100.0)]
    assert delays_ms(captured, [(0, 180.0), (66, 250.0), (0, 20_200.0), (999, 300.0)]) == [80.0, 84.0, 100.0]


def test_the_longest_pause_is_of_those_that_began_within_the_time() -> None:
    assert longest_pause_s([0, 5, 6, 8, 20], 5, 6) == 2
    assert longest_pause_s([], 5, 9) == 4


def test_the_table_tells_what_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_OUT", str(tmp_path / "lab.json"))
    table = Table()
    assert table.add("s", "low", 1.0, "s", at_most=1).reached
    assert not table.add("s", "high", 0.5, "%", at_least=1).reached
    assert not table.add("s", "never", None, "s", at_most=1).reached
    assert [line.endswith("NOT REACHED") for line in table.text().splitlines()[1:]] == [False, True, True]
    table.add("s", "low", 4.0, "s", at_most=1, server="janus")
    assert (table.find("s", "low"), table.find("s", "low", "janus"), table.find("s", "?")) == (1.0, 4.0, None)
    assert table.text().splitlines()[1].split() == ["s", "low", "≤", "1", "s", "1", "s", "4", "s", "reached"]
    assert len(table.text().splitlines()) == 4, "another server's figures stand beside ours"
    told = json.loads(table.write(7).read_text())
    assert told["seed"] == 7
    assert [row["reached"] for row in told["rows"]] == [True, False, False, False]
