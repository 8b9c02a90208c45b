"""``recorder retention``, ``hold``, ``review``, ``destroy`` and ``due``: how long recordings are kept.

Who holds the keys acts here under the name he gives; two different names are two persons. The signed
statements tell later who that was.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from recorder.atomic import write_private
from recorder.canonical import CanonicalError
from recorder.cli.base import (
    AsJson,
    NeededKeys,
    PassphraseFile,
    RecordingPath,
    app,
    err,
    file_provider,
    open_key,
    out,
)
from recorder.custody import KINDS, Keeper, points, read_custody, utc_ns
from recorder.destruction import carry_out, certificate
from recorder.manifest import MANIFEST, ManifestError, read_manifest
from recorder.statements import Statement, StatementError

Operator = Annotated[str, typer.Option("--operator", help="Who acts; sealed in the statement.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; sealed in the statement.")]


def _accepted(path: Path, *certificates_pem: str) -> set[bytes]:
    manifest = read_manifest(path).page.certificate.public_key.point
    return {manifest, *points(*certificates_pem)}


def _keeper(path: Path, keys: Path, passphrase_file: Path | None, operator: str, purpose: str) -> Keeper:
    if not operator.strip():
        raise typer.BadParameter("must name somebody", param_hint="--operator")
    provider = file_provider(keys, passphrase_file)
    data_key = open_key(provider, path, purpose, operator)
    signer = provider.signer()
    return Keeper(path, data_key, signer, _accepted(path, signer.certificate_pem), operator)


def _said(statement: Statement) -> None:
    out.print(f"statement {statement.number}: {statement.kind} {statement.body.get('action', '')}".rstrip())


@app.command()
def retention(
    path: RecordingPath,
    keys: NeededKeys,
    operator: Operator,
    until: Annotated[
        list[str] | None,
        typer.Option("--until", help="KIND=TIME, such as archive=2037-01-01; may be repeated."),
    ] = None,
    basis: Annotated[str, typer.Option("--basis", help="Rule it rests on, such as product_end+6m.")] = "",
    reason: Reason = "",
    approve: Annotated[
        int | None,
        typer.Option("--approve", help="Let the shorter time count that another proposed in this statement."),
    ] = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Set until when kinds of files (original, archive, derived) are kept at least.

    A later time counts at once. An earlier one is only proposed, until another person approves it.
    """
    keeper = _keeper(path, keys, passphrase_file, operator, "retention")
    if approve is not None:
        _said(keeper.approve_retention(approve))
        return
    times: dict[str, int] = {}
    for one in until or []:
        kind, _, when = one.partition("=")
        try:
            times[kind] = utc_ns(when)
        except ValueError:
            kind = ""
        if kind not in KINDS:
            raise typer.BadParameter(f"{one}: write KIND=TIME, KIND one of {', '.join(KINDS)}")
    if not times or not basis:
        raise typer.BadParameter("give --until and --basis, or --approve")
    _said(keeper.set_retention(times, basis, reason))


@app.command()
def hold(
    path: RecordingPath,
    keys: NeededKeys,
    operator: Operator,
    reason: Reason,
    release: Annotated[
        int | None,
        typer.Option(
            "--release", help="Release this hold instead: the number of the statement that placed it."
        ),
    ] = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Place a legal hold: nothing of the recording is destroyed until it is released by another person."""
    keeper = _keeper(path, keys, passphrase_file, operator, "hold")
    _said(keeper.place_hold(reason) if release is None else keeper.release_hold(release, reason))


@app.command()
def review(
    path: RecordingPath,
    state: Annotated[str, typer.Argument(help="compliant, to_rectify, rectified_pending or confirmed.")],
    keys: NeededKeys,
    operator: Operator,
    comment: Annotated[str, typer.Option("--comment", help="What was found; sealed.")] = "",
    agent: Annotated[
        list[str] | None, typer.Option("--agent", help="Identity that must not review it; may be repeated.")
    ] = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Sign the outcome of a manual review."""
    keeper = _keeper(path, keys, passphrase_file, operator, "review")
    _said(keeper.review(state, comment, operator, agent or []))


@app.command()
def destroy(
    path: RecordingPath,
    keys: NeededKeys,
    operator: Operator,
    kind: Annotated[
        list[str] | None,
        typer.Option("--kind", help="Propose to destroy this kind of files; may be repeated."),
    ] = None,
    reason: Reason = "",
    approve: Annotated[
        int | None,
        typer.Option("--approve", help="Carry out what another person proposed in this statement."),
    ] = None,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Withdraw what is proposed.")] = False,
    certificate_file: Annotated[
        Path | None,
        typer.Option(
            "--certificate", help="With --approve: write the signed certificate of destruction here."
        ),
    ] = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Destroy files whose retention is over: proposed by one person, carried out by another.

    Refused while a kind's time runs or a hold stands. The tombstone with all digests is signed first. With
    all three kinds the data key goes too: nobody opens the recording again, its pages still verify.
    """
    if (kind is not None) + (approve is not None) + withdraw != 1:
        raise typer.BadParameter("give one of --kind, --approve, --withdraw")
    keeper = _keeper(path, keys, passphrase_file, operator, "destroy")
    if kind is not None:
        if not reason.strip():
            raise typer.BadParameter("say why", param_hint="--reason")
        _said(keeper.propose_destruction(set(kind), reason, time.time_ns()))
    elif approve is None:
        _said(keeper.withdraw("destruction", reason))
    else:
        if certificate_file is not None and certificate_file.exists():
            raise FileExistsError(f"{certificate_file} exists")
        tombstone = keeper.approve_destruction(approve, time.time_ns())
        sealed = keeper.sealed_part(tombstone.number)
        page = certificate(
            path,
            tombstone,
            keeper.signer,
            proposed_by=str(sealed.get("proposed_by")),
            approved_by=operator,
            reason=str(sealed.get("reason")),
        )
        if certificate_file is not None:
            write_private(certificate_file, page)
        _said(tombstone)
        out.print(f"{carry_out(path, keeper.accepted)} files removed")


@app.command()
def due(
    root: Annotated[Path, typer.Argument(metavar="PATH", help="Directory to search for recordings.")],
    as_json: AsJson = False,
) -> None:
    """List the recordings of which something may be destroyed by now, and those on hold. Destroys nothing.

    Needs no key. Builds upon the statements of each manifest's own signer.
    """
    rows = []
    for manifest in sorted(root.rglob(MANIFEST)):
        path = manifest.parent
        try:
            custody = read_custody(path, _accepted(path))
        except (ManifestError, StatementError, CanonicalError) as error:
            err.print(f"recorder: {path}: {error}", markup=False)
            continue
        kinds = custody.due(time.time_ns())
        if kinds or custody.holds:
            rows.append({"path": str(path), "due": kinds, **custody.to_json()})
    if as_json:
        out.print_json(json.dumps(rows, ensure_ascii=False))
        return
    table = Table("recording", "due", "on hold", "proposed")
    for row in rows:
        table.add_row(
            Path(str(row["path"])).name, *(_listed(row[name]) for name in ("due", "holds", "proposals"))
        )
    out.print(table)


def _listed(value: object) -> str:
    items = value if isinstance(value, list) else []
    return ", ".join(
        str(one.get("hold") or one.get("kind")) if isinstance(one, dict) else str(one) for one in items
    )
