"""The same two browsers over the same lines with Janus between them instead of our server."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.servers.janus import Janus
from tests.e2e.browser import participant
from tests.lab.call import ROOM, Devices, Pair, settled
from tests.lab.network import BESIDE, Laboratory
from tests.media.pictures import CUSTOMER

POST = """
stage.audioNack = stage.climbs = true;
stage.offering = new Promise((offered) => {
  stage.post = (path, token, sdp) => {
    offered(sdp);
    return new Promise((resolve) => { stage.answered = (sdp) => resolve({ sdp }); });
  };
});
null;
"""
"""Janus is spoken to by the tests, so that the page has only descriptions to make and take."""
CONNECT = """
async (sdp) => {
  stage.answered(sdp);
  await stage.published;
  const { connection } = stage.sessions.get("publish camera");
  while (connection.connectionState !== "connected") await new Promise((resolve) => setTimeout(resolve, 50));
}
"""


@asynccontextmanager
async def janus_call(lab: Laboratory, directory: Path, devices: Devices) -> AsyncIterator[Pair]:
    """Start Janus' videoroom in a network beside ours, and both browsers. Raises ServerError without it."""
    camera, microphone = devices
    phone, desk = lab.add("phone"), lab.add("desk")
    namespace, control = lab.beside()
    janus = Janus(
        os.sched_getaffinity(0),
        local=BESIDE,
        control=control,
        launcher=("ip", "netns", "exec", namespace),
    )
    base = f"https://{BESIDE}"  # nobody is there: the client page is put under it by the test
    async with (
        janus,
        participant(base, camera, microphone, program=desk.chromium(directory)) as viewer,
        participant(base, camera, microphone, program=phone.chromium(directory)) as publisher,
    ):
        await janus.open_room(ROOM)
        await publisher.page.evaluate(POST)
        options = "{room: '', token: '', codec: 'video/VP8', width: 640, height: 360, fps: 15, hint: ''}"
        offer = await publisher.page.evaluate(
            f"async () => {{ stage.published = stage.publish({options}); return stage.offering; }}"
        )
        answer = await janus.offered(ROOM, CUSTOMER.identity, offer)
        await publisher.page.evaluate(CONNECT, answer)  # Janus has no feed of one who is not
        handle, offer = await janus.offer(ROOM, CUSTOMER.identity)
        await viewer.page.evaluate("stage.patient = true")
        given = [CUSTOMER.identity, offer]
        await janus.taken(handle, await viewer.page.evaluate("given => stage.take(...given)", given))
        shown = "who => stage.sessions.get(`subscribe ${who}`).first"
        await viewer.page.evaluate(shown, CUSTOMER.identity)
        yield await settled(Pair(phone, desk, publisher, viewer))
