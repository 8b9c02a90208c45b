"""How rooms, recordings and the like look in answers."""

from __future__ import annotations

from typing import Any

from mediaserver.api import models
from mediaserver.recordings.composing import Composition
from mediaserver.recordings.lifecycle import Active
from mediaserver.recordings.states import duration_ms
from mediaserver.rooms import Participant, Room
from recorder.catalog import Entry
from recorder.clock import rfc3339


def time_or_none(utc_ns: int | None) -> str | None:
    """Give an RFC 3339 time, or nothing."""
    return None if utc_ns is None else rfc3339(utc_ns)


def room(value: Room, recordings: list[Active]) -> models.Room:
    """Show a room."""
    return models.Room(
        name=value.name,
        codecs=value.codecs,
        created_at=rfc3339(value.created_ns),
        participants=len(value.present()),
        recordings=[active.entry.id for active in recordings],
    )


def participant(value: Participant) -> models.Participant:
    """Show a participant with its tracks."""
    return models.Participant(
        identity=value.identity,
        role=value.role,
        seat=value.seat,
        name=value.name,
        connected=value.connected,
        tracks=[models.Track(id=name, **track) for name, track in value.tracks.items()],
    )


def recording(entry: Entry, composition: Composition | None = None) -> models.Recording:
    """Show a recording."""
    details: dict[str, Any] = entry.details
    composing = dict(entry.composing)
    if composition is not None and composing["state"] in ("waiting", "running"):
        composing = {"state": "running", "progress": composition.progress, "lag_s": composition.lag_s}
    losses = [
        {
            "from_ms": _media_ms(details, loss["from_ns"]),
            "to_ms": _media_ms(details, loss["to_ns"]),
            "reason": loss["reason"],
        }
        for loss in (details.get("losses", []) if entry.active else [])
    ]
    return models.Recording(
        id=entry.id,
        tenant=entry.tenant,
        room=entry.room,
        business_no=entry.business_no,
        attempt=entry.attempt,
        supersedes=entry.supersedes,
        state=entry.state,  # type: ignore[arg-type]  # pydantic checks it
        failure=entry.failure,
        mode=entry.mode,  # type: ignore[arg-type]
        created_at=rfc3339(entry.created_ns),
        armed_at=time_or_none(entry.armed_ns),
        stopped_at=time_or_none(entry.stopped_ns),
        duration_ms=duration_ms(entry),
        parts=entry.part,
        gaps=[
            models.Gap.model_validate({name: gap.get(name) for name in models.Gap.model_fields})
            for gap in [*details.get("gaps", []), *losses]
        ],
        files=[models.File.model_validate(file.to_json()) for file in entry.files],
        composing=models.Composing(
            state=composing["state"],
            progress=composing.get("progress"),
            lag_s=composing.get("lag_s"),
            detail=composing.get("detail"),
        ),
        assurance=entry.assurance,
        template=details.get("template", {}),
        metadata=details.get("metadata", {}),
        participants=details.get("participants", []),
    )


def _media_ms(details: dict[str, Any], at_ns: str) -> int:
    return max(0, (int(at_ns) - int(details.get("armed_mono_ns", 0))) // 1_000_000)
