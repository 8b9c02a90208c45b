"""A hidden participant leaves no trace in a recording, whatever goes wrong with what he receives."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiortc import RTCPeerConnection

from recorder.journal import JournalReader
from recorder.records import EventRecord
from recorder.sealed import DataKey
from tests.media_worker.rig import connect, publish, worker


@pytest.mark.asyncio
async def test_a_track_that_a_hidden_one_has_no_place_for_is_not_recorded_as_his_fault(
    tmp_path: Path,
) -> None:
    async with worker(tmp_path) as server:
        await server.call("room.open", room="hall")
        directory, secret = await server.record("seen", "hall")
        customer, _ = await publish(server, "hall", "customer")
        watchers = {"boss": True, "agent": False}
        peers = []
        for identity, hidden in watchers.items():
            peer = RTCPeerConnection()
            peer.addTransceiver("audio", direction="recvonly")
            await connect(
                server, peer, "whep", room="hall", identity=identity, target="customer", hidden=hidden
            )
            peers.append(peer)
            await server.wait_for("subscription.unplaced", "hall", identity=identity)
        await server.call("recording.stop", recording="seen")
        journal = JournalReader(directory, DataKey("test", secret)).records()
        said = [record.event for record in journal if isinstance(record, EventRecord)]
        unplaced = [event["data"]["identity"] for event in said if event["type"] == "subscription.unplaced"]
        assert unplaced == ["agent"]
        assert "boss" not in str(said)
        told = await server.wait_for("subscription.unplaced", "hall", identity="boss")
        assert told["data"]["hidden"] is True
        for one in (customer, *peers):
            await one.close()
