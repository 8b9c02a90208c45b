"""What the recording proves by itself, gathered for the evidence page, and the copy with one changed byte."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.demo.page import Fact, Finding, Lane, SealedFile, Span, Tampering, Words
from bench.demo.sheet import ClockCheck
from recorder.gm.sm3 import named, sm3
from recorder.journal import JournalReader
from recorder.keys import FileProvider, read_sidecar
from recorder.records import ClockRecord, EventRecord, Record, RtpRecord, SessionRecord, TrackRecord
from recorder.sealed.scan import scan
from recorder.statements import list_statements
from recorder.verify import Report, verify

STATEMENT_WORDS = {
    "composite": "合成",
    "derived": "派生",
    "export": "导出",
    "verify": "校验",
    "recovered": "恢复",
}
LANE_COLOURS = {"agent": "#1f5fa8", "customer": "#0b7a4b"}


@dataclass(frozen=True, slots=True)
class Recorded:
    """The journal of the demo's recording, opened by someone entitled."""

    records: tuple[Record, ...]
    armed_ns: int

    def seconds(self, at_ns: int) -> float:
        """Return s since the recording was armed."""
        return (at_ns - self.armed_ns) / 1e9


async def open_journal(directory: Path, crypto: Path, recording: str) -> Recorded:
    """Read the journal with the server's own keys. Raises KeyProblem."""
    provider = FileProvider.open(crypto)
    key = await provider.unwrap(
        read_sidecar(directory), recording_id=recording, purpose="demo", actor="make demo"
    )
    records = tuple(JournalReader(directory, key).records())
    session = next(record for record in records if isinstance(record, SessionRecord))
    return Recorded(records, int(session.info["armed_ns"]))


def lanes(recorded: Recorded) -> list[Lane]:
    """Return the timeline: one lane per track, one for the steps."""
    arrivals: dict[int, list[int]] = {}
    tracks = {
        record.info.track: record.info for record in recorded.records if isinstance(record, TrackRecord)
    }
    for record in recorded.records:
        if isinstance(record, RtpRecord):
            arrivals.setdefault(record.track, []).append(record.arrival_ns)
    made = []
    words = {"video": "画面 video", "audio": "声音 audio"}
    for number, info in sorted(tracks.items(), key=lambda one: (one[1].seat, one[1].kind)):
        got = sorted(arrivals.get(number, []))
        if got:
            span = Span(max(recorded.seconds(got[0]), 0), recorded.seconds(got[-1]), f"{len(got):,} RTP")
            colour = LANE_COLOURS.get(info.role, "#5d6b7a")
            made.append(Lane(f"{info.seat} {words.get(info.kind, info.kind)}", (span,), colour=colour))
    steps: dict[str, tuple[float, str]] = {}
    spans = []
    for record in recorded.records:
        if not isinstance(record, EventRecord):
            continue
        kind, data = record.event.get("type"), record.event.get("data") or {}
        step = data.get("step") or data
        if kind == "step.started":
            steps[step["code"]] = (recorded.seconds(record.at_ns), step.get("name") or step["code"])
        elif kind == "step.ended" and step.get("code") in steps:
            from_s, name = steps.pop(step["code"])
            spans.append(Span(from_s, recorded.seconds(record.at_ns), name))
    return [*made, Lane("环节 steps", tuple(spans), colour="#8a5a00")]


def clock_facts(recorded: Recorded, check: ClockCheck) -> list[Fact]:
    """Return what is known of the clock: its discipline while recording, and what the pictures show."""
    pairs = [record for record in recorded.records if isinstance(record, ClockRecord)]
    worst = max((abs(pair.offset_ns) for pair in pairs), default=0)
    trusted = bool(pairs) and all(pair.trust == "trusted" for pair in pairs)
    sources = ", ".join(sorted({f"{pair.source} (stratum {pair.stratum})" for pair in pairs}))
    steps = [
        (late.utc_ns - early.utc_ns) - (late.at_ns - early.at_ns) for early, late in itertools.pairwise(pairs)
    ]
    step_ms = max((abs(step) for step in steps), default=0) / 1e6
    return [
        Fact(
            Words("时钟状态", "state"),
            "可信 trusted"
            if trusted
            else "未确认同步 degraded: this machine's clock is not known to be synchronised",
            trusted,
        ),
        Fact(Words("时间来源", "source"), sources or "–"),
        Fact(Words("估计误差", "estimated error, worst"), f"{worst / 1e6:.3f} ms"),
        Fact(Words("时间对", "pairs of UTC and monotonic time"), f"{len(pairs)}"),
        Fact(Words("时钟跳变", "largest step between pairs"), f"{step_ms:.3f} ms", step_ms < 50),
        Fact(
            Words("画面时钟", "burnt-in clock read back"),
            f"{check.frames - check.unread} / {check.frames} frames, within {check.worst_ms:.0f} ms of the "
            f"file's time, offset {check.begin_error_ms:+.0f} ms",
            check.unread == 0 and check.worst_ms <= 40,
        ),
    ]


