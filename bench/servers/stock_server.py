"""The server one writes first: stock aiortc and its MediaRelay behind WHIP and WHEP, re-encoding.

``python -m bench.servers.stock_server PORT`` serves on this machine until it is ended.
"""

from __future__ import annotations

import asyncio
import sys

from aiohttp import web
from aiortc import MediaStreamTrack, RTCPeerConnection, RTCSessionDescription
from aiortc.contrib.media import MediaRelay

relay = MediaRelay()
published: dict[str, list[MediaStreamTrack]] = {}
connections: set[RTCPeerConnection] = set()


async def answer(connection: RTCPeerConnection) -> web.Response:
    connections.add(connection)
    await connection.setLocalDescription(await connection.createAnswer())
    return web.Response(status=201, text=connection.localDescription.sdp, content_type="application/sdp")


async def publish(request: web.Request) -> web.Response:
    connection = RTCPeerConnection()
    connection.on("track", published.setdefault(request.match_info["identity"], []).append)
    await connection.setRemoteDescription(RTCSessionDescription(await request.text(), "offer"))
    return await answer(connection)


async def watch(request: web.Request) -> web.Response:
    connection = RTCPeerConnection()
    offer = await request.text()
    for track in published[request.match_info["identity"]]:
        connection.addTrack(relay.subscribe(track))
    await connection.setRemoteDescription(RTCSessionDescription(offer, "offer"))
    return await answer(connection)


def main() -> None:
    application = web.Application()
    application.router.add_post("/whip/{identity}", publish)
    application.router.add_post("/whep/{identity}", watch)
    loop = asyncio.new_event_loop()
    web.run_app(application, host="127.0.0.1", port=int(sys.argv[1]), loop=loop, print=None)


if __name__ == "__main__":
    main()
