"""The recordings of a worker: started and stopped by control, fed from the forwarder's tap."""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import Callable
from typing import Any

import structlog

from mediaserver.forwarder.interface import TakeBatches, TapDropped, Targets
from mediaserver.ipc import IpcError
from mediaserver.media.recording import Order, Recording
from mediaserver.media.room import Room
from recorder.clock import Clock, rfc3339
from recorder.gm.sm3 import named
from recorder.journal import GroupCommit, JournalError, JournalTrouble, SignedHead
from recorder.keys import KeyProblem

JsonObject = dict[str, Any]

SETTLE_S = 0.03
"""Before the tap is closed: packets that reached the socket before the stop come through it (one nap and a
batch)."""
FLUSH_S = 5.0

_log = structlog.get_logger(__name__)


class Recordings:
    """All running parts of this worker. One recording at a time in a room."""

    def __init__(
        self,
        commit: Callable[[Callable[[JournalTrouble], None]], GroupCommit],
        clock: Clock,
        *,
        drain: Callable[[], None],
        told: Callable[[Recording, str, JsonObject], None],
        heads: Callable[[JsonObject], None],
        heads_ns: int,
    ) -> None:
        """``commit`` makes the group commit when the first recording starts; ``drain`` hands over what is
        tapped; ``heads`` is told each ``heads_ns`` how the journals stand."""
        self._make_commit = commit
        self._commit: GroupCommit | None = None
        self._making = asyncio.Lock()
        self._clock = clock
        self._drain = drain
        self._told = told
        self._told_heads = heads
        self._heads_ns = heads_ns
        self._running: dict[str, Recording] = {}
        self._taps = itertools.count(1)
        self._tapped_state: list[tuple[Recording, int]] = []
        self._targets = Targets({})
        self.journal_bytes = 0
        """Media handed to journals since the start."""
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def queued_bytes(self) -> int:
        """Return the memory held by records not yet written."""
        return self._commit.queued_bytes if self._commit is not None else 0

    def __len__(self) -> int:
        return len(self._running)

    def draw_tap(self) -> int:
        """Return a tap number nobody has had."""
        return next(self._taps)

    def get(self, recording: str) -> Recording:
        """Return a running recording; raises IpcError ``recording_not_found`` (404)."""
        found = self._running.get(recording)
        if found is None:
            raise IpcError("recording_not_found", recording, 404)
        return found

    def describe(self) -> list[JsonObject]:
        """Return what ``hello`` says of the running parts."""
        return [
            {
                "recording": r.id,
                "tenant": r.room.tenant,
                "room": r.room.name,
                "part": r.order.part,
                "directory": str(r.order.directory),
                "armed_ns": r.armed_ns,
                "began_ns": r.began_ns,
                "paused": r.paused,
                "next_track": r.next_track,
            }
            for r in self._running.values()
        ]

    async def start(self, order: Order, room: Room) -> JsonObject:
        """Begin a part; answers when its first records are on disk. Raises IpcError."""
        if order.recording in self._running or room.recordings:
            active = next(iter(room.recordings), order.recording)
            raise IpcError("recording_active", active, 409)
        commit = await self._ready()
        if order.recording in self._running or room.recordings:
            raise IpcError("recording_active", next(iter(room.recordings), order.recording), 409)
        try:
            recording = Recording(order, room, commit, self._clock)
        except JournalError as error:
            raise IpcError("part_exists", str(error), 409) from None
        except OSError as error:
            raise IpcError("recording_failed", str(error), 507) from None
        self._running[recording.id] = recording
        room.recordings[recording.id] = recording
        for person in room.participants.values():
            if person.joined:
                room.note_joined(person, recording)
        for publication in room.live():
            recording.track_began(publication)
            if publication.muted:
                recording.note(room.envelope("track.muted", publication.summary()), publication)
            room.retap(publication)
            publication.want_keyframe()
        try:
            async with asyncio.timeout(FLUSH_S):
                await asyncio.wrap_future(recording.writer.flushed())
        except (OSError, TimeoutError) as error:
            self._take_out(recording)
            await recording.close(final=False, reason="start_failed")
            detail = str(error) or f"the disk took longer than {FLUSH_S:g} s"
            raise IpcError("recording_failed", detail, 507) from None
        _log.info("recording_started", recording=recording.id, room=room.name, part=order.part)
        return {
            "armed_ns": recording.armed_ns,
            "began_ns": recording.began_ns,
            "tracks": [p.track_info_json(recording.tracks) for p in room.live()],
            "next_track": recording.next_track,
        }

    async def _ready(self) -> GroupCommit:
        """Return the group commit. To make it may ask a KMS, so that is done beside the event loop."""
        self._loop = asyncio.get_running_loop()
        async with self._making:
            if self._commit is None:
                try:
                    self._commit = await asyncio.to_thread(self._make_commit, self._trouble)
                except KeyProblem as error:
                    raise IpcError("keys_unavailable", str(error), 503) from None
                self._commit.tell_heads(self._heads, self._heads_ns)
            return self._commit

    def key(self, recording: str) -> JsonObject:
        """Return a running recording's data key, for a control process that cannot open it; IpcError."""
        key = self.get(recording).order.data_key
        secret = base64.b64encode(key.secret).decode()
        return {"data_key_id": key.key_id, "data_key": secret, "suite": key.suite}

    async def stop(self, recording: str, *, final: bool, reason: str) -> JsonObject:
        """End a part with everything in it that was received before; returns its summary."""
        found = self.get(recording)
        await asyncio.sleep(SETTLE_S)
        if recording not in self._running:
            raise IpcError("recording_not_found", recording, 404)
        self._take_out(found)
        summary = await found.close(final=final, reason=reason)
        _log.info("recording_stopped", recording=recording, room=found.room.name, part=found.order.part)
        return {"part": summary.to_json(), "next_track": found.next_track}

    def note(self, recording: str, event: JsonObject) -> None:
        """Write an event of control down; ``recording.paused`` and ``.resumed`` also stop and start the
        tap."""
        found = self.get(recording)
        kind = event.get("type")
        if kind == "recording.paused":
            found.note(event, None)
            found.paused = True
        elif kind == "recording.resumed":
            found.paused = False
            found.note(event, None)
        else:
            found.note(event, None)
            return
        for publication in found.room.live():
            found.room.retap(publication)

    def take(self, take_batches: TakeBatches) -> None:
        """Let the forwarder hand over what is tapped, and give it to the recordings it belongs to."""
        running = list(self._running.values())
        state = [(recording, recording.changes) for recording in running]
        if state != self._tapped_state:
            self._tapped_state = state
            self._targets = Targets(
                {
                    tap: (group, track)
                    for group, recording in enumerate(running)
                    for tap, track in recording.taps.items()
                }
            )
        for group, batch in take_batches(self._targets):
            running[group].take(batch)
            self.journal_bytes += len(batch.items)

    def lost(self, event: TapDropped) -> None:
        """Write down what the tap could not hold."""
        for recording in self._running.values():
            if recording.lost(event.track, event.packets, event.from_ns, event.to_ns):
                self._told(
                    recording,
                    "recording.gap",
                    {"code": "tap_overrun", "packets": event.packets},
                )

    async def stop_all(self, reason: str) -> None:
        """Close every part cleanly, not final: the recording may go on elsewhere."""
        for recording in list(self._running):
            await self.stop(recording, final=False, reason=reason)

    def close(self) -> None:
        """Stop the group commit after all parts were stopped."""
        if self._commit is not None:
            self._commit.close()
            self._commit = None

    def _take_out(self, recording: Recording) -> None:
        recording.room.recordings.pop(recording.id, None)
        for publication in recording.room.live():
            recording.room.retap(publication)
        self._drain()  # while it still takes packets
        self._running.pop(recording.id, None)

    def _trouble(self, trouble: JournalTrouble) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._tell_trouble, trouble)

    def _heads(self, heads: list[SignedHead]) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._tell_heads, heads)

    def _tell_heads(self, heads: list[SignedHead]) -> None:
        by_directory = {one.order.directory: one for one in self._running.values()}
        told = [
            [
                one.id, one.room.tenant, head.part, head.index, head.record, head.offset,
                named(head.head), rfc3339(head.utc_ns),
            ]
            for head in heads
            if (one := by_directory.get(head.directory)) is not None and one.order.part == head.part
        ]  # fmt: skip
        if told:
            self._told_heads({"heads": told})

    def _tell_trouble(self, trouble: JournalTrouble) -> None:
        for recording in self._running.values():
            if recording.order.directory == trouble.directory:
                data = {"code": trouble.code, "detail": trouble.detail, "part": trouble.part}
                self._told(recording, trouble.type, data)
                _log.error("journal_trouble", recording=recording.id, type=trouble.type, code=trouble.code)
