"""Real Firefox as a participant, driven over WebDriver BiDi (W3C), which Firefox speaks by itself."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.e2e.browser import CLIENT, Participant
from tests.media.pictures import Party

FIREFOX = Path("/usr/bin/firefox-esr")
DEVICES = Path(__file__).with_name("devices.js")
START_S = 60.0
CLICK = """async id => {
    const pause = ms => new Promise(done => setTimeout(done, ms));
    let button = null;
    while (!(button?.checkVisibility() && !button.disabled)) {
        await pause(50);
        button = document.querySelector(`[data-testid=${id}]`);
    }
    button.click();
}"""
PREFERENCES = {
    "media.navigator.permission.disabled": True,
    "media.navigator.streams.fake": True,
    "media.autoplay.default": 0,
    "media.autoplay.blocking_policy": 0,
    "media.peerconnection.ice.loopback": True,
    "media.peerconnection.ice.obfuscate_host_addresses": False,
    # Nothing is fetched from outside: no OpenH264 (so no H.264), no updates, no telemetry.
    "media.gmp-manager.updateEnabled": False,
    "app.update.enabled": False,
    "datareporting.policy.dataSubmissionEnabled": False,
}


class FirefoxError(RuntimeError):
    """Firefox did not start, or a script failed in it."""


@dataclass(eq=False)
class Tab:
    """One tab; ``evaluate`` is as playwright's page has it."""

    socket: aiohttp.ClientWebSocketResponse
    context: str = ""
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _waiting: dict[int, asyncio.Future[Any]] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)
    """Address → HTML that is served in its place."""
    errors: list[str] = field(default_factory=list)
    """What pages said was wrong, once ``visit`` was called."""

    async def read(self) -> None:
        """Take answers and requests until the socket closes."""
        serving: set[asyncio.Task[Any]] = set()
        async for message in self.socket:
            told = json.loads(message.data)
            if told.get("id") in self._waiting:
                self._waiting.pop(told["id"]).set_result(told)
            elif told.get("method") == "log.entryAdded":
                if told["params"]["level"] == "error":
                    self.errors.append(told["params"]["text"])
            elif told.get("method") == "network.beforeRequestSent" and told["params"]["isBlocked"]:
                request = told["params"]["request"]
                serving.add(asyncio.create_task(self._serve(request["request"], request["url"])))

    async def command(self, method: str, **params: Any) -> Any:
        """Send a command; returns its result. Raises FirefoxError."""
        number = next(self._numbers)
        answered = self._waiting[number] = asyncio.get_running_loop().create_future()
        await self.socket.send_json({"id": number, "method": method, "params": params})
        told = await asyncio.wait_for(answered, START_S)
        if told["type"] != "success":
            raise FirefoxError(f"{method}: {told.get('error')}: {told.get('message')}")
        return told["result"]

    async def evaluate(self, expression: str, arg: Any = None) -> Any:
        """Run a function or an expression in the page and return its result as JSON has it."""
        result = await self.command(
            "script.callFunction",
            functionDeclaration=f"""async (text) => {{
                const what = ({expression});
                const got = await (typeof what === "function" ? what(JSON.parse(text)) : what);
                return JSON.stringify(got) ?? "null";
            }}""",
            arguments=[{"type": "string", "value": json.dumps(arg)}],
            awaitPromise=True,
            target={"context": self.context},
        )
        if result["type"] != "success":
            raise FirefoxError(f"{expression}: {result['exceptionDetails']['text']}")
        return json.loads(result["result"]["value"])

    async def visit(self, address: str) -> None:
        """Show the page of an address as a desktop does; its errors are kept."""
        await self.command("session.subscribe", events=["log.entryAdded"])
        viewport = {"width": 1280, "height": 720}
        await self.command("browsingContext.setViewport", context=self.context, viewport=viewport)
        await self.command("browsingContext.navigate", context=self.context, url=address, wait="complete")

    async def click(self, test_id: str) -> None:
        """Click a button once it can be clicked."""
        await self.evaluate(CLICK, test_id)

    async def open(self, address: str, html: str) -> None:
        """Show ``html`` under an address, so that its scripts have that origin."""
        self.pages[address] = html
        await self.command("session.subscribe", events=["network.beforeRequestSent"])
        await self.command(
            "network.addIntercept",
            phases=["beforeRequestSent"],
            urlPatterns=[{"type": "string", "pattern": address}],
        )
        await self.command("browsingContext.navigate", context=self.context, url=address, wait="complete")

    async def _serve(self, request: str, url: str) -> None:
        body = base64.b64encode(self.pages[url].encode()).decode()
        await self.command(
            "network.provideResponse",
            request=request,
            statusCode=200,
            reasonPhrase="OK",
            headers=[
                {"name": "Content-Type", "value": {"type": "string", "value": "text/html; charset=utf-8"}}
            ],
            body={"type": "base64", "value": body},
        )


@asynccontextmanager
async def firefox(tone_hz: float = 1000.0) -> AsyncIterator[Tab]:
    """Run one headless Firefox whose microphone is a steady tone. Raises FirefoxError."""
    preferences = {**PREFERENCES, "media.navigator.audio.fake_frequency": round(tone_hz)}
    with tempfile.TemporaryDirectory(prefix="firefox-") as home:
        lines = [
            f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in preferences.items()
        ]
        (Path(home) / "user.js").write_text("\n".join(lines))
        process = await asyncio.create_subprocess_exec(
            str(FIREFOX), "--headless", "--no-remote", "--profile", home,
            "--remote-debugging-port", "0", "about:blank",
            stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE, env={**os.environ, "HOME": home},
        )  # fmt: skip
        try:
            url, drain = await asyncio.wait_for(_listening(process), START_S)
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(f"{url}/session", max_msg_size=0) as socket,
            ):
                tab = Tab(socket)
                reader = asyncio.create_task(tab.read())
                await tab.command("session.new", capabilities={"alwaysMatch": {"acceptInsecureCerts": True}})
                tree = await tab.command("browsingContext.getTree")
                tab.context = tree["contexts"][0]["context"]
                yield tab
                reader.cancel()
            drain.cancel()
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _listening(process: asyncio.subprocess.Process) -> tuple[str, asyncio.Task[None]]:
    """Return the address Firefox prints, and the task that goes on emptying its output."""
    assert process.stderr is not None
    said: list[str] = []
    while line := (await process.stderr.readline()).decode(errors="replace"):
        said.append(line)
        if "WebDriver BiDi listening on" in line:
            return line.split()[-1], asyncio.create_task(_empty(process.stderr))
    raise FirefoxError(f"Firefox ended:\n{''.join(said[-20:])}")


async def _empty(stream: asyncio.StreamReader) -> None:
    while await stream.readline():
        pass


@asynccontextmanager
async def firefox_participant(base: str, party: Party) -> AsyncIterator[Participant]:
    """Run one headless Firefox that sends a party's bar codes and tone, with the client page of ``base``."""
    async with firefox(party.tone_hz) as tab:
        script = f"stage.party = {party.number};\n{DEVICES.read_text()}"
        html = CLIENT.read_text(encoding="utf-8").replace("</script>", f"\n{{{script}}}\n</script>")
        await tab.open(f"{base}/stage-client", html)
        yield Participant(tab)
