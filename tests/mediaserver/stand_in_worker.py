"""A process that speaks a worker's line and carries no media, to test how workers are kept running.

Takes the first line of its standard input as a real worker does. Methods beyond the real ones: ``hang``
(answers nothing from then on), ``say`` (publishes an event).
"""

from __future__ import annotations

import asyncio
import os
import sys
import time

from mediaserver.config import WorkerConfig
from mediaserver.ipc import IpcServer, JsonObject


async def main() -> None:
    config = WorkerConfig.model_validate_json(sys.stdin.readline())
    rooms: list[JsonObject] = []
    quitting = asyncio.Event()

    async def hello(params: JsonObject) -> JsonObject:
        return {"pid": os.getpid(), "index": config.index, "rooms": rooms, "udp": [], "recordings": []}

    async def room_open(params: JsonObject) -> JsonObject:
        rooms.append(params)
        return {}

    async def stats(params: JsonObject) -> JsonObject:
        return {"participants": len(rooms)}

    async def say(params: JsonObject) -> JsonObject:
        server.publish(params)
        return {}

    async def hang(params: JsonObject) -> JsonObject:
        time.sleep(3600)
        return {}

    async def stop(params: JsonObject) -> JsonObject:
        quitting.set()
        return {}

    server = IpcServer(
        config.socket,
        {
            "hello": hello,
            "room.open": room_open,
            "stats": stats,
            "say": say,
            "hang": hang,
            "quit": stop,
            "drain": stats,
        },
    )
    await server.start()
    await quitting.wait()
    await server.close()


asyncio.run(main())
