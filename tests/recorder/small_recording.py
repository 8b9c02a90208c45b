"""Make a small but complete recording from real parts: segments, checkpoints, manifest, composite."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from pathlib import Path

from recorder.canonical import JSON
from recorder.checkpoint import Checkpoint, merkle_tree
from recorder.ids import uuid7
from recorder.journal.encoding import encode
from recorder.journal.summary import PartSummary
from recorder.keys import FileProvider, write_sidecar
from recorder.manifest import write_manifest
from recorder.records import EndRecord, EventRecord, RtpRecord, SessionRecord, TrackInfo, TrackRecord
from recorder.sealed import DataKey, FileSummary, RecordType, SealedWriter
from recorder.statements import append_statement
from recorder.storage import files_directory, segment_path, segments_directory

UTC_NS = 1_767_225_600_000_000_000
SECOND_NS = 1_000_000_000


@dataclass
class SmallRecording:
    """Where it is and what opens it."""

    path: Path
    recording: str
    provider: FileProvider
    data_key: DataKey
    segments: list[FileSummary]
    composite: bytes
    """The plain text of ``composite.mp4``."""


def make_provider(directory: Path) -> FileProvider:
    """Make development keys."""
    return FileProvider.create(directory)


def make_recording(
    path: Path,
    provider: FileProvider,
    *,
    seed: int = 1,
    segments: int = 3,
    checkpoints: int = 2,
    stopped: bool = True,
    composite_bytes: int = 3000,
    suite: int = 1,
) -> SmallRecording:
    """Write a recording of ``segments`` segments, ``checkpoints`` checkpoints each; content is seeded."""
    source = random.Random(seed)
    data_key, wrap = new_data_key(provider, suite)
    recording = str(uuid7())
    path.mkdir(parents=True)
    signer = provider.signer()
    write_sidecar(path, recording, data_key.key_id, [wrap], signer, suite=suite, utc_ns=UTC_NS)
    segments_directory(path).mkdir()
    part = PartSummary(part=1, began_ns=SECOND_NS, reason="stopped", ended=stopped, final=stopped)
    track = TrackInfo(
        1, "li-wei", "customer#1", "customer", "李伟", "video", "camera", "video/VP8", 90000, 96, 7
    )
    part.tracks.append(track)
    at_ns, previous = SECOND_NS, None
    for index in range(segments):
        writer = SealedWriter(
            segment_path(path, 1, index),
            data_key,
            kind="original",
            media_type="application/vnd.shuanglu.journal",
            public={"recording": recording, "part": 1, "index": index},
            previous=previous,
        )
        if index == 0:
            about = {"tenant": "default", "room": "r1", "business_no": "B-1", "mode": "composite"}
            session = SessionRecord(at_ns, 1, {"recording": recording, "armed_ns": at_ns, **about})
            writer.append(encode([session, TrackRecord(at_ns, track)]))
        for _ in range(checkpoints):
            packets = []
            for _ in range(4):
                at_ns += SECOND_NS // 10
                packets.append(RtpRecord(1, at_ns, b"\x80\x60" + source.randbytes(source.randrange(20, 60))))
            writer.append(encode(packets))
            at_ns += SECOND_NS
            writer.public_frame(RecordType.CHECKPOINT, _checkpoint(writer.head, at_ns, provider, source))
        if index == segments - 1:
            writer.append(
                encode([EventRecord(at_ns, {"type": "participant.left"}), EndRecord(at_ns, True, "x")])
            )
            if not stopped:
                writer.abandon()
                break
        part.segments.append(writer.close())
        previous = writer.head
    part.ended_ns = at_ns
    composite = source.randbytes(composite_bytes)
    made = SmallRecording(path, recording, provider, data_key, part.segments, composite)
    if stopped:
        _finish(made, part)
    return made


def new_data_key(provider: FileProvider, suite: int = 1) -> tuple[DataKey, dict[str, JSON]]:
    """Make a data key and its wrap."""
    return asyncio.run(provider.new_data_key("new", suite))


def _checkpoint(head: bytes, at_ns: int, provider: FileProvider, source: random.Random) -> bytes:
    heads = [source.randbytes(32), head, source.randbytes(32)]
    root, paths = merkle_tree(heads)
    unsigned = Checkpoint(1, len(heads), at_ns, UTC_NS + at_ns, root, paths[1])
    signature = provider.signer().sign(unsigned.signed_message())
    return Checkpoint(1, len(heads), at_ns, UTC_NS + at_ns, root, paths[1], signature).to_bytes()


def _finish(made: SmallRecording, part: PartSummary) -> None:
    signer = made.provider.signer()
    write_manifest(
        made.path,
        made.recording,
        facts={"tenant": "default", "room": "r1", "state": "sealed", "armed_ns": part.began_ns},
        sealed={"business_no": "B-1", "participants": [{"identity": "li-wei", "name": "李伟"}]},
        template={"layout": {"kind": "side_by_side"}},
        parts=[part],
        data_key=made.data_key,
        provider=made.provider.info(),
        signer=signer,
        utc_ns=UTC_NS + part.ended_ns,
    )
    files_directory(made.path).mkdir()
    writer = SealedWriter(
        files_directory(made.path) / "composite.mp4.{file_id}.sealed",
        made.data_key,
        kind="archive",
        media_type="video/mp4",
    )
    writer.write(made.composite)
    body = {"name": "composite.mp4", "files": [writer.close().to_json()]}
    append_statement(made.path, "composite", body, signer, utc_ns=UTC_NS + part.ended_ns + SECOND_NS)
    append_statement(
        made.path,
        "review",
        {"verdict": "passed"},
        signer,
        sealed={"operator": "王芳"},
        data_key=made.data_key,
        utc_ns=UTC_NS + part.ended_ns + 2 * SECOND_NS,
    )
