"""A whole recording in each cipher suite: journal, manifest, composite, statements, verification, export."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import pytest

from bench.journals import JournalInSteps
from recorder.export import export_recording
from recorder.gm.sm3 import named, sm3
from recorder.journal import JournalReader, recover
from recorder.keys import FileProvider, read_sidecar, write_sidecar
from recorder.manifest import read_sealed_part, write_manifest
from recorder.records import Record
from recorder.sealed import SUITES, DataKey, FileSummary, read_header
from recorder.statements import append_statement, read_sealed
from recorder.verify import verify
from tests.compositor.calls import UTC_NS, Call, track

TEMPLATE = {"width": 320, "height": 240, "profile": "evidence"}


@pytest.fixture(scope="module")
def records() -> list[Record]:
    call = Call(2000)
    picture, sound = track(1, "agent#1", "video/VP8"), track(2, "agent#1", "audio/opus")
    for one in (picture, sound):
        call.join(one)
    call.video(picture, lambda n: 80 + n % 20)
    call.audio(sound, 300)
    return call.records()


def compose(directory: Path, key: DataKey) -> list[FileSummary]:
    """Run the compositor's process over it, live, as the server does after the stop."""
    job = {
        "recording_dir": str(directory),
        "data_key_id": key.key_id,
        "data_key": base64.b64encode(key.secret).decode(),
        "suite": key.suite,
        "template": TEMPLATE,
    }
    ran = subprocess.run(
        [sys.executable, "-m", "compositor.job"],
        input=json.dumps(job) + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    done = json.loads(ran.stdout.splitlines()[-1])["done"]
    return [FileSummary.from_json(one) for one in (done["file"], done["timeline_file"], *done["images"])]


@pytest.mark.parametrize("suite", list(SUITES))
def test_a_whole_recording_of_each_suite(suite: int, tmp_path: Path, records: list[Record]) -> None:
    provider = FileProvider.create(tmp_path / "keys")
    directory = tmp_path / "recording"
    directory.mkdir()
    made, wrap = asyncio.run(provider.new_data_key("r", suite))
    write_sidecar(directory, "r", made.key_id, [wrap], provider.signer(), suite=suite)
    key = provider.unwrap_now(read_sidecar(directory), recording_id="r", purpose="test", actor="me")
    assert key == made
    JournalInSteps(directory, key, records, UTC_NS, provider.signer()).write()
    write_manifest(
        directory,
        "r",
        facts={"tenant": "t", "room": "m"},
        sealed={"tenant": "t", "customer": "李伟"},
        template=TEMPLATE,
        parts=recover(directory, key),
        data_key=key,
        provider=provider.info(),
        signer=provider.signer(),
    )
    files = compose(directory, key)
    body = {"files": [one.to_json() for one in files]}
    append_statement(directory, "composite", body, provider.signer())
    spoken = append_statement(
        directory, "review", {"verdict": "passed"}, provider.signer(), sealed={"by": "王芳"}, data_key=key
    )

    sealed = [path for path in directory.rglob("*") if path.suffix in (".seg", ".sealed")]
    assert {path.parent.name for path in sealed} == {"segments", "recording", "files", "statements"}
    assert {read_header(path).suite for path in sealed} == {suite}
    read = JournalReader(directory, key)
    assert len(list(read.records())) > 50
    assert not read.damage
    assert read_sealed_part(directory, key)["customer"] == "李伟"
    assert read_sealed(directory, spoken, key) == {"by": "王芳"}
    for data_key in (None, key):
        report = verify(directory, data_key=data_key)
        assert report.ok, [str(finding) for finding in report.findings]
        assert report.checkpoints

    export_recording(
        directory, tmp_path / "out", data_key=key, signer=provider.signer(), operator="a", reason="b"
    )
    film = (tmp_path / "out" / "media" / "composite.mp4").read_bytes()
    assert named(sm3(film)) == files[0].plain_sm3
    container: Any = av.open(io.BytesIO(film))
    with container:
        assert len(list(container.decode(container.streams.video[0]))) == 30
    for path in directory.rglob("*"):
        assert not path.is_file() or film[-300:-200] not in path.read_bytes()
