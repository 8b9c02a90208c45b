"""Run the demo: ``python -m bench.demo`` (``make demo``). Ends by itself in under three minutes.

Exit code 0 only if the call was relayed and recorded, everything verifies, and the changed byte of the
broken copy was found at its place.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from bench.demo import proof, story
from bench.demo.cast import AGENT, CLIP, CUSTOMER, fetch_clip, make_devices
from bench.demo.page import Evidence, Picture, Tampering, render
from bench.demo.sheet import ClockCheck, check_clock, contact_sheet, shots
from recorder.export import export_recording
from recorder.keys import FileProvider, read_sidecar
from recorder.report import Report
from recorder.verify import verify
from tests.e2e.stage import Stage

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "out" / "demo"
CACHE = ROOT / "out" / "cache"


class DemoError(RuntimeError):
    """Something that the demo promises did not happen."""


@dataclass
class Run:
    """One run: what it tells and what it found."""

    console: Console
    began: float = field(default_factory=time.monotonic)
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    """(what, result, how long)."""

    def tell(self, text: str) -> None:
        """Say what has just been done, and when."""
        self.console.print(f"[dim]{time.monotonic() - self.began:6.1f} s[/dim]  {text}", highlight=False)

    def row(self, what: str, result: str, took_s: float | None = None) -> None:
        """Add a line to the table at the end."""
        self.rows.append((what, result, "" if took_s is None else f"{took_s:.1f} s"))


def main() -> None:
    """Run it all."""
    run = Run(Console(soft_wrap=True))
    seed = int(os.environ.get("SHUANGLU_SEED") or random.SystemRandom().randrange(2**32))
    if OUT.exists():
        shutil.rmtree(OUT)
    OUT.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="shuanglu-demo-") as scratch:
        try:
            _run(run, Path(scratch), seed)
        except DemoError as error:
            run.console.print(f"[red]failed:[/red] {error}", highlight=False)
            sys.exit(1)


def _run(run: Run, scratch: Path, seed: int) -> None:
    clip = fetch_clip(CACHE)
    devices = {role.identity: make_devices(role, clip, scratch) for role in (AGENT, CUSTOMER)}
    run.tell(f"pictures: {CLIP}; speech: espeak-ng, Chinese and English")
    begin = time.monotonic()
    settings = {"tls.enabled": True, "media.workers": 0}
    with Stage(scratch / "server", settings) as stage:
        run.tell(f"server ready at {stage.base}, its secrets made, one media worker per core")
        run.row("server started", f"{len(stage.pids('worker'))} media workers", time.monotonic() - begin)
        call = _call(run, stage, devices)
        (lies,) = (stage.data / "recordings").glob(f"*/*/*/*/{call.recording['id']}")
        composite = _export(run, stage, call, lies)
        sealed = OUT / "recordings" / lies.relative_to(stage.data / "recordings")
        shutil.copytree(lies, sealed)
        recorded = asyncio.run(
            proof.open_journal(sealed, stage.data / "secrets" / "crypto", call.recording["id"])
        )
    report = _verify_offline(run, sealed)
    clock = check_clock(composite, datetime.fromisoformat(call.recording["armed_at"]))
    run.tell(
        f"burnt-in clock of {clock.frames} frames read back: "
        f"within {clock.worst_ms:.0f} ms of the file's time"
    )
    tampering = proof.break_a_copy(sealed, scratch / "broken", seed)
    found = tampering.findings[0] if tampering.findings else None
    run.tell(
        f"a copy with byte {tampering.offset:,} of {tampering.file} changed (seed {seed}): "
        + (f"[red]{found.what}[/red] {found.file} {found.byte_range}" if found else "not noticed")
    )
    _documents(call, sealed, composite, recorded, report, clock, tampering)
    _table(run, call, sealed, composite, report, clock, tampering)
    if not proof.names_the_place(tampering):
        raise DemoError(f"verification did not name the place: seed {seed}, {tampering}")
    if not report.ok or not call.report.get("ok"):
        raise DemoError(f"the recording does not verify: {report.findings} {call.report}")


def _call(run: Run, stage: Stage, devices: dict[str, tuple[Path, Path]]) -> story.Story:
    columns = (
        TextColumn("          "),
        BarColumn(40),
        TextColumn("{task.completed:4.1f} of {task.total:.0f} s  {task.description}"),
    )
    with Progress(*columns, console=run.console, transient=True) as bar:
        task = bar.add_task("", total=story.CALL_S, visible=False)

        def progress(passed_s: float, text: str) -> None:
            bar.update(task, completed=passed_s, description=text, visible=passed_s < story.CALL_S)

        call = asyncio.run(story.run(stage, devices, run.tell, progress))
    for name, sent in call.sent.items():
        run.row(f"pictures of {name}", f"{sent:,} sent, {call.decoded[name]:,} decoded by the other")
    run.row("join", "request to first picture", sum(call.joins_s) / len(call.joins_s))
    run.row(
        "call recorded",
        f"{call.recording['parts']} part, {len(call.recording['gaps'])} gaps",
        call.recording["duration_ms"] / 1000,
    )
    run.row("composite ready after stop", f"{len(call.composite):,} bytes", call.ready_s)
    run.row("fetched over HTTPS", f"{call.ranges} ranges", call.fetched_s)
    return call


def _export(run: Run, stage: Stage, call: story.Story, sealed: Path) -> Path:
    """Export the composite as an entitled person does: with the private key, for a reason, on record."""
    begin = time.monotonic()
    provider = FileProvider.open(stage.data / "secrets" / "crypto")
    recording = call.recording["id"]
    key = asyncio.run(
        provider.unwrap(read_sidecar(sealed), recording_id=recording, purpose="export", actor="make demo")
    )
    exported = export_recording(
        sealed,
        OUT / "court",
        data_key=key,
        signer=provider.signer(),
        operator="make demo",
        reason="demonstration",
        names=["composite.mp4"],
    )
    composite = OUT / "composite.mp4"
    shutil.copyfile(OUT / "court" / "media" / "composite.mp4", composite)
    if composite.read_bytes() != call.composite:
        raise DemoError("what was fetched over HTTP is not what was exported")
    run.tell(
        "exported with the private key: the same bytes as over HTTP, and a signed statement that it was done"
    )
    run.row("exported", f"statement {exported.statement.number}", time.monotonic() - begin)
    return composite


def _verify_offline(run: Run, sealed: Path) -> Report:
    """Verify with the command line, as anybody can who has the directory, and once more for the page."""
    begin = time.monotonic()
    program = Path(sys.executable).with_name("recorder")
    done = subprocess.run([str(program), "verify", str(sealed)], capture_output=True, text=True, timeout=60)
    took_s = time.monotonic() - begin
    if done.returncode:
        raise DemoError(f"recorder verify ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    report = verify(sealed)
    run.tell(
        f"recorder verify: {report.verdict.value}, {report.files} sealed files, {report.records} records, "
        "no key needed"
    )
    run.row(
        "verified offline",
        f"{report.files} files, {report.records:,} records, {report.bytes:,} bytes",
        took_s,
    )
    return report


def _documents(
    call: story.Story,
    sealed: Path,
    composite: Path,
    recorded: proof.Recorded,
    report: Report,
    clock: ClockCheck,
    tampering: Tampering,
) -> None:
    recording = call.recording
    people = [f"{role.name} ({role.identity})" for role in (AGENT, CUSTOMER)]
    contact_sheet(
        composite,
        "远程视频双录 · 合成画面",
        [
            f"{recording['business_no']} · {recording['id']}",
            f"{recording['armed_at']} … {recording['stopped_at']}",
            f"{' · '.join(people)} · {CLIP}",
        ],
        OUT / "sheet.png",
    )
    pictures = [
        Picture(f"{shot.at_s:05.2f} s · {_moment(recording['armed_at'], shot.at_s)} UTC", shot.jpeg())
        for shot in shots(composite, 8)
    ]
    files = [
        replace(file, broken_at=tampering.offset if file.name == tampering.file else None)
        for file in proof.sealed_files(sealed)
    ]
    evidence = Evidence(
        intact=report.ok and bool(call.report.get("ok")),
        facts=proof.facts(recording, people),
        pictures=pictures,
        duration_s=recording["duration_ms"] / 1000,
        lanes=proof.lanes(recorded),
        clock=proof.clock_facts(recorded, clock),
        gaps=proof.gaps(recording),
        signatures=proof.signature_facts(sealed, report, call.report),
        statements=proof.statements(sealed),
        files=files,
        tampering=tampering,
        commands="\n".join(
            [
                "# exit code 0 only if everything holds; no key is needed",
                f".venv/bin/recorder verify {sealed.relative_to(ROOT)}",
                f".venv/bin/recorder show {sealed.relative_to(ROOT)}",
                "openssl dgst -sm3 <file>    # every digest on this page can be made with public tools",
            ]
        ),
        credits=[
            f"画面 pictures: {CLIP}. 语音 speech: espeak-ng (GPL-3.0), synthetic. "
            "人物均为虚构 all persons are fictitious.",
            "由 make demo 生成 · made by make demo",
        ],
    )
    (OUT / "evidence.html").write_text(render(evidence), encoding="utf-8")


def _moment(armed_at: str, at_s: float) -> str:
    moment = datetime.fromtimestamp(
        datetime.fromisoformat(armed_at).timestamp() + at_s, datetime.fromisoformat(armed_at).tzinfo
    )
    return moment.strftime("%H:%M:%S.%f")[:-3]


def _table(
    run: Run,
    call: story.Story,
    sealed: Path,
    composite: Path,
    report: Report,
    clock: ClockCheck,
    tampering: Tampering,
) -> None:
    size = sum(path.stat().st_size for path in sealed.rglob("*") if path.is_file())
    run.row(
        "burnt-in clock", f"{clock.frames} frames read, within {clock.worst_ms:.0f} ms of the file's time"
    )
    run.row("sealed recording", f"{size:,} bytes")
    run.row("composite.mp4", f"{composite.stat().st_size:,} bytes, H.264 + AAC, 1280x720")
    run.row(
        "broken copy",
        f"found: {tampering.findings[0].what} in {tampering.file}" if tampering.findings else "NOT found",
    )
    table = Table(title="make demo", title_justify="left", header_style="bold")
    table.add_column("what")
    table.add_column("result")
    table.add_column("time", justify="right")
    for row in run.rows:
        table.add_row(*row)
    table.add_section()
    table.add_row("whole demo", f"pictures: {CLIP}", f"{time.monotonic() - run.began:.1f} s")
    run.console.print(table)
    for name in ("composite.mp4", "sheet.png", "evidence.html", "court/", "recordings/"):
        run.console.print(
            f"  {(OUT / name).relative_to(ROOT)}{'/' if name.endswith('/') else ''}", highlight=False
        )


if __name__ == "__main__":
    main()
