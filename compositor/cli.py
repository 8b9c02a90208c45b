"""The command ``compositor``: compose a recording by hand, look at layouts, ask the font."""

from __future__ import annotations

import base64
import getpass
import json
import os
import sys
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args

import av
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress

from compositor.canvas import Canvas
from compositor.compose import Composition, NothingRecorded
from compositor.copies import CopyError, CopyJob, make_copy
from compositor.encode import EncodeError, Encoder
from compositor.fonts import FONT_PATH, FontError, coverage, missing_glyphs
from compositor.job import write_composite
from compositor.overlays import ImageError
from compositor.sealing import seal_file
from compositor.spool import SpoolError
from recorder.canonical import CanonicalError, as_int
from recorder.derived import NoParent, signed_file, state_derived
from recorder.journal import JournalError, JournalReader
from recorder.keys import FileProvider, KeyProblem, open_opener_at, read_sidecar
from recorder.manifest import ManifestError, read_manifest
from recorder.records import EventRecord, SessionRecord, TrackInfo, TrackRecord
from recorder.sealed import DataKey, FileSummary, SealedError
from recorder.statements import StatementError, read_statements
from recorder.template import LayoutName, Template, parse_template

app = typer.Typer(
    name="compositor",
    help="Composes recordings: pictures and sound of all parties, overlays, one MP4.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

LAYOUTS: tuple[LayoutName, ...] = get_args(LayoutName)
_FAILURES = (
    NothingRecorded,
    CopyError,
    NoParent,
    StatementError,
    EncodeError,
    SpoolError,
    ImageError,
    FontError,
    KeyProblem,
    SealedError,
    JournalError,
    OSError,
)


def main() -> None:
    """Run the command; failures that are no defect of ours become one line and exit code 1."""
    try:
        app()
    except _FAILURES as error:
        _fail(str(error))


def _fail(text: str) -> NoReturn:
    err.print(f"compositor: {text}", markup=False)
    sys.exit(1)


def _template(path: Path | None) -> Template:
    try:
        return parse_template(None if path is None else json.loads(path.read_text()))
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        _fail("the template is not valid: " + "; ".join(faults))
    except ValueError as error:
        _fail(f"the template is no JSON: {error}")


def _passphrase(file: Path | None) -> str | None:
    if file is not None:
        return file.read_text().rstrip("\n")
    return os.environ.get("SHUANGLU_CRYPTO_PASSPHRASE")


def _data_key(directory: Path, keys: Path, passphrase_file: Path | None, purpose: str) -> DataKey:
    passphrase = _passphrase(passphrase_file)
    sidecar = read_sidecar(directory)
    return open_opener_at(keys, passphrase).unwrap_now(
        sidecar, recording_id=str(sidecar["recording"]), purpose=purpose, actor=getpass.getuser()
    )


@app.command()
def render(
    recording: Annotated[Path, typer.Argument(metavar="RECORDING", help="Directory of one recording.")],
    keys: Annotated[
        Path,
        typer.Option(
            "--keys",
            help="Directory with encryption.key.pem, or a file that describes a KMS.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; it must not exist. Default: a sealed file here."),
    ] = None,
    passphrase_file: Annotated[
        Path | None,
        typer.Option("--passphrase-file", help="The keys' passphrase, or set SHUANGLU_CRYPTO_PASSPHRASE."),
    ] = None,
    template_file: Annotated[
        Path | None,
        typer.Option("--template", help="JSON of a template; default: the one of the recording."),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Write a playable MP4 instead of a sealed file; needs --purpose.")
    ] = False,
    purpose: Annotated[str, typer.Option("--purpose", help="Why; goes into the log of key uses.")] = "",
) -> None:
    """Compose a recording again: the same records give the same pictures at the same times.

    The result is sealed with the recording's data key and of kind derived: it never replaces the archive.
    """
    if plain and (not purpose or output is None):
        _fail("--plain writes a recording in the clear: say why with --purpose and where with --output")
    output = output or Path(f"{recording.resolve().name}.mp4.sealed")
    if plain and recording.resolve() in output.resolve().parents:
        _fail("a plain file does not go into the recording's directory")
    if output.exists():
        _fail(f"{output} exists")
    key = _data_key(recording, keys, passphrase_file, purpose or "compose")
    template = _template(template_file)
    if template_file is None:
        template = _recorded_template(recording, key) or template
    composition, encoder = _composed(recording, key, template, output.parent)
    try:
        spool = encoder.finish(composition.frames)
        if plain:
            with open(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                write_composite(file.write, spool, composition)
            err.print(f"compositor: {getpass.getuser()} wrote {output} in the clear: {purpose}", markup=False)
        else:
            seal_file(
                output,
                key,
                lambda write: write_composite(write, spool, composition),
                kind="derived",
                media_type=template.media_type,
            )
    finally:
        encoder.spool.remove()
    out.print(f"{output}: {float(composition.duration_s):.3f} s, {composition.pictures} frames", markup=False)


Parent = Annotated[str, typer.Option("--file", help="The file it is made from, by its plain name.")]
Operator = Annotated[str, typer.Option("--operator", help="Who makes it; sealed in the statement.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; sealed likewise.")]
Keys = Annotated[Path, typer.Option("--keys", help="Directory with encryption.key.pem and the signing key.")]
PassphraseFile = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="The keys' passphrase, or set SHUANGLU_CRYPTO_PASSPHRASE."),
]
Recording = Annotated[Path, typer.Argument(metavar="RECORDING", help="Directory of one recording.")]


