"""A real composite exported for the court: it opens with OpenSSL alone, byte for byte, and it plays."""

from __future__ import annotations

import subprocess
from pathlib import Path

import av
import pytest

from recorder.export import export_recording
from recorder.plain import verify_plain
from recorder.verify import verify
from tests.compositor.real_recording import RealRecording, make_real_recording
from tests.recorder.small_recording import make_provider


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> RealRecording:
    place = tmp_path_factory.mktemp("real")
    return make_real_recording(place / "r", make_provider(place / "keys"))


def test_a_real_composite_opens_with_openssl_alone_and_plays(
    recording: RealRecording, tmp_path: Path
) -> None:
    assert verify(recording.path, data_key=recording.data_key).ok
    package, out = tmp_path / "court", tmp_path / "out"
    export_recording(
        recording.path,
        package,
        data_key=recording.data_key,
        signer=recording.provider.signer(),
        operator="王芳",
        reason="case 7",
        sealed="all",
    )
    private_key = recording.provider.directory / "encryption.key.pem"
    subprocess.run(["dash", package / "open.sh", "-p", private_key, "-o", out], check=True, timeout=60)
    names = {path.name for path in out.iterdir()}
    assert names == {"composite.mp4", "contact-sheet.jpg", "thumbnail.jpg", "timeline.json"}
    for name in names:
        assert (out / name).read_bytes() == recording.plain(name)
        assert verify_plain(out / name, [package]).ok
    with av.open(str(out / "composite.mp4")) as film:
        assert sum(1 for _ in film.decode(video=0)) == 60
    report = (package / "report.html").read_text()
    for said in ("风险揭示", "0:00:01.800", "paused", "data:image/jpeg;base64,", "李伟", "浦东支行"):
        assert said in report
    assert b"/DCTDecode" in (package / "report.pdf").read_bytes(), "the contact sheet is in it"
