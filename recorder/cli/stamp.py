"""``recorder timestamp``, ``renew`` and ``csr``: time-stamps of an authority, requests for certificates."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from recorder.atomic import write_private
from recorder.cli.base import (
    AsJson,
    Keys,
    NeededKeys,
    PassphraseFile,
    RecordingPath,
    app,
    err,
    fail,
    file_provider,
    out,
    passphrase,
    visible,
)
from recorder.keys import FileProvider
from recorder.manifest import MANIFEST
from recorder.report import Verdict
from recorder.statements import StatementError, read_statements
from recorder.timestamp import (
    DEFAULT_TIMEOUT_S,
    RENEWAL,
    TIMESTAMP,
    Authority,
    Stamped,
    read_anchors,
    stamp,
)
from recorder.tokens import lapse_of
from recorder.verify import verify

Url = Annotated[str, typer.Option("--url", help="HTTP(S) address of the time-stamp authority (RFC 3161).")]
TsaTrust = Annotated[
    Path | None,
    typer.Option(
        "--tsa-trust",
        help="PEM file with the authority's root (or its own certificate). Without it any authority's answer "
        "is taken that holds by itself.",
    ),
]
Policy = Annotated[
    str | None, typer.Option("--policy", help="OID of the policy to ask for; default: the authority's own.")
]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds to wait for the authority.", min=0.1)]


def _authority(url: str, trust: Path | None, policy: str | None, timeout_s: float) -> Authority:
    return Authority(url, read_anchors(trust) if trust is not None else None, policy, timeout_s)


def _say(done: Stamped) -> None:
    token = done.token
    out.print(
        f"statement {done.statement.number}: {done.statement.kind} of {token.time:%Y-%m-%d %H:%M:%S} UTC by "
        f"{visible(token.authority) or 'an authority that is not named'}",
        soft_wrap=True,
    )
    if done.state != "verified":
        err.print(
            "recorder: stored, but not verified here: this program cannot check the authority's algorithm",
            markup=False,
        )


@app.command()
def timestamp(
    path: RecordingPath,
    keys: NeededKeys,
    url: Url,
    tsa_trust: TsaTrust = None,
    policy: Policy = None,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Have an authority stamp a recording's manifest and all its statements so far (RFC 3161).

    Only a digest leaves the machine. The token is stored whole in a signed statement; verify --tsa-trust and
    openssl ts check it.
    """
    provider = file_provider(keys, passphrase_file)
    _say(stamp(path, TIMESTAMP, _authority(url, tsa_trust, policy, timeout), provider.signer()))


@app.command()
def renew(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Directory of one recording; with --due one to search.")
    ],
    keys: Keys = None,
    url: Annotated[
        str | None, typer.Option("--url", help="HTTP(S) address of the time-stamp authority (RFC 3161).")
    ] = None,
    tsa_trust: TsaTrust = None,
    policy: Policy = None,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    passphrase_file: PassphraseFile = None,
    due: Annotated[
        int | None,
        typer.Option(
            "--due",
            help="Renew nothing: list the recordings below PATH whose newest time-stamp's authority's "
            "certificate ends within this many days, or has ended.",
            min=0,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Have a whole recording stamped again, before the last time-stamp's certificate or algorithm lapses.

    Everything is verified first, and nothing is renewed that is broken. The token is over the digests of
    every file and page, earlier time-stamps included.
    """
    if due is not None:
        _list_due(path, due, as_json)
        return
    if keys is None or url is None:
        fail("renew needs --keys and --url (or --due to list what is to be renewed)")
    authority = _authority(url, tsa_trust, policy, timeout)
    provider = file_provider(keys, passphrase_file)
    report = verify(path, time_authorities=authority.anchors)
    if report.verdict == Verdict.BROKEN:
        for finding in report.findings:
            err.print(f"recorder: {visible(str(finding))}", markup=False)
        fail(f"{path} is broken: a renewal would only vouch for the damage")
    _say(stamp(path, RENEWAL, authority, provider.signer()))


def _list_due(root: Path, days: int, as_json: bool) -> None:
    until = datetime.now(UTC) + timedelta(days=days)
    rows: list[dict[str, str]] = []
    unstamped = 0
    for manifest in sorted(root.rglob(MANIFEST)):
        try:
            lapse = lapse_of(read_statements(manifest.parent))
        except (StatementError, OSError) as error:
            err.print(f"recorder: {manifest.parent}: {error}", markup=False)
            continue
        if lapse is None:
            unstamped += 1
        elif lapse <= until:
            rows.append({"path": str(manifest.parent), "lapses": f"{lapse:%Y-%m-%dT%H:%M:%SZ}"})
    if as_json:
        out.print_json(json.dumps({"due": rows, "without_timestamp": unstamped}, ensure_ascii=False))
        return
    table = Table("recording", "its newest time-stamp lapses")
    for row in rows:
        table.add_row(visible(row["path"]), row["lapses"])
    out.print(table)
    out.print(f"{len(rows)} to renew; {unstamped} have no time-stamp")


@app.command()
def csr(
    keys: NeededKeys,
    to: Annotated[Path, typer.Argument(metavar="OUT", help="Directory for the two requests.")],
    common_name: Annotated[str, typer.Option("--name", help="Common name of the signer, such as a node's.")],
    organisation: Annotated[
        str | None, typer.Option("--organisation", help="Organisation, such as the bank's registered name.")
    ] = None,
    country: Annotated[str, typer.Option("--country", help="Two letters.")] = "CN",
    passphrase_file: PassphraseFile = None,
) -> None:
    """Write requests (PKCS #10, SM2 with SM3) for certificates of the signing and the encryption key.

    What the authority issues goes over signing.cert.pem and encryption.cert.pem, each followed by the
    issuers' certificates. The private keys stay where they are.
    """
    provider = FileProvider.open(keys, passphrase(passphrase_file), expired=True)
    subject = {"C": country, **({"O": organisation} if organisation else {}), "CN": common_name}
    try:
        requests = provider.signing_requests(subject)
    except ValueError as error:
        fail(str(error))
    to.mkdir(parents=True, exist_ok=True)
    for half, request in requests.items():
        write_private(to / f"{half}.csr.pem", request.encode())
        out.print(str(to / f"{half}.csr.pem"), soft_wrap=True)
