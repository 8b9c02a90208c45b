"""One composing job as a child process: ``python -m compositor.job``, spoken to by JSON lines.

In: the first line is the job (see ``Job``); while it is live, ``{"ended": true}`` says that the journal is
complete, optionally with ``"end_ns"``. End of input before that means that the parent died: the job gives up
(exit code 3) and leaves no file behind. Out: ``progress``, ``event``, and last ``done`` or ``failed``.

Written files are sealed; nothing here ever writes plain media. The data key comes by standard input, or is
opened here with a key that this process alone is told the place of.
"""

from __future__ import annotations

import base64
import gc
import json
import os
import queue
import sys
import threading
import time
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TextIO

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from compositor.compose import Composition, NothingRecorded
from compositor.encode import EncodeError, Encoder
from compositor.mp4 import write_mp4
from compositor.overlays import ImageError
from compositor.sealing import Write, seal_file
from compositor.single import SingleWanted, SingleWriter
from compositor.spool import Spool, SpoolError
from recorder.journal import JournalError, JournalReader
from recorder.keys import SIDECAR, KeyProblem, KeysUnavailable, ProviderConfig, open_opener, read_sidecar
from recorder.sealed import DataKey, FileSummary, SealedError
from recorder.template import Template

CONTACT_SHEET, THUMBNAIL = "contact-sheet.jpg", "thumbnail.jpg"
POLL_S = 0.2
PROGRESS_S = 1.0
NICE = 10
EXIT_DONE, EXIT_FAILED, EXIT_PARENT_DIED = 0, 1, 3


class Job(BaseModel):
    """What is to be made of which recording."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recording_dir: Path
    data_key_id: str
    data_key: str | None = Field(default=None, repr=False, description="base64 of 16 bytes, 32 in suite 3")
    suite: int = Field(default=1, description="Cipher suite of data_key, and so of the files to write.")
    opening: ProviderConfig | None = Field(
        default=None,
        description="Where this process finds the key that opens keys.json, instead of data_key.",
    )
    template: Template | None = Field(default=None, description="None: no composite, only singles.")
    kind: Literal["archive", "derived"] = "archive"
    name: str = Field(default="composite.mp4", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,100}$")
    live: bool = False
    singles: list[SingleWanted] | None = Field(default=None, description="[]: one for each seat and source.")
    sign: bool = False
    nice: int = Field(default=NICE, ge=0, le=19)

    @model_validator(mode="after")
    def _has_one_key(self) -> Job:
        if (self.data_key is None) == (self.opening is None):
            raise ValueError("data_key or opening, one of them")
        return self

    @cached_property
    def key(self) -> DataKey:
        """The recording's data key, opened here once. Raises ValueError for no base64, or not of the suite,
        KeyProblem."""
        if self.data_key is not None:
            return DataKey(self.data_key_id, base64.b64decode(self.data_key, validate=True), self.suite)
        assert self.opening is not None
        sidecar = read_sidecar(self.recording_dir)
        recording = str(sidecar["recording"])
        key = open_opener(self.opening).unwrap_now(
            sidecar, recording_id=recording, purpose="compose", actor="compositor"
        )
        if key.key_id != self.data_key_id:
            raise KeyProblem(f"{SIDECAR} holds another key than recording {recording} began with")
        return key


class ParentDied(Exception):
    """Standard input ended before the journal did, or nobody reads standard output."""


class Control:
    """Lines from the parent, read in a thread so that composing never waits for them."""

    def __init__(self, lines: TextIO, *, live: bool) -> None:
        self.ended = not live
        self.end_ns: int | None = None
        self._live = live
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(lines,), daemon=True, name="control").start()

    def _read(self, lines: TextIO) -> None:
        for line in lines:
            self._queue.put(line)
        self._queue.put(None)

    def check(self) -> None:
        """Take what has come. Raises ParentDied while the journal is not complete."""
        while True:
            try:
                line = self._queue.get_nowait()
            except queue.Empty:
                return
            if line is None:
                if self._live and not self.ended:
                    raise ParentDied
                return
            message = json.loads(line)
            if isinstance(message, dict) and message.get("ended"):
                self.ended = True
                self.end_ns = message.get("end_ns", self.end_ns)


class Voice:
    """JSON lines to the parent."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def say(self, message: dict[str, Any]) -> None:
        """Write one line now. Raises ParentDied when nobody reads any more."""
        try:
            self._out.write(json.dumps(message, ensure_ascii=False, separators=(",", ":")) + "\n")
            self._out.flush()
        except BrokenPipeError as error:
            raise ParentDied from error


