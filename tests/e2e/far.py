"""A browser on another machine, for test_namespace and test_walls: in a network namespace, prints JSON.

Usage: ``python -m tests.e2e.far BASE ROOM TOKEN TARGET CAMERA MICROPHONE [ONLY]``; with ONLY (``turns:``,
``transport=udp`` …) media goes through the TURN servers whose URL has it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from tests.e2e.browser import participant


async def main(
    base: str, room: str, token: str, target: str, camera: str, microphone: str, only: str = ""
) -> None:
    """Publish and subscribe, and tell what came of it."""
    trusting = ("--ignore-certificate-errors",) if only else ()
    async with participant(base, Path(camera), Path(microphone), *trusting) as person:
        if only:
            await person.page.evaluate("only => { stage.only = only; stage.onlyRelay = true }", only)
        secure = await person.page.evaluate("window.isSecureContext && !!navigator.mediaDevices")
        await person.publish(room, token)
        first_s = await person.subscribe(room, target, token)
        await asyncio.sleep(3)
        decoded = await person.count(f"subscribe {target}", "video", "framesDecoded")
        sent = await person.count("publish camera", "video", "framesSent")
        pair = (await person.stats())["publish camera"].get("pair", {})
        print(
            json.dumps({"secure": secure, "first_s": first_s, "decoded": decoded, "sent": sent, "pair": pair})
        )
        await person.leave()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:8]))
