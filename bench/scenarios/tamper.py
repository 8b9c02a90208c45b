"""Random tamperings through the public program: what `recorder verify` finds, where, and its false alarms.

Each is done to a fresh copy of a small recording (`bench.tampering` says what is done and what counts as
found); untouched copies lie between them. The program is called for many copies at once, with the data key
in one call of four.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.scenarios.calls import Progress
from bench.tampering import Original, Tamperer, Tampering, damage
from recorder.keys import FileProvider
from tests.recorder.originals import make_originals

BATCH = 100
UNTOUCHED_EVERY = 8
KEY_EVERY = 4
MISSES_KEPT = 50


@dataclass(frozen=True)
class Plan:
    """What is done."""

    count: int = 10_000
    seed: int = 1


def run(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Tamper ``count`` times. Raises ValueError if the program does not answer."""
    with tempfile.TemporaryDirectory(prefix="bench-tamper-") as scratch:
        folder = Path(scratch)
        provider = FileProvider.create(folder / "keys")
        (folder / "originals").mkdir()
        originals = make_originals(folder / "originals", provider)
        tally = _Tally()
        source = random.Random(plan.seed)
        tamperer = Tamperer(source, originals)
        number = 0
        while (done := sum(tally.tampered.values())) < plan.count:
            progress(f"{done:,} of {plan.count:,}, {len(tally.missed)} missed, {tally.alarms} false alarms")
            keys = folder / "keys" if number % KEY_EVERY == 0 else None
            with tempfile.TemporaryDirectory(dir=scratch) as batch:
                _batch(Path(batch), tamperer, originals, source, min(BATCH, plan.count - done), keys, tally)
            number += 1
    return {"scenario": "tamper", "seed": plan.seed, **tally.figures()}


class _Tally:
    """What was done and found."""

    def __init__(self) -> None:
        self.tampered: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        self.untouched = self.alarms = self.elsewhere = self.with_key = 0
        self.missed: list[dict[str, Any]] = []

    def add(self, done: Tampering | None, ended: bool, report: dict[str, Any]) -> None:
        """Take in a report of one copy; ``done`` is None of an untouched one."""
        self.with_key += bool(report["opened"])
        if done is None:
            self.untouched += 1
            expected = "ok" if ended else "unproven"
            self.alarms += report["verdict"] != expected or bool(damage(report["findings"]))
            return
        self.tampered[done.kind] += 1
        places = done.missed(report["findings"])
        if places or report["verdict"] != "broken":
            if len(self.missed) < MISSES_KEPT:
                findings = [{**one, "detail": str(one["detail"])[:200]} for one in report["findings"][:5]]
                self.missed.append(
                    {
                        "kind": done.kind,
                        "ended": ended,
                        "places": list(map(str, places)),
                        "findings": findings,
                    }
                )
            return
        self.found[done.kind] += 1
        named = {place.file for place in (*done.places, *done.either)}
        self.elsewhere += any(one["file"] not in named for one in damage(report["findings"]))

    def figures(self) -> dict[str, Any]:
        """Return the counts as JSON."""
        return {
            "tampered": sum(self.tampered.values()),
            "found": sum(self.found.values()),
            "untouched": self.untouched,
            "false_alarms": self.alarms,
            "opened_with_key": self.with_key,
            "other_files_named_too": self.elsewhere,
            "by_kind": {
                kind: {"tampered": count, "found": self.found[kind]}
                for kind, count in sorted(self.tampered.items())
            },
            "missed": self.missed,
        }


def _batch(
    folder: Path,
    tamperer: Tamperer,
    originals: list[Original],
    source: random.Random,
    count: int,
    keys: Path | None,
    tally: _Tally,
) -> None:
    """Make ``count`` tampered copies with untouched ones between them, and let the program verify all."""
    copies: list[tuple[Path, bool, Tampering | None]] = []
    for number in range(count):
        kind = source.choice(tamperer.kinds)
        one = source.choice([one for one in originals if one.ended or kind in tamperer.in_place])
        copy = one.copy(folder / str(len(copies)))
        copies.append((copy, one.ended, tamperer.tamper(one, copy, kind)))
        if number % UNTOUCHED_EVERY == 0:
            whole = source.choice(originals)
            copies.append((whole.copy(folder / str(len(copies))), whole.ended, None))
    program = str(Path(sys.executable).with_name("recorder"))
    options = ["--json", *(["--keys", str(keys)] if keys else [])]
    paths = [str(path) for path, _, _ in copies]
    done = subprocess.run([program, "verify", *options, *paths], capture_output=True, check=False)
    try:
        reports = json.loads(done.stdout)
    except json.JSONDecodeError:
        raise ValueError(f"recorder verify: {done.stderr.decode(errors='replace')[-500:]}") from None
    for (path, ended, what), report in zip(copies, reports, strict=True):
        if report["path"] != str(path):
            raise ValueError(f"recorder verify tells of {report['path']}, not of {path}")
        tally.add(what, ended, report)