def compose_recording(job: Job, control: Control, voice: Voice) -> dict[str, Any]:
    """Follow or read the journal to its end, write the composite. Returns the content of ``done``."""
    assert job.template is not None
    template, key = job.template, job.key
    files = job.recording_dir / "files"
    files.mkdir(mode=0o700, exist_ok=True)
    for orphan in files.glob(f".{job.name}.*.spool"):  # of an attempt that was killed: of no use to anyone
        orphan.unlink(missing_ok=True)
    encoders: list[Encoder] = []

    def output(channels: int) -> Encoder:
        encoders.append(Encoder(template, channels, files / f".{job.name}.{{file_id}}.spool", key))
        return encoders[0]

    def missing(character: str) -> None:
        data = {"code_point": f"U+{ord(character):04X}", "character": character}
        voice.say({"event": {"type": "overlay.glyph_missing", "data": data}})

    composition = Composition(template, output, missing)
    try:
        unreadable = _follow(job, key, composition, control, voice)
        report = composition.finish(control.end_ns, unreadable)
        spool = encoders[0].finish(composition.frames)
        summary = seal_file(
            files / f"{job.name}.{{file_id}}.sealed",
            key,
            lambda write: write_composite(write, spool, composition),
            kind=job.kind,
            media_type=template.media_type,
            public={"duration_ms": report["duration_ms"], "frames": composition.pictures},
        )
        images = write_images(job, composition) if job.kind == "archive" else []
    finally:
        for encoder in encoders:
            encoder.spool.remove()
    return {
        "file": summary.to_json(),
        "images": [image.to_json() for image in images],
        "duration_ms": report["duration_ms"],
        "timeline": report,
        "frames": composition.pictures,
        "cpu_s": round(time.process_time(), 3),
    }


def _follow(job: Job, key: DataKey, composition: Composition, control: Control, voice: Voice) -> list[str]:
    """Compose what is in the journal, and what comes, until it is complete. Returns what is unreadable."""
    reader = JournalReader(job.recording_dir, key)
    told = 0.0
    damaged = 0
    while True:
        control.check()
        complete = control.ended  # asked before polling: what was written before it was said is then read
        read = False
        for record in reader.records():  # chunk by chunk: a long journal never lies in memory as a whole
            read = True
            composition.feed(record)
            if composition.advance() and time.monotonic() - told >= PROGRESS_S:
                told = time.monotonic()
                voice.say({"progress": _progress(composition, live=not control.ended)})
                control.check()
        for detail in reader.damage[damaged:]:
            voice.say({"event": {"type": "composite.journal_damaged", "data": {"detail": detail}}})
        damaged = len(reader.damage)
        if reader.ended or (complete and not read):
            return reader.damage
        if not read:
            time.sleep(POLL_S)


def _progress(composition: Composition, *, live: bool) -> dict[str, int]:
    """Say how much is composed and of what: of a call that goes on, of the time that has passed."""
    start = composition.start_ns or 0
    until = max(composition.known_ns, time.monotonic_ns()) if live else composition.known_ns
    return {
        "composed_ms": (composition.frame_ns(composition.frames) - start) // 1_000_000,
        "of_ms": max(0, until - start) // 1_000_000,
    }


def write_timeline(job: Job, report: dict[str, Any]) -> FileSummary:
    """Write what was shown when, gaps, damage, steps and pauses as the sealed file ``timeline.json``."""
    text = json.dumps(report, ensure_ascii=False, separators=(",", ":"))
    return _seal(job, "timeline.json", "application/json", text.encode())


def write_images(job: Job, composition: Composition) -> list[FileSummary]:
    """Write the contact sheet and the thumbnail; nothing without pictures."""
    sheet = composition.sheet
    images = ((CONTACT_SHEET, sheet.render()), (THUMBNAIL, sheet.thumbnail()))
    return [_seal(job, name, "image/jpeg", image) for name, image in images if image is not None]


