"""What must hold after the crash test: verified, composed, little lost, no nonce twice, nothing readable."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av

from bench.load.clip import Clip
from bench.plaintext import MAGICS, contents, search, spellings
from bench.scenarios.calls import spread
from recorder.records import RtpRecord, TrackRecord
from recorder.rtp import RtpPacket
from recorder.sealed.format import RecordType
from recorder.sealed.scan import scan
from tests.e2e.api import Api
from tests.e2e.evidence import directory_of, records_of
from tests.e2e.stage import Stage

SLICE = 24
"""Bytes of a payload that are looked for: too many to be there by chance."""
PIECES = 60
SEALED_RECORDS = (RecordType.CHUNK, RecordType.INDEX)
LOST_MS = 1000.0
LENGTH_S = 0.1
"""How far a composite's length may be from the call's."""
BATCH = 20
"""Recordings verified by one call of the program."""


@dataclass(frozen=True)
class Joined:
    """A party began to send, or stopped to."""

    identity: str
    at_ns: int
    """Monotonic."""
    sends: bool = True


@dataclass(frozen=True)
class Kill:
    """What was killed, when (monotonic ns), and which recordings ran."""

    what: str
    at_ns: int
    recordings: tuple[str, ...]


@dataclass(frozen=True)
class Recorded:
    """A recording that has ended, as the API showed it."""

    id: str
    shown: Mapping[str, Any]
    length_s: float
    """From its start to its stop."""
    joined: tuple[Joined, ...]


@dataclass
class Ledger:
    """Every sealed file that was ever seen, its nonces, and what dead writers left.

    A file's key is derived from the data key and its random file id, its nonces are its record numbers: a
    pair comes up twice if two files share an id, or if a file that its writer left is written on.
    """

    root: Path
    nonces: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    files: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    """(key id, file id) → (device, inode)."""
    left: dict[Path, tuple[int, bytes]] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)
    _looked: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def look(self) -> None:
        """Take in all sealed files that are there and have grown since."""
        for path in (*self.root.rglob("*.seg"), *self.root.rglob("*.sealed")):
            try:
                status = path.stat()
                if self._looked.get(path) == (status.st_ino, status.st_size):
                    continue
                found = scan(path)
            except OSError:  # renamed or removed meanwhile
                continue
            if found.header is None:
                continue
            self._looked[path] = (status.st_ino, status.st_size)
            file = found.header.key_id, found.header.file_id
            here = status.st_dev, status.st_ino
            if self.files.setdefault(file, here) != here:
                self.twice.append(f"{path} has the id of another file")
            numbers = Counter(record.number for record in found.records if record.type in SEALED_RECORDS)
            self.twice += [f"{path}: nonce {one} twice" for one, count in numbers.items() if count > 1]
            self.nonces.setdefault(file, set()).update(numbers)

    def left_by_dead(self, pattern: str, gone_ns: int) -> None:
        """Remember unfinished files whose writers were dead at ``gone_ns`` (UTC): they must stay so."""
        for path in self.root.rglob(pattern):
            if path.stat().st_mtime_ns <= gone_ns and not (found := scan(path)).finished:
                self.left[path] = found.size, found.digest

    def written_on(self) -> list[str]:
        """Return the files that somebody wrote on after their writer's death."""
        there = {path: scan(path) for path in self.left if path.exists()}
        return [str(path) for path, now in there.items() if (now.size, now.digest) != self.left[path]]


