"""What the audit log costs: the share of a core that heads of journals, entries and signatures take."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from recorder.audit import AuditWriter, anchors, entry_of, read_log
from recorder.canonical import JSON
from recorder.clock import SystemClock, rfc3339
from recorder.gm.sm3 import named, sm3
from recorder.ids import uuid7
from recorder.journal import GroupCommit
from recorder.keys import FileProvider, write_sidecar
from recorder.records import SessionRecord
from recorder.sealed import DataKey

RECORDINGS = 150
ENTRIES = 1000
HEADS_S = 10.0
SECOND = 1_000_000_000


def run() -> dict[str, float]:
    """Measure with 150 recordings; shares are of one core, at the default intervals."""
    with tempfile.TemporaryDirectory(prefix="bench-audit-") as scratch:
        root = Path(scratch)
        provider = FileProvider.create(root / "keys")
        writer = _open(root / "audit", provider)
        told = _heads_told()
        text = json.dumps(told).encode()
        entries = [_entry(number) for number in range(1, ENTRIES + 1)]
        items = [_item(one) for one in told]
        collect = _collecting(root / "again", provider)

        def sign() -> None:
            writer.put(entries[:1], {})
            writer.checkpoint(time.monotonic_ns(), now=True)

        def anchor() -> None:
            writer.put([], {"bench": items})
            writer.anchor()

        telling = cpu_seconds(lambda: json.dumps(json.loads(text)))
        noting = cpu_seconds(lambda: writer.put([], {"bench": items}))
        writing = cpu_seconds(lambda: writer.put(entries, {}))
        signing, anchoring = cpu_seconds(sign), cpu_seconds(anchor)
        writer.finish()
        checked = read_log(root / "audit")
        verifying = cpu_seconds(lambda: read_log(root / "audit"))
        return {
            "recordings": RECORDINGS,
            "heads_bytes": len(text),
            "worker_collect_ms": round(collect * 1000, 2),
            "worker_to_control_ms": round(telling * 1000, 2),
            "heads_written_ms": round(noting * 1000, 2),
            "heads_core_percent": round((collect + telling + noting) / HEADS_S * 100, 3),
            "checkpoint_ms": round(signing * 1000, 2),
            "checkpoint_core_percent": round(signing / 2 * 100, 3),
            "entry_us": round(writing / ENTRIES * 1e6, 1),
            "anchor_ms": round(anchoring * 1000, 2),
            "verify_mb_per_cpu_s": round(checked.bytes / 1e6 / verifying, 1),
        }


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds of this process that ``work`` takes, the least of five runs."""
    spent = []
    for _ in range(5):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return min(spent)


def _open(root: Path, provider: FileProvider) -> AuditWriter:
    writer = AuditWriter(root, "node-1", provider.signer(), SystemClock())
    file = writer.next_file()
    key, wrap = asyncio.run(provider.new_data_key(file.series))
    file.directory.mkdir(parents=True)
    write_sidecar(file.directory, file.series, key.key_id, [wrap], provider.signer())
    writer.begin(file, key)
    return writer


def _heads_told() -> list[list[object]]:
    """Give what a worker tells of 150 journals."""
    return [
        [str(uuid7()), "bench", 1, 30, 50, 1_000_000, named(sm3(number.to_bytes(4))), rfc3339(time.time_ns())]
        for number in range(RECORDINGS)
    ]


def _item(told: list[object]) -> anchors.Item:
    recording, _, part, index, record, offset, head, at = told
    digest = bytes.fromhex(str(head).removeprefix("sm3:"))
    return anchors.head(
        str(recording),
        part=int(str(part)),
        index=int(str(index)),
        record=int(str(record)),
        offset=int(str(offset)),
        digest=digest,
        at=str(at),
    )


def _collecting(root: Path, provider: FileProvider) -> float:
    """Return the CPU seconds that telling the heads of 150 open journals takes in the commit thread."""
    clock = SystemClock()
    commit = GroupCommit(provider.signer(), clock, threads=False)
    key = DataKey("bench", b"k" * 16)
    heard: list[int] = []
    commit.tell_heads(lambda heads: heard.append(len(heads)), 1)
    for number in range(RECORDINGS):
        session = SessionRecord(clock.now_ns(), 1, {"recording": f"r{number}"})
        commit.open(root / f"r{number}", key, session)
    now = clock.now_ns()
    for step in range(1, 9):
        commit.step(now + step * SECOND // 2)
    spent = cpu_seconds(lambda: commit._tell_heads(now + 99 * SECOND + len(heard)))
    commit.close()
    assert heard[-1] == RECORDINGS, heard
    return spent


def _entry(number: int) -> dict[str, JSON]:
    event = {
        "id": str(uuid7()),
        "seq": number,
        "type": "session.connected",
        "time": rfc3339(time.time_ns()),
        "tenant": "bench",
        "room": "hall",
        "recording": str(uuid7()),
        "actor": "li-wei",
        "data": {"session": "s" * 22, "kind": "whep", "target": "customer-1", "seat": "agent#1"},
    }
    return entry_of(event, address="192.0.2.7")