def _seal(job: Job, name: str, media_type: str, content: bytes) -> FileSummary:
    """Write a derived file beside the composite."""
    path = job.recording_dir / "files" / f"{name}.{{file_id}}.sealed"
    return seal_file(path, job.key, lambda write: write(content), kind="derived", media_type=media_type)


def write_composite(write: Write, spool: Spool, composition: Composition) -> None:
    """Write a finished composition's regular MP4: index first, then the packets as they lie in the spool."""
    write_mp4(
        write,
        spool.tables,
        spool.runs,
        spool.read(),
        duration_s=composition.duration_s,
        created_utc_ns=composition.armed_utc_ns or 0,
        chapters=composition.chapters,
    )


def write_singles(job: Job, control: Control, voice: Voice) -> list[dict[str, Any]]:
    """Write the single-picture files asked for, from a complete journal."""
    assert job.singles is not None
    key = job.key
    writer = SingleWriter(job.recording_dir, key, job.singles, end_ns=control.end_ns)
    reader = JournalReader(job.recording_dir, key)
    try:
        for record in reader.records():
            writer.feed(record)
            control.check()
        return writer.finish()
    finally:
        writer.remove_spools()


def _wait_for_end(control: Control, job: Job) -> None:
    """Without a composite nothing is followed: wait until the journal is complete."""
    reader = JournalReader(job.recording_dir, job.key)
    while not control.ended:
        control.check()
        for _ in reader.records():
            pass
        if reader.ended:
            return
        time.sleep(POLL_S)


def run(lines: TextIO, out: TextIO) -> int:
    """Run one job. Returns the exit code; every failure is said as ``failed`` with a stable code."""
    voice = Voice(out)
    try:
        job = Job.model_validate(json.loads(lines.readline() or "null"))
        job.key  # noqa: B018  opened now, before anything is written
    except KeysUnavailable as error:
        return _failed(voice, "keys_unavailable", error)
    except KeyProblem as error:
        return _failed(voice, "key_unavailable", error)
    except (ValueError, ValidationError) as error:
        voice.say({"failed": {"code": "job_invalid", "detail": explain(error)}})
        return EXIT_FAILED
    gc.freeze()  # what was imported stays
    gc.set_threshold(50_000, 20, 50)  # packets and frames come and go by counting references
    os.setpriority(os.PRIO_PROCESS, 0, max(job.nice, os.getpriority(os.PRIO_PROCESS, 0)))
    control = Control(lines, live=job.live)
    try:
        done: dict[str, Any] = {}
        if job.template is not None:
            done = compose_recording(job, control, voice)
            if job.kind == "archive":
                done["timeline_file"] = write_timeline(job, done["timeline"]).to_json()
        if job.singles is not None:
            if job.template is None:
                _wait_for_end(control, job)
            done["singles"] = write_singles(job, control, voice)
            done["cpu_s"] = round(time.process_time(), 3)
        done["peak_mib"] = _peak_mib()
        voice.say({"done": done})
    except ParentDied:
        return EXIT_PARENT_DIED
    except NothingRecorded as error:
        return _failed(voice, "nothing_recorded", error)
    except (SealedError, JournalError) as error:
        return _failed(voice, "journal_unreadable", error)
    except ImageError as error:
        return _failed(voice, "template_invalid", error)
    except (EncodeError, SpoolError) as error:
        return _failed(voice, "encode_failed", error)
    except OSError as error:
        return _failed(voice, "disk_full" if error.errno == 28 else "storage_failed", error)
    return EXIT_DONE


def _peak_mib() -> int:
    """Return the most memory this process had resident; getrusage would count its parent's as well."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def _failed(voice: Voice, code: str, error: Exception) -> int:
    voice.say({"failed": {"code": code, "detail": str(error)}})
    return EXIT_FAILED


def explain(error: Exception) -> str:
    """Say what is wrong with a job without repeating its values, among which is the key."""
    if isinstance(error, ValidationError):
        return "; ".join(
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
            for fault in error.errors(include_input=False, include_url=False)
        )
    return f"{type(error).__name__}: the first line is no job"


if __name__ == "__main__":
    # Everything was said and flushed. A thread still sits in a read of standard input, and the interpreter's
    # own end could wait for it, or complain of a broken pipe.
    os._exit(run(sys.stdin, sys.stdout))
