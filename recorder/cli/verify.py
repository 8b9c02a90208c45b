"""``recorder verify``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from recorder.audit.proof import compare
from recorder.certificates import Trust
from recorder.cli.base import AsJson, Keys, PassphraseFile, app, err, file_provider, open_key, out, visible
from recorder.cli.reports import print_plain, print_report
from recorder.cli.sites import KeepIn, SiteFile, is_url, local
from recorder.keys import KeyProblem
from recorder.plain import verify_plain
from recorder.report import Finding, Kind, Report, Verdict
from recorder.sealed import DataKey
from recorder.sites import SiteError
from recorder.timestamp import read_anchors
from recorder.verify import verify as verify_recording

# The damaged one of several decides, then the unproven one.
_WORST_FIRST = (Verdict.BROKEN, Verdict.UNPROVEN, Verdict.DESTROYED, Verdict.OK)
_EXIT_CODES = {Verdict.OK: 0, Verdict.DESTROYED: 0, Verdict.BROKEN: 1, Verdict.UNPROVEN: 3}


@app.command()
def verify(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH|URL…",
            help="Directories of recordings, or their addresses at a site: s3://bucket/prefix/… or file:///…",
        ),
    ],
    keys: Keys = None,
    passphrase_file: PassphraseFile = None,
    trust: Annotated[
        list[Path] | None,
        typer.Option(
            "--trust",
            help="PEM certificate of a signer you trust, or of an authority that vouches for signers, "
            "obtained another way; may be repeated. Without it the recording's own certificate is taken, and "
            "its fingerprint printed for you to compare.",
        ),
    ] = None,
    purpose: Annotated[
        list[str] | None,
        typer.Option(
            "--purpose",
            help="OID of extendedKeyUsage that signers of a trusted authority may be restricted to. Without "
            "it certificates for a stated purpose, such as TLS servers, are refused unless named by --trust.",
        ),
    ] = None,
    tsa_trust: Annotated[
        Path | None,
        typer.Option(
            "--tsa-trust",
            help="PEM certificates of time-stamp authorities you trust. Without it time-stamps are compared "
            "with what they stamp, but not verified.",
        ),
    ] = None,
    plain: Annotated[
        Path | None,
        typer.Option(
            "--plain",
            help="An exported plain file, such as composite.mp4. The PATHs are then an exported package "
            "(directory or zip), or a manifest.json with statements beside it, or single pages.",
        ),
    ] = None,
    second: Annotated[
        bool,
        typer.Option(
            "--second-opinion",
            help="Have signatures and digests that hold computed again by gmssl, which is pure Python and "
            "shares no code with the first check: all pages, up to 200 checkpoints, 1 MiB of files (15 s).",
        ),
    ] = False,
    audit: Annotated[
        Path | None,
        typer.Option(
            "--audit",
            help="The server's audit log (DATA/audit): finds what the recording alone cannot show, such as a "
            "tail cut back or a statement removed.",
        ),
    ] = None,
    site: SiteFile = None,
    keep_in: KeepIn = None,
    as_json: AsJson = False,
) -> None:
    """Check that nothing in a recording was changed, removed, reordered, cut off or added.

    Needs no key: certificates, signatures, the SM3 chain of every record, signed checkpoints and digests are
    enough. With --keys every chunk is opened as well. Each finding names file, record, byte range and, where
    signed checkpoints tell, the time of capture.

    With --plain FILE it answers without any key which signed page names just these bytes, and so which
    recording the file is of.

    Exit code 0 only if everything that should be there holds (also of a recording destroyed by rule); 1 if
    anything is damaged; 3 if no damage was found, but the recording has no signed manifest yet (running, or
    left by a crash), so that its tail is not proven. Of several recordings the worst decides, and --json
    prints a list, in the order they were named.

    With a URL the sealed bytes at that site are checked; they are fetched into a private temporary directory.
    """
    trusted = Trust.from_files(trust, purpose or ()) if trust else None
    time_authorities = read_anchors(tsa_trust) if tsa_trust else None
    if plain is not None:
        found = verify_plain(plain, [Path(place) for place in places], trusted=trusted)
        if as_json:
            out.print_json(json.dumps(found.to_json(), ensure_ascii=False))
        else:
            print_plain(found)
        raise typer.Exit(0 if found.ok else 1)
    if keep_in is not None and (len(places) > 1 or not is_url(places[0])):
        raise typer.BadParameter("goes with one URL", param_hint="--in")
    reports: list[Report] = []
    for place in places:
        try:
            with local(place, site, keep_in) as path:
                data_key = _open_key_if_asked(keys, passphrase_file, path)
                report = verify_recording(
                    path, data_key=data_key, trusted=trusted, time_authorities=time_authorities
                )
                if audit is not None:
                    signers = {*trusted.fingerprints, *report.signers} if trusted is not None else None
                    compare(report, path, audit, trusted=signers)
                if second:
                    from recorder import second_opinion  # gmssl, which nothing else needs

                    second_opinion.check(path, report)
        except (OSError, SiteError) as error:
            if len(places) == 1:
                raise
            # What cannot be read must not hide what is to be said of the others.
            report = Report(place, findings=[Finding(Kind.UNSUPPORTED, "", f"cannot be read: {error}")])
        reports.append(report)
        if not as_json:
            if len(places) > 1:
                out.print(visible(place), style="bold")
            print_report(report)
    if as_json:
        listed = [report.to_json() for report in reports]
        out.print_json(json.dumps(listed if len(places) > 1 else listed[0], ensure_ascii=False))
    verdicts = {report.verdict for report in reports}
    raise typer.Exit(next(_EXIT_CODES[verdict] for verdict in _WORST_FIRST if verdict in verdicts))


def _open_key_if_asked(keys: Path | None, passphrase_file: Path | None, path: Path) -> DataKey | None:
    if keys is None:
        return None
    try:
        return open_key(file_provider(keys, passphrase_file, expired=True), path, "verify", "recorder verify")
    except KeyProblem as error:
        # A broken sidecar is a finding, not a reason to check nothing.
        err.print(f"recorder: goes on without the key: {error}", markup=False)
        return None
