"""The command ``mediaserver``."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import os
import ssl
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import segno
import typer
import uvloop
from rich.console import Console
from rich.table import Table

from mediaserver import addresses, config, doctor, log, tls
from mediaserver.secrets import Secrets, SecretsError, open_secrets, read_api_keys
from mediaserver.settings import Settings
from mediaserver.tokens import ApiKey, Grants, client_token, server_token

app = typer.Typer(
    name="mediaserver",
    help="Media server for dual recording (双录): relays WebRTC calls, records, composes and seals them.",
    epilog="First: mediaserver doctor. Then: mediaserver serve, and mediaserver invite --room demo.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False, soft_wrap=True)

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        envvar="SHUANGLU_CONFIG",
        help="YAML file with what differs from the defaults (see configs/default.yaml).",
    ),
]


@app.command()
def serve(config_file: ConfigFile = None) -> None:
    """Run the server: control process, media workers and composing jobs.

    The first start makes all secrets in the data directory. SIGTERM or Ctrl-C drains: no new rooms, calls get
    drain_s to end, recordings are closed; a second signal closes at once.
    """
    settings = _settings(config_file)
    from mediaserver.control import serve as run  # heavy imports, which the other commands do without
    from mediaserver.supervisor import AlreadyRunning, NoWorker

    log.configure(settings.log)
    try:
        uvloop.run(run(settings, _announce(settings)))
    except (AlreadyRunning, NoWorker) as error:
        raise _fail(str(error)) from error


@app.command()
def invite(
    room: Annotated[str, typer.Option(help="Room to join; it opens when the first one joins.")],
    role: Annotated[
        str, typer.Option(help="agent, customer, co_borrower, expert, manager, supervisor …")
    ] = "agent",
    name: Annotated[str, typer.Option(help="Name shown to the others and in the recording.")] = "",
    identity: Annotated[str, typer.Option(help="Who it is, unique in the room. Default: made up.")] = "",
    url: Annotated[str, typer.Option(help="Where the server answers. Default: as configured.")] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the address only.")] = False,
    config_file: ConfigFile = None,
) -> None:
    """Print a one-time code, its address and a QR code that let one person into a room.

    Asks the running server with the API key of its data directory. The code works once.
    """
    settings = _settings(config_file)
    body = {"room": room, "role": role, "name": name, "identity": identity}
    given = {key: value for key, value in body.items() if value}
    signed = server_token(_api_key(settings))
    answer = asyncio.run(_ask(settings, url, "POST", "/v1/invites", given, signed))
    if quiet:
        print(answer["url"])
        return
    out.print(f"Code      {answer['code']}\nAddress   {answer['url']}\nUntil     {answer['expires_at']}\n")
    segno.make(answer["url"], error="l", micro=False).terminal(out=sys.stdout, compact=True, border=2)


@app.command()
def token(
    room: Annotated[str, typer.Option(help="Room of a client token.")] = "",
    identity: Annotated[str, typer.Option(help="Participant of a client token.")] = "",
    role: Annotated[
        str, typer.Option(help="Its role, which decides its grants unless they are given.")
    ] = "customer",
    name: Annotated[str, typer.Option(help="Its name.")] = "",
    grant: Annotated[
        list[str] | None, typer.Option(help="publish, subscribe, record, hidden, admin; several times.")
    ] = None,
    server: Annotated[
        bool, typer.Option("--server", help="A server's token: everything in its tenant.")
    ] = False,
    ttl_s: Annotated[int, typer.Option(help="Life in seconds; 0: the default of its kind.")] = 0,
    key_id: Annotated[str, typer.Option("--key", help="API key to sign with. Default: the newest.")] = "",
    config_file: ConfigFile = None,
) -> None:
    """Sign a token with the API key of the data directory, offline, and print it."""
    settings = _settings(config_file)
    key = _api_key(settings, key_id)
    if server:
        print(server_token(key, ttl_s=ttl_s or 60))
        return
    try:
        granted = Grants.from_json(dict.fromkeys(grant, True)) if grant else None
        text, _ = client_token(
            key,
            identity=identity,
            room=room,
            role=role,
            name=name,
            grants=granted,
            ttl_s=ttl_s or settings.tokens.client_ttl_s,
        )
    except ValueError as error:
        raise _fail(str(error)) from error
    print(text)


@app.command(name="doctor")
def doctor_command(config_file: ConfigFile = None) -> None:
    """Check ports, buffers, clock, disk, crypto libraries, fonts and addresses; say what to change.

    Exit code 1 if something would keep the server from starting or recording.
    """
    findings = doctor.examine(_settings(config_file))
    marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "failure": "[red]failure[/]"}
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for finding in findings:
        advice = f"\n→ {finding.advice}" if finding.advice else ""
        table.add_row(marks[finding.level], finding.name, finding.text + advice)
    out.print(table)
    failures = sum(finding.level == "failure" for finding in findings)
    warnings = sum(finding.level == "warning" for finding in findings)
    out.print(f"\n{failures} failures, {warnings} warnings")
    raise typer.Exit(1 if failures else 0)


@app.command(name="config")
def config_command(
    default: Annotated[
        bool, typer.Option("--default", help="Print configs/default.yaml: all keys, documented.")
    ] = False,
    config_file: ConfigFile = None,
) -> None:
    """Print the settings in effect (file, environment, defaults), secrets starred out."""
    print(config.default_yaml() if default else config.dump(_settings(config_file)), end="")


@app.command()
def health(
    url: Annotated[str, typer.Option(help="Where the server answers. Default: as configured.")] = "",
    config_file: ConfigFile = None,
) -> None:
    """Ask the running server whether it is ready; exit code 1 if not. For container health checks."""
    settings = _settings(config_file)
    answer = asyncio.run(_ask(settings, url, "GET", "/readyz"))
    print(answer.get("status", "ok"))


@app.command()
def version() -> None:
    """Print the version."""
    print(importlib.metadata.version("shuanglu"))


def main() -> None:
    """Run the command line."""
    app()


def _fail(text: str, code: int = 1) -> typer.Exit:
    err.print(text, style="red", markup=False)
    return typer.Exit(code)


def _settings(path: Path | None) -> Settings:
    try:
        return config.load(path, os.environ)
    except config.ConfigError as error:
        where = f" {path}" if path else ""
        raise _fail("\n".join([f"The configuration{where} is refused:", *error.problems]), 2) from error


def _api_key(settings: Settings, key_id: str = "") -> ApiKey:
    path = settings.secrets_dir / "api-keys.yaml"
    try:
        keys = [key for key in read_api_keys(path) if key_id in ("", key.id)]
    except SecretsError as error:
        raise _fail(
            f"{error}\nIs {settings.data_dir} the data directory, and was the server started?"
        ) from error
    if not keys:
        raise _fail(f"{path} has no key {key_id}")
    return keys[-1]


def _announce(settings: Settings) -> Secrets:
    """Make what a first start lacks and say what clients will be told. Opens the keys, once: those of the
    environment are taken out of it.
    """
    try:
        secrets = open_secrets(settings)
        told = addresses.advertised(settings)
        made = (
            tls.certificate(settings, tls.names_to_cover(told), datetime.now(UTC))
            if settings.tls.enabled
            else None
        )
    except (SecretsError, tls.TlsError) as error:
        raise _fail(str(error), 2) from error
    if secrets.created:
        err.print("Made at this first start (keep them, back them up):")
        for path in secrets.created:
            err.print(f"  {path}", markup=False)
    ports = f"UDP {settings.media.port}" if settings.media.port else "any free UDP port"
    workers = settings.media.workers or len(os.sched_getaffinity(0))
    if settings.media.port and workers > 1:
        ports += f" to {settings.media.port + workers - 1}"
    if settings.media.tcp_port:
        ports += f", TCP {settings.media.tcp_port}"
    err.print(f"Page and API        {addresses.public_url(settings)}", markup=False)
    err.print(f"Clients are told    {', '.join(told)}  ({ports})", markup=False)
    if made is not None:
        kind = "self-signed certificate" if made.self_signed else "certificate"
        err.print(f"SHA-256 of the {kind}\n  {made.fingerprint}", markup=False)
    if settings.environment == "development":
        err.print("Environment         development: recordings say so for ever", markup=False)
    return secrets


async def _ask(
    settings: Settings, url: str, method: str, path: str, body: dict[str, Any] | None = None, token: str = ""
) -> dict[str, Any]:
    """Ask the running server; ends the command with a clear text if it does not answer or refuses."""
    base = (url or _local_url(settings)).rstrip("/")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=15)) as session,
            session.request(
                method, base + path, json=body, headers=headers, ssl=_trust(settings)
            ) as response,
        ):
            answer: dict[str, Any] = await response.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise _fail(f"No server answers at {base} ({error}). Start it with: mediaserver serve") from error
    except ValueError as error:
        raise _fail(f"{base} is no Shuanglu media server: {error}") from error
    if response.status >= 400:
        detail = answer.get("detail") or answer.get("title") or answer.get("status")
        raise _fail(f"The server refuses: {answer.get('code', response.status)}: {detail}")
    return answer


def _local_url(settings: Settings) -> str:
    host = settings.http.host
    parsed = addresses.ipaddress_or_none(host)
    if parsed is not None and parsed.is_unspecified:
        host = "::1" if parsed.version == 6 else "127.0.0.1"
    scheme = "https" if settings.tls.enabled else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.http.port}"


def _trust(settings: Settings) -> aiohttp.Fingerprint | bool:
    """Trust exactly the certificate on this machine's disk: its names need not cover 127.0.0.1."""
    cert = settings.tls.cert or settings.secrets_dir / "tls" / "cert.pem"
    if not settings.tls.enabled or not cert.exists():
        return True
    leaf = cert.read_text(encoding="ascii").split("-----END CERTIFICATE-----", 1)[0]
    der = ssl.PEM_cert_to_DER_cert(leaf[leaf.index("-----BEGIN") :] + "-----END CERTIFICATE-----\n")
    return aiohttp.Fingerprint(hashlib.sha256(der).digest())
