"""What is kept of a signalling client, without sockets; and that its sockets keep no server from closing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediaserver.api.problems import Problem
from mediaserver.api.signal import read
from mediaserver.control import Control
from mediaserver.secrets import open_secrets
from mediaserver.signal import line as lines
from mediaserver.signal.line import Line
from mediaserver.signal.messages import Done, OfferMessage
from mediaserver.tokens import Principal
from tests.mediaserver.running import KEYS, Client, make_keys, settings_in

WHO = Principal("one", "client", KEYS[0].id, 0.0, "somebody", "hall")


def test_a_slow_client_ends_and_what_waited_is_let_go() -> None:
    line = Line(WHO, "token")
    for number in range(lines.MAX_UNSENT):
        line.put(Done, re=number)
    before = line.ending
    assert not before
    line.put(Done, re=0)
    assert line.ending == "too_slow"
    assert line.next_text() is None
    assert not line.rewind(1)


def test_what_is_kept_for_a_resume_is_bounded_in_bytes() -> None:
    """256 answers to offers of 256 KiB, which nobody acknowledges, would be 50 MB for each line."""
    line = Line(WHO, "token")
    large = {"session": "s", "version": 1, "sdp": "x" * (200 << 10), "tracks": [], "skipped": []}
    for _ in range(20):
        line.put(OfferMessage, **large)
        assert line.next_text()
    kept = next(count for count in range(21) if not line.rewind(20 - count)) - 1
    assert 1 <= kept * (200 << 10) <= lines.KEPT_BYTES
    assert line.rewind(20)
    line.acknowledge(20)
    for number in range(lines.KEPT):
        line.put(Done, re=number)
        assert line.next_text()
    assert line.rewind(20), "small ones are kept as ever"


@given(st.lists(st.sampled_from(["put", "send", "lose", "ack"]), max_size=1500))
def test_what_is_resumed_is_complete_and_in_order_or_refused(steps: list[str]) -> None:
    line = Line(WHO, "token")
    seen = put = 0
    for step in steps:
        if step == "put":
            put += 1
            line.put(Done, re=put)
        elif step == "send" and (text := line.next_text()) is not None:
            message = json.loads(text)
            assert message["seq"] == message["re"] == seen + 1
            seen += 1
        elif step == "ack":
            line.acknowledge(seen)
        elif step == "lose" and not line.ending:
            lost = min(seen, 3)  # the last few sent never arrived
            if line.rewind(seen - lost):
                seen -= lost
            else:
                line.rewind(seen)


@given(st.text(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_no_text_is_taken_for_a_request(text: str) -> None:
    try:
        read(text)
    except Problem as problem:
        code = problem.code
    else:
        code = ""
    assert code in ("json_invalid", "body_invalid"), "none of these is a request"


@pytest.mark.asyncio
async def test_sockets_do_not_keep_a_server_from_closing(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    make_keys(settings)
    control = Control(settings, open_secrets(settings))
    await control.start()
    async with aiohttp.ClientSession() as session:
        api = Client(f"http://127.0.0.1:{control.port}", session, control)
        await api.ok("POST", "/v1/rooms", {"name": "hall"})
        socket = await session.ws_connect(api.base + "/v1/signal", autoclose=False)
        token = api.participant("hall", "late", "customer")
        await socket.send_json({"type": "join", "id": 1, "token": token})
        assert (await socket.receive_json(timeout=20))["type"] == "welcome"
        closing = asyncio.create_task(control.close())
        while (message := await socket.receive(20)).type is aiohttp.WSMsgType.TEXT:
            assert json.loads(message.data)["type"] == "event"
        assert (message.data, message.extra) == (1001, "draining")
        await socket.close()
        await closing
