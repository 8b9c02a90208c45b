"""The counters of a worker as one JSON object, for metrics and for choosing where a room goes."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from mediaserver.media.publication import Publication
from mediaserver.media.room import Room
from mediaserver.media.session import PublishSession, SubscribeSession
from mediaserver.media.transport import Transport

PAGE = os.sysconf("SC_PAGE_SIZE")


def snapshot(transport: Transport, rooms: Iterable[Room], recordings: int) -> dict[str, Any]:
    """Read all counters once. Totals only: no names, so that metrics carry none."""
    rooms = list(rooms)
    people = [person for room in rooms for person in room.participants.values()]
    sessions = [session for person in people for session in person.sessions.values()]
    publications: list[Publication] = [
        publication
        for session in sessions
        if isinstance(session, PublishSession)
        for publication in session.publications
    ]
    subscriptions = [
        subscription
        for session in sessions
        if isinstance(session, SubscribeSession)
        for subscription in session.subscriptions
    ]
    usage = resource.getrusage(resource.RUSAGE_SELF)
    dtls = transport.identity.counters
    return {
        "rooms": len(rooms),
        "participants": len(people),
        "sessions": {
            kind: sum(1 for session in sessions if session.kind == kind) for kind in ("publish", "subscribe")
        },
        "publications": sum(1 for publication in publications if publication.stream is not None),
        "subscriptions": sum(1 for subscription in subscriptions if subscription.publication is not None),
        "recordings": recordings,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "rss_bytes": _resident_bytes(),
        "forwarder": asdict(transport.forwarder.stats()),
        "ice": asdict(transport.ice.counters),
        "dtls": asdict(dtls),
        "transport": asdict(transport.counters),
        "rtcp_malformed": sum(session.rtcp_malformed for session in sessions),
        "nacks_sent": sum(publication.counters.nacks for publication in publications),
        "keyframe_requests": sum(publication.counters.keyframe_requests for publication in publications),
    }


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * PAGE