def signature_facts(directory: Path, report: Report, server: dict[str, Any]) -> list[Fact]:
    """Return who signed what, and what the two verifications said."""
    signers = ", ".join(report.signers.values()) or "–"
    prints = ", ".join(report.signers)
    return [
        Fact(
            Words("服务器校验", "verified by the server, with the key"),
            f"{server.get('verdict')}: {server.get('files')} files, {server.get('records')} records",
            bool(server.get("ok")),
        ),
        Fact(
            Words("离线校验", "verified offline, without any key"),
            f"{report.verdict.value}: {report.files} files, {report.records} records, {report.bytes:,} bytes",
            report.ok,
        ),
        Fact(Words("签名者", "signer"), signers),
        Fact(Words("证书指纹", "certificate fingerprint"), prints),
        Fact(Words("录制中检查点", "signed checkpoints while recording"), f"{report.checkpoints}"),
        Fact(
            Words("密钥等级", "assurance of the keys"),
            f"{report.assurance}: self-made keys; a bank puts its own certificates here"
            if report.assurance == "development"
            else report.assurance,
        ),
        Fact(Words("算法", "algorithms"), "SM4-GCM, SM3, SM2 (GM/T 0002, 0004, 0003)"),
        Fact(
            Words("清单", "manifest"),
            f"{(directory / 'manifest.json').stat().st_size:,} bytes, signed at stop",
        ),
    ]


def statements(directory: Path) -> list[tuple[str, str, str]]:
    """Return (number, kind, time) of every signed statement."""
    listed = []
    for number, path in list_statements(directory):
        said = json.loads(path.read_bytes())
        said = said.get("public", said)
        kind = str(said.get("kind"))
        listed.append(
            (f"{number:06d}", f"{STATEMENT_WORDS.get(kind, '')} {kind}".strip(), str(said.get("at")))
        )
    return listed


def sealed_files(directory: Path) -> list[SealedFile]:
    """Return all files of a recording, sealed ones with what they hold."""
    files = []
    for path in sorted(directory.rglob("*")):
        if not path.is_file():
            continue
        name = str(path.relative_to(directory))
        found = scan(path) if path.suffix in (".seg", ".sealed") else None
        if found is not None and found.header is not None:
            holds = found.header.media_type.removeprefix("application/vnd.shuanglu.").removesuffix("+json")
            kind = f"{found.header.kind}, {holds}"
            files.append(SealedFile(name, kind, found.size, found.plain_bytes, named(found.digest)))
        else:
            digest = named(sm3(path.read_bytes()))
            files.append(SealedFile(name, "签名页 signed page", path.stat().st_size, 0, digest))
    return files


def break_a_copy(directory: Path, copy: Path, seed: int) -> Tampering:
    """Copy a recording, change one random byte of one random file there, and verify the copy."""
    shutil.copytree(directory, copy)
    rng = random.Random(seed)
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    victim = rng.choice(files)
    data = bytearray(victim.read_bytes())
    offset = rng.randrange(len(data))
    before = data[offset]
    data[offset] ^= rng.randrange(1, 256)
    victim.chmod(0o600)
    victim.write_bytes(data)
    report = verify(copy)
    return Tampering(
        seed,
        str(victim.relative_to(copy)),
        offset,
        before,
        data[offset],
        tuple(_finding(one) for one in report.findings),
    )


def names_the_place(tampering: Tampering) -> bool:
    """Say whether some finding names the file, and where it names bytes, the changed one among them."""
    for one in tampering.findings:
        if one.file != tampering.file:
            continue
        if not one.byte_range:
            return True
        first, last = (int(part.replace(",", "")) for part in one.byte_range.split("–"))
        if first <= tampering.offset < last:
            return True
    return False


def _finding(one: Any) -> Finding:
    whole = "" if one.begin is None else f"{one.begin:,}–{one.end:,}"
    times = one.time.split("/") if one.time else []
    shown = " … ".join(datetime.fromisoformat(time).strftime("%H:%M:%S.%f")[:-3] for time in times if time)
    record = "" if one.record is None else str(one.record)
    return Finding(str(one.kind.value), one.file, record, whole, shown, one.detail)


def gaps(recording: dict[str, Any]) -> list[str]:
    """Return the recording's gaps in words."""
    return [
        f"{gap['from_ms'] / 1000:.2f} … {gap['to_ms'] / 1000:.2f} s: {gap['reason']}"
        for gap in recording["gaps"]
    ]


def facts(recording: dict[str, Any], people: Iterable[str]) -> list[Fact]:
    """Return the head of the page."""
    return [
        Fact(Words("业务编号", "business number"), recording["business_no"]),
        Fact(Words("录制编号", "recording"), recording["id"]),
        Fact(Words("参与人", "parties"), ", ".join(people)),
        Fact(Words("开始", "armed at"), recording["armed_at"]),
        Fact(Words("结束", "stopped at"), recording["stopped_at"]),
        Fact(Words("时长", "duration"), f"{recording['duration_ms'] / 1000:.3f} s"),
        Fact(Words("状态", "state"), recording["state"], recording["state"] == "sealed"),
        Fact(Words("分段", "parts"), str(recording["parts"])),
        Fact(Words("加密", "sealed with"), "SM4-GCM, each file under its own key"),
    ]
