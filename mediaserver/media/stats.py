"""The counters of a worker as one JSON object, for metrics and for choosing where a room goes."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mediaserver.media.ice import SECOND_NS
from mediaserver.media.recordings import Recordings
from mediaserver.media.room import Room
from mediaserver.media.session import PublishSession, SubscribeSession
from mediaserver.media.tcp import TcpCounters, TcpDoor
from mediaserver.media.transport import Transport

PAGE = os.sysconf("SC_PAGE_SIZE")


class Statistics:
    """Reads all counters of a worker. Totals only: no names, so that metrics carry none."""

    def __init__(self, transport: Transport, recordings: Recordings, door: TcpDoor | None = None) -> None:
        self._door = door
        self._transport = transport
        self._recordings = recordings
        self._cpu_s = 0.0
        self._cpu_s_per_s = 0.0
        self._read_ns = 0

    def read(self, rooms: Sequence[Room], now: int, *, each: bool) -> dict[str, Any]:
        """Return them. ``cpu_s_per_s`` is since a reading of a second ago or more.

        With ``each`` every peer and route is asked for what it moved; without, those sums
        (``bytes_received``, ``bytes_sent``, ``packets_resent``) are left out.
        """
        forwarder = self._transport.forwarder
        people = [person for room in rooms for person in room.participants.values()]
        sessions = [session for person in people for session in person.sessions.values()]
        publishing = [session for session in sessions if isinstance(session, PublishSession)]
        subscribing = [session for session in sessions if isinstance(session, SubscribeSession)]
        estimates = [bps for s in subscribing if (bps := s.sending.available_bps) is not None]
        subscriptions = [subscription for session in subscribing for subscription in session.subscriptions]
        counters = asdict(self._transport.counters)
        for link in self._transport.links.values() if each else ():
            peer = forwarder.peer_stats(link.peer)
            counters["bytes_received"] += peer.bytes_received
            counters["bytes_sent"] += peer.bytes_sent
        for subscription in subscriptions if each else ():
            if subscription.route is not None:
                counters["packets_resent"] += forwarder.route_stats(subscription.route).retransmitted
        if not each:
            for name in ("bytes_received", "bytes_sent", "packets_resent"):
                del counters[name]
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = usage.ru_utime + usage.ru_stime
        elapsed_s = (now - self._read_ns) / SECOND_NS
        if elapsed_s >= 1.0:
            self._cpu_s_per_s = (cpu_s - self._cpu_s) / elapsed_s if self._read_ns else 0.0
            self._cpu_s, self._read_ns = cpu_s, now
        own = {name: counters.pop(name) for name in ("dtls_unbound", "unknown_datagrams", "internal_errors")}
        return {
            "rooms": len(rooms),
            "participants": len(people),
            "sessions": {"publish": len(publishing), "subscribe": len(subscribing)},
            "publications": sum(1 for s in publishing for p in s.publications if p.stream is not None),
            "layers": sum(1 for s in publishing for layer in s.layers() if layer.stream is not None),
            "subscriptions": sum(1 for s in subscriptions if s.publication is not None),
            "bandwidth_estimates": len(estimates),
            "available_bps": sum(estimates),
            "recordings": len(self._recordings),
            "journal_bytes": self._recordings.journal_bytes,
            "journal_queue_bytes": self._recordings.queued_bytes,
            "cpu_s": cpu_s,
            "cpu_s_per_s": self._cpu_s_per_s,
            "rss_bytes": _resident_bytes(),
            "forwarder": asdict(forwarder.stats()),
            "ice": asdict(self._transport.ice.counters),
            "tcp": {
                "connections": len(self._door) if self._door is not None else 0,
                **asdict(self._door.counters if self._door is not None else TcpCounters()),
            },
            "dtls": asdict(self._transport.identity.counters),
            "transport": own,
            **counters,
        }


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * PAGE
