"""Calls of more than two in Chromium over one socket: late comers, a hidden supervisor, lost sockets."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.e2e.api import Api
from tests.e2e.browser import chromium
from tests.e2e.test_page import PATIENCE_MS, opened, sees, tile

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
expect.set_options(timeout=PATIENCE_MS)

WATCHED = """
// Small pictures: this is about who sees whom, and four browsers' encoders are much for a small machine.
const camera = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = wanted => camera(
    {...wanted, ...(wanted.video && {video: {width: 160, height: 120, frameRate: 5}})});
window.connections = window === top ? [] : top.connections;  // the page makes them in a frame (roaming.js)
window.RTCPeerConnection = class extends RTCPeerConnection {
    constructor(...given) { super(...given); connections.push(this); }
};
window.sockets = [];
window.heard = [];
window.WebSocket = class extends WebSocket {
    constructor(...given) {
        super(...given);
        sockets.push(this);
        this.addEventListener('message', ({data}) => heard.push(JSON.parse(data)));
    }
};
"""
RECEIVING = """() => connections.filter(pc => pc.connectionState === 'connected'
    && pc.getTransceivers().some(one => one.currentDirection === 'recvonly')).length"""
LINES = """() => connections.find(pc => pc.connectionState === 'connected'
    && pc.getTransceivers().some(one => one.currentDirection === 'recvonly'))
    .remoteDescription.sdp.match(/^m=/gm).length"""


async def invited(api: Api, room: str, identity: str, role: str, name: str) -> str:
    body = {"room": room, "role": role, "name": name, "identity": identity}
    made = await api.call("POST", "/v1/invites", body)
    return f"{api.base}/#code={made['code']}"


async def enter(page: Page) -> None:
    await page.get_by_test_id("join").click()
    await expect(page.get_by_test_id("own-tile")).to_have_attribute("data-state", "live")


async def heard(page: Page, kind: str) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = await page.evaluate(
        "kind => heard.filter(one => one.type === kind)", kind
    )
    return messages


async def reported(api: Api, room: str, identity: str, wanted: dict[tuple[str, str], int]) -> None:
    """Wait until what a page measures of its call has come to the server, with at least so many streams."""
    async with asyncio.timeout(PATIENCE_MS / 1000):
        while True:
            answer = await api.call("GET", f"/v1/rooms/{room}/quality")
            report: dict[str, Any] = next(
                (one for one in answer["reports"] if one["identity"] == identity), {"streams": []}
            )
            count = Counter((stream["direction"], stream["kind"]) for stream in report["streams"])
            if all(count[key] >= number for key, number in wanted.items()):
                break
            await asyncio.sleep(0.5)
    assert report["rtt_ms"] < 5000
    assert all("track" in one for one in report["streams"] if one["direction"] == "in" and one["packets"])


async def test_customers_a_late_expert_and_a_hidden_supervisor(api: Api, room: str) -> None:
    async with (
        chromium() as browser,
        opened(browser, await invited(api, room, "wife", "customer", "李四"), before=WATCHED) as wife,
        opened(
            browser, await invited(api, room, "husband", "co_borrower", "王五"), before=WATCHED
        ) as husband,
    ):
        await enter(wife)
        await enter(husband)
        await sees(wife, "husband")
        await sees(husband, "wife")

        async with opened(
            browser, await invited(api, room, "boss", "supervisor", "主管"), before=WATCHED
        ) as supervisor:
            await sees(supervisor, "wife")  # who does not publish is in at once
            await sees(supervisor, "husband")
            async with opened(
                browser, await invited(api, room, "expert", "expert", "专家"), before=WATCHED
            ) as expert:
                await enter(expert)
                for page, others in (
                    (wife, ("husband", "expert")),
                    (husband, ("wife", "expert")),
                    (expert, ("wife", "husband")),
                    (supervisor, ("wife", "husband", "expert")),
                ):
                    for other in others:
                        await sees(page, other)
                    assert await page.get_by_test_id("tile").count() == len(others)
                    assert await page.evaluate(RECEIVING) == 1, "one connection for everybody's tracks"
                lines = await wife.evaluate(LINES)
                assert lines == 2 + 4, "her own two, then sound and picture of two others"
                await reported(
                    api, room, "wife", {("in", "audio"): 2, ("in", "video"): 2, ("out", "video"): 1}
                )

                await expert.get_by_test_id("mic").click()
                await expect(tile(wife, "expert")).to_have_attribute("data-sound", "off")
                await expert.get_by_test_id("leave").click()
                for page in (wife, husband, supervisor):
                    await expect(tile(page, "expert")).to_have_count(0)

                await expert.get_by_test_id("rejoin").click()
                await enter(expert)
                for page in (wife, husband, supervisor):
                    await sees(page, "expert")
                assert await wife.evaluate(LINES) == lines, "places of ended tracks are taken again"

            for page in (wife, husband):
                text = json.dumps(await page.evaluate("heard"), ensure_ascii=False)
                assert "boss" not in text, "nobody hears of who is hidden"
                assert "主管" not in text
        await sees(wife, "husband")  # his going is not noticed either


async def test_a_cut_socket_is_resumed_and_what_happened_meanwhile_is_told(api: Api, room: str) -> None:
    async with (
        chromium() as browser,
        opened(browser, await invited(api, room, "wife", "customer", "A"), before=WATCHED) as wife,
        opened(browser, await invited(api, room, "husband", "customer", "B"), before=WATCHED) as husband,
    ):
        await enter(wife)
        await enter(husband)
        await sees(wife, "husband")
        connections = await wife.evaluate("connections.length")

        # Cut, and none can be made again until somebody new has come and gone on.
        await wife.evaluate(
            "() => { window.held = WebSocket; window.WebSocket = class { constructor() {"
            " this.wait = setTimeout(() => this.onclose?.({code: 1006, reason: ''}), 100); }"
            " close() {} send() {} }; sockets.at(-1).close(); }"
        )
        await sees(wife, "husband")  # media does not depend on it
        async with opened(
            browser, await invited(api, room, "expert", "expert", "C"), before=WATCHED
        ) as expert:
            await enter(expert)
            await sees(expert, "wife")
            await expect(tile(wife, "expert")).to_have_count(1)
            assert await wife.evaluate("heard.filter(one => one.type === 'offer').at(-1).tracks.length") == 2
            await wife.evaluate("() => { window.WebSocket = window.held; }")
            await sees(wife, "expert")

            welcomes = await heard(wife, "welcome")
            assert [one["resumed"] for one in welcomes] == [False, True]
            assert await wife.evaluate("connections.length") == connections, "no connection was made anew"
            orders = [
                one["seq"] for one in await wife.evaluate("heard") if one["type"] not in ("welcome", "pong")
            ]
            assert orders == list(range(1, len(orders) + 1)), "nothing missing, nothing twice"


async def test_after_a_restart_of_the_server_the_same_connections_go_on(tmp_path: Any) -> None:
    from tests.e2e.stage import Stage, kill

    with Stage(tmp_path / "data") as stage:
        async with (
            Api(stage.base, stage.key()) as api,
            chromium() as browser,
            opened(browser, await invited(api, "r", "wife", "customer", "A"), before=WATCHED) as wife,
            opened(browser, await invited(api, "r", "husband", "customer", "B"), before=WATCHED) as husband,
        ):
            await enter(wife)
            await enter(husband)
            await sees(wife, "husband")
            connections = await wife.evaluate("connections.length")
            kill(stage.pids("control")[0])
            await sees(wife, "husband")
            stage.wait_gone("control")
            stage.restart()
            async with asyncio.timeout(PATIENCE_MS / 1000):
                while len(await heard(wife, "welcome")) < 2:
                    await asyncio.sleep(0.1)
            async with opened(browser, await invited(api, "r", "expert", "expert", "C")) as expert:
                await enter(expert)
                await sees(wife, "expert")
                await sees(expert, "wife")
            assert await wife.evaluate("connections.length") == connections
