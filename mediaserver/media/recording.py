"""A recording as the worker has it: one part of a journal, fed by the forwarder's tap."""

from __future__ import annotations

import asyncio
import base64
import binascii
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mediaserver.ipc import IpcError
from mediaserver.media.publication import Publication
from mediaserver.media.room import Room
from recorder.clock import Clock
from recorder.journal import GroupCommit, JournalWriter, PartSummary
from recorder.records import (
    EndRecord,
    EventRecord,
    GapRecord,
    PacketBatch,
    Queued,
    SessionRecord,
    TrackRecord,
)
from recorder.sealed import DataKey

JsonObject = dict[str, Any]


@dataclass(frozen=True)
class Order:
    """What ``recording.start`` asks for."""

    recording: str
    tenant: str
    room: str
    directory: Path
    part: int
    data_key: DataKey
    info: JsonObject = field(repr=False)
    next_track: int = 1

    @classmethod
    def read(cls, params: JsonObject) -> Order:
        """Read the parameters of the method; raises IpcError ``bad_request`` naming what is wrong."""
        try:
            info = dict(params.get("info") or {})
            secret = base64.b64decode(params["data_key"], validate=True)
            suite = int(params.get("suite", 1))
            order = cls(
                recording=str(params["recording"]),
                tenant=str(params["tenant"]),
                room=str(params["room"]),
                directory=Path(params["directory"]),
                part=int(params.get("part", 1)),
                data_key=DataKey(str(params["data_key_id"]), secret, suite),
                info=info,
                next_track=int(info.get("next_track") or params.get("next_track") or 1),
            )
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise IpcError("bad_request", f"recording.start: {type(error).__name__} {error}", 400) from None
        if order.part < 1 or order.next_track < 1:
            raise IpcError("bad_request", "recording.start: part and next_track from 1", 400)
        return order


class Recording:
    """One running part. Track numbers are never used twice in a recording, whatever its parts."""

    def __init__(self, order: Order, room: Room, commit: GroupCommit, clock: Clock) -> None:
        """Create the part's journal; JournalError if it was begun before, OSError when its directory cannot
        be made."""
        self.order = order
        self.room = room
        self.id = order.recording
        self.paused = False
        self._closing = False
        self._clock = clock
        self._next_track = order.next_track
        self._tracks: dict[str, int] = {}
        self._by_tap: dict[int, int] = {}
        self.changes = 0
        """Of ``taps``, so far."""
        now = clock.now_ns()
        self.armed_ns = int(order.info.get("armed_ns") or now)
        self.began_ns = now
        info = {
            **order.info,
            "recording": order.recording,
            "tenant": order.tenant,
            "room": order.room,
            "armed_ns": self.armed_ns,
        }
        info.pop("next_track", None)
        self.writer: JournalWriter = commit.open(
            order.directory, order.data_key, SessionRecord(now, order.part, info)
        )

    @property
    def next_track(self) -> int:
        """Return the first number no track has had."""
        return self._next_track

    @property
    def tracks(self) -> dict[str, int]:
        """Return the number of each publication's track."""
        return dict(self._tracks)

    def wants(self, publication: Publication) -> bool:
        """Tell whether the packets of a publication are kept now: not while paused or muted."""
        return not self.paused and not publication.muted and not self._closing

    def track_began(self, publication: Publication) -> None:
        """Give the publication a track number and write it down."""
        if publication.id in self._tracks:
            return
        number = self._next_track
        self._next_track += 1
        self._tracks[publication.id] = number
        self._by_tap[publication.tap] = number
        self.changes += 1
        self._write([TrackRecord(self._clock.now_ns(), publication.track_info(number))])

    def layer_changed(self, publication: Publication, at_ns: int) -> None:
        """Describe the track anew: from this arrival on its packets have another layer's SSRC."""
        number = self._tracks.get(publication.id)
        if number is not None:
            self._write([TrackRecord(at_ns, publication.track_info(number))])

    def track_ended(self, publication: Publication) -> None:
        """Forget the tap; the number stays used."""
        self._by_tap.pop(publication.tap, None)
        self.changes += 1
        self._tracks.pop(publication.id, None)

    def note(self, event: JsonObject, publication: Publication | None) -> None:
        """Write an event down; its ``track`` becomes the number in this journal, the id stays as
        ``track_id``."""
        if publication is not None:
            data = dict(event["data"])
            data["track_id"] = publication.id
            data["track"] = self._tracks.get(publication.id, 0)
            event = {**event, "data": data}
        at_ns = int(event.get("at_ns") or self._clock.now_ns())
        self._write([EventRecord(at_ns, {**event, "recording": self.id})])

    @property
    def taps(self) -> dict[int, int]:
        """Return the track number of each tap."""
        return dict(self._by_tap)

    def take(self, batch: PacketBatch) -> None:
        """Write tapped packets down."""
        self._write([batch])

    def lost(self, tap: int, packets: int, from_ns: int, to_ns: int) -> bool:
        """Write down that tapped packets were lost before they reached the journal; false if they were not
        ours."""
        track = self._by_tap.get(tap)
        if track is None:
            return False
        self._write([GapRecord(track, from_ns, to_ns, packets, "tap_overrun")])
        return True

    def owns(self, tap: int) -> bool:
        """Tell whether a tap number is one of ours."""
        return tap in self._by_tap

    async def close(self, *, final: bool, reason: str) -> PartSummary:
        """End the part; what the disk would not take is listed in the summary."""
        self._closing = True
        end = EndRecord(self._clock.now_ns(), final, reason)
        return await asyncio.wrap_future(self.writer.close(end))

    def _write(self, records: list[Queued]) -> None:
        if not self._closing:
            self.writer.write(records)
