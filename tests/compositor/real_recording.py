"""A whole recording with real pictures and sound: journal, manifest, composite, contact sheet, timeline."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.journals import JournalInSteps
from compositor import job
from recorder.ids import uuid7
from recorder.journal import recover
from recorder.keys import FileProvider, write_sidecar
from recorder.manifest import write_manifest
from recorder.reindex import facts_of, private_of, read_entry, template_text
from recorder.sealed import DataKey, FileSummary, SealedReader, plain_name
from recorder.statements import append_statement, read_statements
from tests.compositor.calls import START_NS, UTC_NS, Call, track
from tests.recorder.small_recording import new_data_key

PEOPLE = [
    {"identity": "wang-fang", "seat": "agent#1", "role": "agent", "name": "王芳"},
    {"identity": "li-wei", "seat": "customer#1", "role": "customer", "name": "李伟"},
]


@dataclass
class RealRecording:
    """Where it is and what opens it."""

    path: Path
    recording: str
    provider: FileProvider
    data_key: DataKey

    def file(self, name: str) -> FileSummary:
        """Find a signed file by its plain name; the last one of that name."""
        files = [file for one in read_statements(self.path) for file in one.files]
        return [file for file in files if plain_name(file.name) == name][-1]

    def plain(self, name: str) -> bytes:
        """Open one of its files."""
        with SealedReader(self.path / "files" / self.file(name).name, self.data_key) as reader:
            return b"".join(reader.chunks())


def make_real_recording(
    path: Path,
    provider: FileProvider,
    *,
    duration_ms: int = 4000,
    template: dict[str, Any] | None = None,
    tenant: str = "default",
) -> RealRecording:
    """Record and compose a made-up call of two parties, with two steps and one pause."""
    data_key, wrap = new_data_key(provider)
    recording = str(uuid7())
    template = template or {"width": 320, "height": 240, "profile": "evidence"}
    path.mkdir(parents=True)
    write_sidecar(path, recording, data_key.key_id, [wrap], provider.signer())
    info = {"recording": recording, "mode": "composite", "template": template, "tenant": tenant}
    call = Call(duration_ms, info=info)
    for who, number, luma in zip(PEOPLE, (1, 3), (80, 180), strict=True):
        call.event(0, "participant.joined", **who)
        picture = track(number, who["seat"], "video/VP8", name=who["name"])
        sound = track(number + 1, who["seat"], "audio/opus", name=who["name"])
        call.join(picture)
        call.join(sound)
        call.video(picture, lambda n, luma=luma: luma + n % 20)  # type: ignore[misc]
        call.audio(sound, 300 * number)
    for code, name, begin, end in (("consent", "客户同意", 300, 1500), ("risk", "风险揭示", 1800, 3000)):
        call.event(begin, "step.started", code=code, name=name)
        call.event(end, "step.ended", code=code, name=name, result="ok")
    call.event(3200, "recording.paused")
    call.event(3500, "recording.resumed")
    JournalInSteps(path, data_key, call.records(), UTC_NS, provider.signer()).write()
    made = RealRecording(path, recording, provider, data_key)
    _sign(made, template)
    _compose(made, template)
    return made


def _sign(made: RealRecording, template: dict[str, Any]) -> None:
    parts = recover(made.path, made.data_key)
    running = read_entry(made.path.parent, made.path, made.data_key)
    entry = replace(
        running,
        state="sealed",
        armed_ns=UTC_NS,
        stopped_ns=UTC_NS + parts[-1].ended_ns - START_NS,
        details={**running.details, "participants": PEOPLE},
    )
    write_manifest(
        made.path,
        made.recording,
        facts=facts_of(entry),
        sealed=private_of(entry),
        template=template_text(template),
        parts=parts,
        data_key=made.data_key,
        provider=made.provider.info(),
        signer=made.provider.signer(),
    )


def _compose(made: RealRecording, template: dict[str, Any]) -> None:
    request = {
        "recording_dir": str(made.path),
        "data_key_id": made.data_key.key_id,
        "data_key": base64.b64encode(made.data_key.secret).decode(),
        "template": template,
    }
    said = io.StringIO()
    assert job.run(io.StringIO(json.dumps(request) + "\n"), said) == job.EXIT_DONE, said.getvalue()
    done = json.loads(said.getvalue().splitlines()[-1])["done"]
    files = [done["file"], *done["images"], done["timeline_file"]]
    archive = [one for one in files if one["kind"] == "archive"]
    derived = [one for one in files if one["kind"] != "archive"]
    signer = made.provider.signer()
    durations = {done["file"]["name"]: done["duration_ms"]}
    append_statement(made.path, "composite", {"files": archive, "durations_ms": durations}, signer)
    append_statement(made.path, "derived", {"files": derived}, signer)