async def checked(
    stage: Stage,
    ledger: Ledger,
    recorded: Sequence[Recorded],
    kills: Sequence[Kill],
    clips: tuple[Clip, Clip],
    canaries: Mapping[str, str],
) -> dict[str, Any]:
    """Check everything; ``failures`` is empty if all holds."""
    failures: list[str] = []
    ledger.look()
    failures += [f"nonce: {text}" for text in ledger.twice]
    failures += [f"written on after its writer's death: {text}" for text in ledger.written_on()]
    verdicts = await asyncio.to_thread(_verified, stage, [one.id for one in recorded])
    failures += [f"{one} does not verify: {text}" for one, text in verdicts.items() if text != "ok"]
    composed = await _composed(stage, recorded, failures)
    losses = _Losses(kills)
    for one in recorded:
        losses.add(one, await records_of(stage, one.id))
    failures += losses.failures()
    found = await asyncio.to_thread(_searched, stage, clips, canaries)
    failures += [f"readable in {place}: {what}" for what, place in found.pop("hits").items()]
    if found["control_misses"]:
        failures.append(f"not found in a plain copy: {found['control_misses']}")
    return {
        "recordings": len(recorded),
        "killed": dict(Counter(kill.what for kill in kills)),
        "states": dict(Counter(str(one.shown["state"]) for one in recorded)),
        "parts": sum(int(one.shown["parts"]) for one in recorded),
        "verified": sum(text == "ok" for text in verdicts.values()),
        "composed": composed,
        **losses.figures(),
        "sealed_files": len(ledger.files),
        "nonces": sum(map(len, ledger.nonces.values())),
        "nonces_twice": len(ledger.twice),
        "left_by_dead": len(ledger.left),
        "searched": found,
        "failures": failures,
    }


def _verified(stage: Stage, recordings: Sequence[str]) -> dict[str, str]:
    """Verify with the keys by the public program; returns ``ok`` or the findings of each recording."""
    program = str(Path(sys.executable).with_name("recorder"))
    keys = str(stage.data / "secrets" / "crypto")
    verdicts: dict[str, str] = {}
    for begin in range(0, len(recordings), BATCH):
        batch = recordings[begin : begin + BATCH]
        paths = [str(directory_of(stage, one)) for one in batch]
        done = subprocess.run(
            [program, "verify", "--json", "--keys", keys, *paths], capture_output=True, check=False
        )
        reports = json.loads(done.stdout) if done.stdout else []
        for one, report in itertools.zip_longest(batch, reports if isinstance(reports, list) else [reports]):
            good = report is not None and report["verdict"] == "ok" and report["opened"]
            verdicts[one] = "ok" if good else str(report["findings"] if report else done.stderr[-500:])
    return verdicts


async def _composed(stage: Stage, recorded: Sequence[Recorded], failures: list[str]) -> int:
    """Fetch every composite and compare its length with the call's; returns how many are right."""
    right = 0
    async with Api(stage.base, stage.key()) as api:
        for one in recorded:
            state = one.shown["composing"]["state"]
            if state != "done" or one.shown["state"] not in ("sealed", "recovered"):
                failures.append(f"{one.id} is {one.shown['state']}, its composite {state}")
                continue
            answer = await api.file(one.id, "composite.mp4")
            (stage.temporary.parent / "composite.mp4").write_bytes(answer.body)
            with av.open(str(stage.temporary.parent / "composite.mp4")) as film:
                length_s = (film.duration or 0) / 1_000_000
            if abs(length_s - one.length_s) > LENGTH_S:
                failures.append(f"{one.id}: a call of {one.length_s} s, a composite of {length_s} s")
                continue
            right += 1
    return right


class _Losses:
    """How much of what was sent each kill cost."""

    def __init__(self, kills: Sequence[Kill]) -> None:
        self._kills = kills
        self.by_kill: dict[str, list[float]] = {}
        self.untouched = self.missing = self.received = 0

    def add(self, one: Recorded, records: Iterable[object]) -> None:
        """Take in the journal of a recording."""
        arrivals: dict[str, list[int]] = {}
        numbers: dict[int, list[int]] = {}
        identity: dict[int, str] = {}
        for record in records:
            if isinstance(record, TrackRecord):
                identity[record.info.track] = record.info.identity
            elif isinstance(record, RtpRecord):
                arrivals.setdefault(identity[record.track], []).append(record.arrival_ns)
                numbers.setdefault(record.track, []).append(RtpPacket.parse(record.packet).sequence_number)
        kills = [kill for kill in self._kills if one.id in kill.recordings]
        fatal = [kill for kill in kills if kill.what in ("worker", "machine")]
        for kill in fatal:
            for who in {joined.identity for joined in one.joined}:
                lost_ms = lost_by(kill.at_ns, who, one.joined, arrivals.get(who, []))
                if lost_ms is not None:
                    self.by_kill.setdefault(kill.what, []).append(lost_ms)
        self.received += sum(map(len, numbers.values()))
        if not fatal:
            self.untouched += 1
            self.missing += sum(missing(some) for some in numbers.values())

    def failures(self) -> list[str]:
        """Name what is more than promised."""
        found = [
            f"a kill of {what} cost {max(some):.0f} ms"
            for what, some in self.by_kill.items()
            if max(some) > LOST_MS
        ]
        if self.missing:
            found.append(f"{self.missing} packets are missing where only control and compositors were killed")
        return found

    def figures(self) -> dict[str, Any]:
        """Return the losses as JSON."""
        return {
            "packets": self.received,
            "lost_ms": {
                what: spread([round(one, 1) for one in some]) for what, some in sorted(self.by_kill.items())
            },
            "without_worker_kill": {"recordings": self.untouched, "packets_missing": self.missing},
        }


