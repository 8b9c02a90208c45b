"""What the crash test concludes from what it saw: losses, missing packets, nonces, files of dead writers."""

from __future__ import annotations

import random
import time
from pathlib import Path

from bench.plaintext import search, spellings
from bench.scenarios.crash import CANARIES, kills_of_a_round
from bench.scenarios.crash_checks import Joined, Ledger, lost_by, missing
from recorder.sealed import DataKey, SealedWriter

MS = 1_000_000
KEY = DataKey("k", bytes(16))


def test_loss_runs_from_the_last_kept_packet_to_the_kill() -> None:
    joined = (Joined("a", 1000 * MS), Joined("b", 1000 * MS))
    assert lost_by(5000 * MS, "a", joined, [1100 * MS, 4800 * MS, 5100 * MS]) == 200
    assert lost_by(5000 * MS, "c", joined, []) is None
    # Nothing kept of who has just joined: all since then is lost.
    assert lost_by(1300 * MS, "a", joined, []) == 300


def test_who_was_not_sending_lost_nothing() -> None:
    joined = (Joined("a", 1000 * MS), Joined("a", 3000 * MS, sends=False), Joined("a", 4000 * MS))
    assert lost_by(3500 * MS, "a", joined, [2990 * MS]) is None
    # After it came again the kept packets of before do not count.
    assert lost_by(4500 * MS, "a", joined, [2990 * MS]) == 500


def test_missing_packets_are_counted_over_the_wrap() -> None:
    assert missing([65534, 65535, 0, 1]) == 0
    assert missing([65534, 1, 0]) == 1
    assert missing([5, 5, 7]) == 1
    assert missing([]) == 0


def sealed(path: Path) -> SealedWriter:
    writer = SealedWriter(path, KEY, kind="original", media_type="x/y")
    writer.append(b"one")
    return writer


def test_the_ledger_sees_a_file_id_twice(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    sealed(tmp_path / "a.seg").close()
    ledger.look()
    assert (ledger.twice, sum(map(len, ledger.nonces.values()))) == ([], 2)
    (tmp_path / "b.seg").write_bytes((tmp_path / "a.seg").read_bytes())
    ledger.look()
    assert len(ledger.twice) == 1


def test_the_ledger_sees_a_dead_writers_file_written_on(tmp_path: Path) -> None:
    ledger, writer = Ledger(tmp_path), sealed(tmp_path / "a.seg")
    ledger.left_by_dead("*.seg", time.time_ns())
    assert len(ledger.left) == 1
    assert ledger.written_on() == []
    writer.append(b"two")
    assert ledger.written_on() == [str(tmp_path / "a.seg")]
    writer.close()
    # A file that was begun later is the next writer's.
    other = Ledger(tmp_path)
    other.left_by_dead("*.seg", (tmp_path / "a.seg").stat().st_mtime_ns - 1)
    assert other.left == {}


def test_every_round_kills_a_worker_or_control() -> None:
    rounds = [kills_of_a_round(random.Random(seed)) for seed in range(200)]
    assert all({"worker", "control"} & set(kinds) for kinds in rounds)
    assert {kind for kinds in rounds for kind in kinds} == {"worker", "control", "compositor", "machine"}
    assert all("machine" not in kinds[:-1] for kinds in rounds)


def test_the_search_finds_each_canary_in_every_spelling() -> None:
    for text in CANARIES.values():
        for spelling in spellings(text):
            assert search([("row", b"\x00" + spelling + b"\x00")], [], [spelling]) == {"name": ["row"]}
    assert search([("row", b"nothing")], [b"piece"], [b"name"]) == {}
