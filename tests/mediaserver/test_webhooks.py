"""Events delivered to an API key's URL: signed, tried again, not twice."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import yaml
from aiohttp import web

from mediaserver.recordings import jobs
from mediaserver.webhooks import signature
from tests.mediaserver.running import KEYS, running, settings_in

# printf 'msg_1.1700000000.{"a":1}' | openssl dgst -sha256 -hmac secret -binary | base64
SIGNED = "v1,Q5nZ7DiOGwijBBqvBVAK6c0zDr2JLkXI7TaV4f+Q2vY="


def test_the_signature_is_that_of_standard_webhooks() -> None:
    assert signature("secret", "msg_1", 1_700_000_000, b'{"a":1}') == SIGNED


async def test_delivery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "FIRST_RETRY_S", 0.2)
    got: asyncio.Queue[tuple[dict[str, str], bytes]] = asyncio.Queue()
    refusals = [500]

    async def receive(request: web.Request) -> web.Response:
        got.put_nowait((dict(request.headers), await request.read()))
        return web.Response(status=refusals.pop() if refusals else 204)

    receiver = web.Application()
    receiver.router.add_post("/hook", receive)
    runner = web.AppRunner(receiver)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    settings = settings_in(tmp_path)
    settings.secrets_dir.mkdir(parents=True, mode=0o700)
    path = settings.secrets_dir / "api-keys.yaml"
    with_hook = {"id": "key-one", "secret": KEYS[0].secret, "tenant": "one", "webhook_url": url}
    other = {"id": "key-two", "secret": KEYS[1].secret, "tenant": "two"}
    path.write_text(yaml.safe_dump([with_hook, other]))
    path.chmod(0o600)
    try:
        async with running(settings) as api, asyncio.timeout(60):
            await api.ok("POST", "/v1/rooms", {"name": "theirs"}, key=KEYS[1])
            await api.ok("POST", "/v1/rooms", {"name": "hall"})
            first_headers, first = await got.get()
            headers, body = await got.get()  # refused with 500, so it came again
            assert body == first
            assert headers["webhook-id"] == first_headers["webhook-id"]
            event = json.loads(body)
            assert (event["type"], event["room"]) == ("room.opened", "hall")
            expected = signature(KEYS[0].secret, event["id"], int(headers["webhook-timestamp"]), body)
            assert headers["webhook-signature"] == expected
            await api.ask("DELETE", "/v1/rooms/hall")
            _, closed = await got.get()
            assert json.loads(closed)["type"] == "room.closed"
            assert got.empty()
            monkeypatch.setattr(jobs, "KEPT_DAYS", -1)
            async with asyncio.timeout(10):
                while await api.control._jobs.forget_old() == 0:
                    await asyncio.sleep(0.1)
    finally:
        await runner.cleanup()
