"""An aiortc client in another network, for test_interfaces: prints offer and path, reads the answer between.

Both as JSON lines; it goes on sending a tone until its input ends.
"""

from __future__ import annotations

import asyncio
import json
import sys

from aiortc import RTCPeerConnection, RTCSessionDescription

from tests.media_worker.rig import Tone


async def main() -> None:
    """Publish, and tell which of the server's addresses carries it."""
    peer = RTCPeerConnection()
    sender = peer.addTransceiver(Tone(), direction="sendonly").sender
    await peer.setLocalDescription(await peer.createOffer())
    print(json.dumps({"offer": peer.localDescription.sdp}), flush=True)
    answer = json.loads(await asyncio.to_thread(sys.stdin.readline))["answer"]
    await peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
    async with asyncio.timeout(20):
        while peer.connectionState != "connected":
            await asyncio.sleep(0.05)
    pair = sender.transport.transport._connection._nominated[1]
    print(json.dumps({"remote": pair.remote_addr[0], "local": pair.local_addr[0]}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await peer.close()


if __name__ == "__main__":
    asyncio.run(main())
