"""The command line, run as people run it."""

from __future__ import annotations

import asyncio
import fcntl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiohttp import web
from typer.testing import CliRunner, Result

from mediaserver import cli, tls
from mediaserver.config import default_yaml, load
from mediaserver.secrets import open_secrets, read_api_keys
from mediaserver.tokens import Tokens


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments), env=environ)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A data directory after its first start."""
    made = {"SHUANGLU__DATA_DIR": str(tmp_path / "data"), "SHUANGLU__HTTP__HOST": "127.0.0.1"}
    open_secrets(load(None, made))
    return made


def test_every_command_has_help() -> None:
    names = {
        command.name or getattr(command.callback, "__name__", "") for command in cli.app.registered_commands
    }
    assert names == {"serve", "invite", "token", "doctor", "config", "health", "version"}
    for name in names:
        result = run(name, "--help")
        assert result.exit_code == 0
        assert len(result.output) > 100
    assert "mediaserver doctor" in run("--help").output


def test_config_prints_what_is_in_effect(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("http: {port: 9443}\ncrypto: {passphrase: canary}\n")
    result = run("config", "--config", str(file), SHUANGLU__DRAIN_S="5")
    assert "port: 9443" in result.output
    assert "drain_s: 5.0" in result.output
    assert "canary" not in result.output
    assert run("config", "--default").output == default_yaml()


def test_a_faulty_configuration_is_exit_code_2_and_named(tmp_path: Path) -> None:
    for command in ("serve", "config", "doctor"):
        result = run(command, SHUANGLU__HTTP__PORTS="1")
        assert result.exit_code == 2
        assert "http.ports: unknown key; did you mean http.port?" in result.output


def test_a_second_server_on_the_same_data_says_so(tmp_path: Path, environ: dict[str, str]) -> None:
    (tmp_path / "data/run").mkdir(parents=True, exist_ok=True)
    with (tmp_path / "data/run/control.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = run("serve", **environ)
    assert result.exit_code == 1
    assert f"another server runs on {tmp_path / 'data'}" in result.output


def test_tokens_are_made_offline(tmp_path: Path, environ: dict[str, str]) -> None:
    verifier = Tokens(read_api_keys(tmp_path / "data/secrets/api-keys.yaml"), "s" * 40)
    arguments = ["token", "--room", "r", "--identity", "x", "--role", "agent", "--grant", "publish"]
    client = verifier.verify(run(*arguments, **environ).output.strip())
    assert (client.identity, client.grants.publish, client.grants.record) == ("x", True, False)
    assert verifier.verify(run("token", "--server", **environ).output.strip()).kind == "server"
    assert run("token", **environ).exit_code == 1
    assert "no key nope" in run("token", "--server", "--key", "nope", **environ).output
    assert "no such grant" in run(*arguments, "--grant", "root", **environ).output


def test_without_a_first_start_there_is_no_key(tmp_path: Path) -> None:
    result = run("token", "--server", SHUANGLU__DATA_DIR=str(tmp_path))
    assert result.exit_code == 1
    assert "was the server started" in result.output


@contextmanager
def serving(certificate: tls.Certificate, body: object, status: int, asked: list[str]) -> Iterator[int]:
    """Serve POST /v1/invites over HTTPS in a thread; gives the port."""
    loop = asyncio.new_event_loop()

    async def invites(request: web.Request) -> web.Response:
        asked.append(f"{request.headers['Authorization'][:7]} {await request.text()}")
        return web.json_response(body, status=status)

    async def ready(request: web.Request) -> web.Response:
        return web.json_response(body, status=status)

    async def start() -> tuple[web.AppRunner, int]:
        app = web.Application()
        app.router.add_post("/v1/invites", invites)
        app.router.add_get("/readyz", ready)
        runner = web.AppRunner(app)
        await runner.setup()
        context = tls.context(certificate.cert, certificate.key)
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        return runner, runner.addresses[0][1]

    runner, port = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield port
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


URL = "https://192.0.2.7:8443/#code=ABCD-EFGH"


def test_an_invitation_is_printed_with_its_qr_code(tmp_path: Path, environ: dict[str, str]) -> None:
    made = tls.certificate(load(None, environ), ("192.0.2.7",), tls.utc_now())
    asked: list[str] = []
    body = {"code": "ABCD-EFGH", "url": URL, "expires_at": "2026-01-01T00:00:00.000Z"}
    with serving(made, body, 201, asked) as port:
        environ["SHUANGLU__HTTP__PORT"] = str(port)
        result = run("invite", "--room", "r1", "--role", "customer", "--name", "王五", **environ)
        quiet = run("invite", "--room", "r1", "--quiet", **environ)
    assert result.exit_code == 0, result.output
    assert asked[0].startswith("Bearer ")
    assert '"role": "customer"' in asked[0]
    assert URL in result.output
    assert "▀" in result.output or "█" in result.output
    assert quiet.output == URL + "\n"


def test_another_servers_certificate_is_not_trusted(tmp_path: Path, environ: dict[str, str]) -> None:
    tls.certificate(load(None, environ), ("127.0.0.1",), tls.utc_now())
    elsewhere = load(None, {"SHUANGLU__DATA_DIR": str(tmp_path / "elsewhere")})
    impostor = tls.certificate(elsewhere, ("127.0.0.1",), tls.utc_now())
    asked: list[str] = []
    with serving(impostor, {}, 201, asked) as port:
        result = run("invite", "--room", "r", **{**environ, "SHUANGLU__HTTP__PORT": str(port)})
    assert result.exit_code == 1
    assert not asked


def test_no_server_and_a_refusal_are_told_plainly(environ: dict[str, str]) -> None:
    result = run("invite", "--room", "r", "--url", "https://127.0.0.1:1", **environ)
    assert result.exit_code == 1
    assert "mediaserver serve" in result.output
    made = tls.certificate(load(None, environ), ("127.0.0.1",), tls.utc_now())
    problem = {"code": "draining", "detail": "going down"}
    with serving(made, problem, 503, []) as port:
        result = run("invite", "--room", "r", **{**environ, "SHUANGLU__HTTP__PORT": str(port)})
    assert result.exit_code == 1
    assert "draining: going down" in result.output


@pytest.mark.parametrize(("status", "exit_code"), [(200, 0), (503, 1)])
def test_health_is_an_exit_code(environ: dict[str, str], status: int, exit_code: int) -> None:
    made = tls.certificate(load(None, environ), ("127.0.0.1",), tls.utc_now())
    with serving(made, {"status": "ok" if status == 200 else "unready"}, status, []) as port:
        assert run("health", **{**environ, "SHUANGLU__HTTP__PORT": str(port)}).exit_code == exit_code
    assert run("health", "--url", "http://127.0.0.1:1", **environ).exit_code == 1
