"""The command: composes by hand, draws layouts, asks the font; plain files only with a reason."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import av
import pytest
from typer.testing import CliRunner

from bench.journals import JournalInSteps
from compositor.cli import LAYOUTS, app
from recorder.keys import FileProvider, write_sidecar
from recorder.sealed import DataKey, SealedReader
from tests.compositor.calls import UTC_NS, Call, track

RUNNER = CliRunner()
TEMPLATE = {"width": 320, "height": 240, "fps": 10}


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, DataKey]:
    """A recording's directory, its keys' directory, its data key."""
    base = tmp_path_factory.mktemp("cli")
    provider = FileProvider.create(base / "keys")
    call = Call(1000, info={"template": TEMPLATE})
    info = track(1, "agent#1", "video/VP8")
    call.join(info)
    call.video(info, lambda n: 60 + 4 * n)
    key, wrap = asyncio.run(provider.new_data_key("rec-1"))
    directory = base / "recording"
    directory.mkdir()
    write_sidecar(directory, "rec-1", key.key_id, [wrap], provider.signer())
    JournalInSteps(directory, key, call.records(), UTC_NS).write()
    return directory, base / "keys", key


def test_compose_sealed_and_plain(recording: tuple[Path, Path, DataKey], tmp_path: Path) -> None:
    directory, keys, key = recording
    common = ["render", str(directory), "--keys", str(keys)]
    sealed = tmp_path / "again.sealed"
    result = RUNNER.invoke(app, [*common, "-o", str(sealed)])
    assert result.exit_code == 0, result.output
    assert "1.000 s, 10 frames" in result.output
    with SealedReader(sealed, key) as reader:
        content = reader.read(0, reader.size)
    container: Any = av.open(io.BytesIO(content))
    assert len(list(container.decode(video=0))) == 10
    assert [p.name for p in tmp_path.iterdir()] == ["again.sealed"]
    plain = tmp_path / "plain.mp4"
    assert RUNNER.invoke(app, [*common, "-o", str(plain), "--plain"]).exit_code == 1
    result = RUNNER.invoke(app, [*common, "-o", str(plain), "--plain", "--purpose", "test"])
    assert result.exit_code == 0, result.output
    assert plain.read_bytes() == content
    assert plain.stat().st_mode & 0o077 == 0
    inside = directory / "plain.mp4"
    assert RUNNER.invoke(app, [*common, "-o", str(inside), "--plain", "--purpose", "x"]).exit_code == 1
    assert RUNNER.invoke(app, [*common, "-o", str(sealed)]).exit_code == 1


def test_bad_template_is_named(recording: tuple[Path, Path, DataKey], tmp_path: Path) -> None:
    directory, keys, _ = recording
    path = tmp_path / "template.json"
    path.write_text(json.dumps({"width": 3}))
    arguments = [
        "render",
        str(directory),
        "--keys",
        str(keys),
        "-o",
        str(tmp_path / "x"),
        "--template",
        str(path),
    ]
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 1
    assert "width" in result.output


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "custom"])
def test_layouts_are_drawn(name: str, tmp_path: Path) -> None:
    path = tmp_path / "preview.png"
    result = RUNNER.invoke(app, ["layouts", "--preview", str(path), "--layout", name, "--parties", "3"])
    assert result.exit_code == 0, result.output
    container: Any = av.open(str(path))
    (picture,) = container.decode(video=0)
    assert (picture.width, picture.height) == (1280, 720)
    assert len(set(picture.to_ndarray(format="gray").ravel().tolist())) > 20


def test_layouts_are_listed_and_fonts_answer() -> None:
    assert RUNNER.invoke(app, ["layouts"]).output.split() == list(LAYOUTS)
    assert "31787 characters" in RUNNER.invoke(app, ["fonts"]).output
    result = RUNNER.invoke(app, ["fonts", "王\U0002fffe"])
    assert result.exit_code == 1
    assert "U+2FFFE" in result.output
    assert RUNNER.invoke(app, ["fonts", "䶮𠮷"]).exit_code == 0