def lost_by(killed_ns: int, who: str, joined: Sequence[Joined], arrivals: Sequence[int]) -> float | None:
    """Return ms from a party's last kept packet to a kill; None if it was not sending then.

    Of a party that joined just before and of which nothing is kept, all since it joined is lost.
    """
    began_ns = None
    for one in joined:
        if one.identity == who and one.at_ns < killed_ns:
            began_ns = one.at_ns if one.sends else None
    if began_ns is None:
        return None
    kept_ns = max((at for at in arrivals if at <= killed_ns), default=began_ns)
    return (killed_ns - max(kept_ns, began_ns)) / 1e6


def missing(numbers: Sequence[int]) -> int:
    """Count the 16-bit sequence numbers that are missing between the first and the last of a track."""
    if not numbers:
        return 0
    at, seen = numbers[0], {numbers[0]}
    for number in numbers[1:]:
        at += (number - at + 0x8000) % 0x10000 - 0x8000
        seen.add(at)
    return max(seen) - min(seen) + 1 - len(seen)


def pieces(clips: tuple[Clip, Clip]) -> list[bytes]:
    """Return pieces of what is sent, of picture and sound; every recording of it holds them."""
    found: list[bytes] = []
    for clip in clips:
        payloads = [packet for frame in clip.frames for packet in frame if len(packet) > SLICE + 8]
        for payload in payloads[:: max(1, len(payloads) * 2 // PIECES)]:
            piece = payload[len(payload) // 2 : len(payload) // 2 + SLICE]
            # Silence and padding repeat a few bytes; a piece must be worth finding.
            if len(piece) == SLICE and len(set(piece)) > 8:
                found.append(piece)
    return found


def _searched(stage: Stage, clips: tuple[Clip, Clip], canaries: Mapping[str, str]) -> dict[str, Any]:
    """Search every byte that was written, and a plain copy that must be caught."""
    wanted = pieces(clips)
    names = [spelling for name in canaries.values() for spelling in spellings(name)]
    sizes: list[int] = []

    def written() -> Iterator[tuple[str, bytes]]:
        yield "log", stage.log_path.read_bytes()
        for root in (stage.data, stage.temporary):
            yield from ((f"{root.name}/{name}", data) for name, data in contents(root))

    def counted() -> Iterator[tuple[str, bytes]]:
        for name, data in written():
            sizes.append(len(data))
            yield name, data

    hits = search(counted(), wanted, names)
    return {
        "files": len(sizes),
        "bytes": sum(sizes),
        "payload_pieces": len(wanted),
        "magics": len(MAGICS),
        "spellings": len(names),
        "hits": hits,
        "found": len(hits),
        "control_misses": _control(stage, clips, canaries, wanted),
    }


def _control(
    stage: Stage, clips: tuple[Clip, Clip], canaries: Mapping[str, str], wanted: Collection[bytes]
) -> list[str]:
    """Search a plain copy of a composite, of packets and of the people's row; returns what was not found."""
    plain: list[tuple[str, bytes]] = [
        ("composite.mp4", (stage.temporary.parent / "composite.mp4").read_bytes()),
        ("packets", b"".join(packet for clip in clips for frame in clip.frames for packet in frame)),
    ]
    caught = search(plain, wanted, [])
    missed = [what for what in ("MP4 ftyp", "payload") if what not in caught]
    missed += [piece.hex() for piece in wanted if piece not in plain[1][1]]
    for what, text in canaries.items():
        row = [("row", b"\x00row\x00" + text.encode() + b"\x00")]
        missed += [] if search(row, [], spellings(text)) else [what]
    return missed