@app.command()
def copy(
    recording: Recording,
    keys: Keys,
    viewer: Annotated[str, typer.Option("--viewer", help="Whose name goes over every picture.")],
    operator: Operator,
    reason: Reason,
    file: Parent = "composite.mp4",
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make a copy of the composite for one viewer, with the viewer's name and the day tiled over the picture.

    It is a sealed file of kind derived in the recording, with a signed statement that names its parent.
    """
    if not viewer.strip():
        _fail("--viewer must name somebody")
    mark = f"{viewer} {datetime.now(UTC):%Y-%m-%d}"
    _derive(recording, keys, passphrase_file, file, operator, reason, {"mark": mark}, viewer)


@app.command()
def clip(
    recording: Recording,
    keys: Keys,
    from_ms: Annotated[int, typer.Option("--from-ms", min=0, help="Begins here, ms of the recording.")],
    to_ms: Annotated[int, typer.Option("--to-ms", min=1, help="Ends before this.")],
    operator: Operator,
    reason: Reason,
    viewer: Annotated[str, typer.Option("--viewer", help="Put this name over every picture too.")] = "",
    file: Parent = "composite.mp4",
    passphrase_file: PassphraseFile = None,
) -> None:
    """Cut a stretch out of the composite, exact to the frame, as a sealed file of kind derived."""
    if to_ms <= from_ms:
        _fail("--to-ms must lie after --from-ms")
    stretch = {"from_ms": from_ms, "to_ms": to_ms, "mark": viewer}
    _derive(recording, keys, passphrase_file, file, operator, reason, stretch, viewer)


def _derive(
    recording: Path,
    keys: Path,
    passphrase_file: Path | None,
    file: str,
    operator: str,
    reason: str,
    what: dict[str, Any],
    viewer: str,
) -> None:
    if not operator.strip() or not reason.strip():
        _fail("say who and why: --operator and --reason")
    kind = "clip" if "to_ms" in what else "copy"
    key = _data_key(recording, keys, passphrase_file, f"{kind}: {reason}")
    parent = signed_file(recording, file)
    listed = [one for statement in read_statements(recording) for one in statement.files]
    number = 1 + sum(one.name.startswith(f"{kind}-") for one in listed)
    job = CopyJob(
        recording_dir=recording,
        data_key_id=key.key_id,
        data_key=base64.b64encode(key.secret).decode(),
        suite=key.suite,
        parent=parent.name,
        parent_id=parent.file_id,
        parent_sm3=parent.sm3,
        name=f"{kind}-{number}.mp4",
        **what,
    )
    with Progress(console=err, transient=True) as progress:
        task = progress.add_task(kind, total=None)
        done = make_copy(job, lambda at, of: progress.update(task, completed=at, total=of))
    statement = state_derived(
        recording,
        FileSummary.from_json(done["file"]),
        parent,
        operation={"kind": kind, "from_ms": done["from_ms"], "to_ms": done["to_ms"]},
        duration_ms=done["duration_ms"],
        sealed={"operator": operator, "reason": reason, "viewer": viewer},
        data_key=key,
        signer=FileProvider.open(keys, _passphrase(passphrase_file)).signer(),
    )
    out.print(f"{job.name}: {done['frames']} frames, statement {statement.number}", markup=False)


def _recorded_template(recording: Path, key: DataKey) -> Template | None:
    """Return the template frozen when the recording began."""
    reader = JournalReader(recording, key)
    try:
        for record in reader.records():
            if isinstance(record, SessionRecord):
                value = record.info.get("template")
                return parse_template(value) if isinstance(value, dict) else None
    finally:
        reader.close()
    return None


def _composed(
    recording: Path, key: DataKey, template: Template, directory: Path
) -> tuple[Composition, Encoder]:
    """Read the journal through a composition with a progress bar."""
    made: list[Encoder] = []

    def encoder(channels: int) -> Encoder:
        made.append(Encoder(template, channels, directory / ".compositor.{file_id}.spool", key))
        return made[0]

    composition = Composition(
        template, encoder, lambda character: err.print(f"no glyph: U+{ord(character):04X}")
    )
    reader = JournalReader(recording, key)
    try:
        with Progress(console=err, transient=True) as progress:
            task = progress.add_task("composing", total=_length_s(recording))
            for record in reader.records():
                composition.feed(record)
                if composition.advance():
                    progress.update(task, completed=composition.frames / template.frame_rate)
            composition.finish()
        for detail in reader.damage:
            err.print(f"left out, unreadable: {detail}", markup=False)
    except BaseException:
        for one in made:
            one.spool.remove()
        raise
    finally:
        reader.close()
    return composition, made[0]


def _length_s(recording: Path) -> float | None:
    """Return a recording's length by its manifest; None while it has none."""
    try:
        parts = read_manifest(recording).parts
        return (as_int(parts[-1]["ended_ns"]) - as_int(parts[0]["began_ns"])) / 1e9
    except (FileNotFoundError, ManifestError, CanonicalError, LookupError):
        return None


@app.command()
def layouts(
    preview: Annotated[
        Path | None, typer.Option("--preview", help="PNG to draw the chosen layout into, with stand-ins.")
    ] = None,
    name: Annotated[str, typer.Option("--layout", help="Layout to draw.")] = "side_by_side",
    template_file: Annotated[
        Path | None, typer.Option("--template", help="JSON of a template to draw instead.")
    ] = None,
    parties: Annotated[int, typer.Option("--parties", min=1, max=9, help="How many take part.")] = 2,
) -> None:
    """List the layouts, or draw one with stand-ins for the pictures."""
    if preview is None:
        for known in LAYOUTS:
            out.print(known)
        return
    if template_file is None and name not in LAYOUTS:
        _fail(f"no layout {name}; there are {' '.join(LAYOUTS)}")
    template = _template(template_file)
    if template_file is None:
        try:
            template = parse_template({"layout": name})
        except ValidationError as error:
            _fail(error.errors()[0]["msg"])
    canvas = preview_canvas(template, parties)
    image: Any = canvas.frame.reformat(format="rgb24")
    png: Any = av.CodecContext.create("png", "w")
    png.width, png.height, png.pix_fmt, png.time_base = (
        template.width,
        template.height,
        "rgb24",
        Fraction(1, 1),
    )
    preview.write_bytes(b"".join(bytes(packet) for packet in [*png.encode(image), *png.encode(None)]))


class _LastFrame:
    """An output that keeps nothing: the canvas is looked at afterwards."""

    def __init__(self) -> None:
        self.canvas: Canvas | None = None

    def picture(self, canvas: Canvas, number: int) -> None:
        self.canvas = canvas

    def sound(self, samples: Any) -> None:
        return


def preview_canvas(template: Template, parties: int) -> Canvas:
    """Compose one frame of a call whose parties have their cameras off."""
    output = _LastFrame()
    composition = Composition(template, lambda channels: output)
    info = {"armed_ns": 0, "business_no": "B-2026-000123", "room": "room-1", "tenant": "default"}
    composition.feed(SessionRecord(0, 1, info))
    roles = [
        "agent",
        "customer",
        "expert",
        "manager",
        "co_borrower",
        "insured",
        "supervisor",
        "customer",
        "expert",
    ]
    for number, role in enumerate(roles[:parties], 1):
        seat = f"{role}#{1 if number < 8 else 2}"
        data = {"seat": seat, "identity": f"{role}-{number}", "role": role, "name": f"王小明 {number}"}
        composition.feed(EventRecord(0, {"type": "participant.joined", "data": data}))
    screen = TrackInfo(
        1, "agent-1", "agent#1", "agent", "王小明 1", "video", "screen", "video/VP8", 90_000, 96, 1
    )
    if template.layout.name == "screen_main":
        composition.feed(TrackRecord(0, screen))
    if template.layout.name == "document":
        composition.feed(TrackRecord(0, replace(screen, source="document")))
    composition.finish(1)
    assert output.canvas is not None
    return output.canvas


@app.command()
def fonts(
    text: Annotated[str, typer.Argument(help="Text to check, for example names.")] = "",
) -> None:
    """Say what the shipped font covers; with a text, which of its characters it lacks (exit code 1 then)."""
    if not text:
        out.print(f"{FONT_PATH.name}: {len(coverage())} characters, SIL Open Font License 1.1")
        return
    lacking = missing_glyphs(text)
    for character in lacking:
        out.print(f"U+{ord(character):04X} {character}", markup=False)
    sys.exit(1 if lacking else 0)


if __name__ == "__main__":
    main()
