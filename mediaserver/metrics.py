"""The figures of ``GET /metrics`` (Prometheus). No label names a room, a person or a business.

Labels have few values each: worker index, state, kind. Workers report their counters in the heartbeat
(``stats``); ``Metrics.from_worker`` adds them up so that a worker's death never makes a counter go
backwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST

WORKER_COUNTERS = {
    "packets_received": "RTP and RTCP packets received",
    "packets_sent": "RTP and RTCP packets sent",
    "bytes_received": "Bytes of media received, headers included",
    "bytes_sent": "Bytes of media sent, headers included",
    "packets_rejected": "Packets that were no valid STUN, DTLS, SRTP or RTP and were dropped",
    "packets_resent": "Packets sent again because a subscriber asked (NACK)",
    "packets_paced": "Packets that waited so that a frame does not fill a short buffer on a line",
    "pacing_wait_ns": "Sum of what these waited, ns",
    "keyframe_requests": "Keyframes asked from publishers (PLI)",
    "journal_bytes": "Bytes written to journals",
    "journal_dropped_packets": "Packets that could not be kept because the disk was too slow",
}
"""Numbers in a worker's ``stats`` that only grow; the metric is ``shuanglu_<name>_total``."""

WORKER_GAUGES = {
    "rooms": "Rooms open",
    "participants": "Participants connected",
    "recordings": "Recordings running",
    "journal_queue_bytes": "Bytes waiting to be written to journals",
    "bandwidth_estimates": "Subscribers whose bandwidth is estimated",
    "available_bps": "Sum of what their lines are estimated to carry, bit/s",
    "cpu_s_per_s": "Cores in use",
    "resident_bytes": "Resident memory",
}
"""Numbers in a worker's ``stats`` that go up and down; the metric is ``shuanglu_<name>``."""

SOURCES = {
    "packets_received": ("forwarder.datagrams_received",),
    "packets_sent": ("forwarder.datagrams_sent",),
    "packets_rejected": (
        "forwarder.unknown_address",
        "forwarder.malformed",
        "ice.malformed",
        "ice.unknown_user",
        "ice.bad_integrity",
        "ice.limited",
        "ice.ignored",
        "dtls.malformed",
        "dtls.fingerprint_mismatch",
        "transport.dtls_unbound",
        "transport.unknown_datagrams",
        "rtcp_malformed",
    ),
    "packets_paced": ("forwarder.paced",),
    "pacing_wait_ns": ("forwarder.paced_ns",),
    "journal_dropped_packets": ("forwarder.tap_dropped",),
    "resident_bytes": ("rss_bytes",),
}
"""Which members of a worker's ``stats`` make a figure; several are added up. The others have its name."""


def figure(stats: Mapping[str, Any], name: str) -> float | None:
    """Return a figure out of a worker's ``stats``, or None where it is missing or no number."""
    found = []
    for path in SOURCES.get(name, (name,)):
        value: Any = stats
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, int | float) and not isinstance(value, bool):
            found.append(float(value))
    return sum(found) if found else None


class Metrics:
    """All metrics of one control process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._last: dict[tuple[int, str], float] = {}
        self._pids: dict[int, int] = {}
        self._counters = {
            name: Counter(f"shuanglu_{name}", text, ["worker"], registry=self.registry)
            for name, text in WORKER_COUNTERS.items()
        }
        self._gauges = {
            name: Gauge(f"shuanglu_{name}", text, ["worker"], registry=self.registry)
            for name, text in WORKER_GAUGES.items()
        }
        self.workers_up = Gauge("shuanglu_workers_up", "Media workers running", registry=self.registry)
        self.native_forwarder = Gauge(
            "shuanglu_native_forwarder",
            "1 if the compiled packet loop runs, 0 if its slow twin does",
            ["worker"],
            registry=self.registry,
        )
        self.worker_deaths = Counter("shuanglu_worker_deaths", "Workers that died", registry=self.registry)
        self.requests = Counter(
            "shuanglu_http_requests", "HTTP requests answered", ["method", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "shuanglu_http_request_seconds",
            "Time to answer an HTTP request, streams left out",
            registry=self.registry,
            buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
        )
        self.recordings_ended = Counter(
            "shuanglu_recordings_ended", "Recordings that ended", ["state"], registry=self.registry
        )
        self.jobs = Counter(
            "shuanglu_jobs", "Background jobs ended", ["kind", "outcome"], registry=self.registry
        )
        self.compose_seconds = Histogram(
            "shuanglu_compose_ready_seconds",
            "Time from a recording's stop until its composite is ready",
            registry=self.registry,
            buckets=(1, 2, 5, 10, 30, 60, 300, 1800),
        )
        self.composite_lag = Gauge(
            "shuanglu_composite_lag_seconds",
            "How far the slowest composite that follows its call is behind it",
            registry=self.registry,
        )
        self.webhooks = Counter(
            "shuanglu_webhook_deliveries", "Webhook tries", ["outcome"], registry=self.registry
        )
        self.upload_pending_bytes = Gauge(
            "shuanglu_upload_pending_bytes",
            "Bytes closed here that a site does not have yet",
            ["site"],
            registry=self.registry,
        )
        self.uploaded_bytes = Counter(
            "shuanglu_uploaded_bytes", "Bytes put to a site", ["site"], registry=self.registry
        )
        self.upload_failures = Counter(
            "shuanglu_upload_failures",
            "Uploads that failed and are tried again; conflict and changed are for people to look at",
            ["site", "code"],
            registry=self.registry,
        )
        self.audit_entries = Counter(
            "shuanglu_audit_entries", "Entries written to the audit log", registry=self.registry
        )
        self.audit_failures = Counter(
            "shuanglu_audit_failures",
            "Times the audit log could not be written or signed; no recording starts until it can",
            registry=self.registry,
        )
        self.disk_free_bytes = Gauge(
            "shuanglu_disk_free_bytes", "Free space in the data directory", registry=self.registry
        )
        self.disk_level = Gauge(
            "shuanglu_disk_level",
            "0: room enough, 1: below recording.low_free_bytes, 2: no recording starts",
            registry=self.registry,
        )
        self.signal_lines = Gauge(
            "shuanglu_signal_sessions", "Signalling sessions, those in grace included", registry=self.registry
        )
        self.signal_closed = Counter(
            "shuanglu_signal_closed",
            "Signalling sockets the server closed for a fault",
            ["reason"],
            registry=self.registry,
        )
        self.client_rtt = Histogram(
            "shuanglu_client_rtt_seconds",
            "Round-trip times that clients report",
            registry=self.registry,
            buckets=(0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 2),
        )
        self.client_lost = Histogram(
            "shuanglu_client_lost_ratio",
            "Share of packets lost on the way to a client since its last report, by stream",
            ["kind"],
            registry=self.registry,
            buckets=(0.001, 0.01, 0.05, 0.1, 0.2, 0.5),
        )
        self.client_freeze = Counter(
            "shuanglu_client_freeze_seconds", "Time pictures stood still at clients", registry=self.registry
        )
        self.draining = Gauge("shuanglu_draining", "1 while the server drains", registry=self.registry)

    def from_worker(self, index: int, pid: int, stats: Mapping[str, Any]) -> None:
        """Take over a worker's figures. A new ``pid`` starts from zero; odd values are left out."""
        if self._pids.get(index) != pid:
            self._pids[index] = pid
            for name in WORKER_COUNTERS:
                self._last.pop((index, name), None)
        label = str(index)
        for name, counter in self._counters.items():
            value = figure(stats, name)
            if value is not None:
                before = self._last.get((index, name), 0.0)
                counter.labels(label).inc(max(0.0, value - before))
                self._last[index, name] = max(before, value)
        for name, gauge in self._gauges.items():
            value = figure(stats, name)
            if value is not None:
                gauge.labels(label).set(value)
        forwarder = stats.get("forwarder")
        if isinstance(forwarder, Mapping):
            self.native_forwarder.labels(label).set(forwarder.get("kind") == "native")

    def text(self) -> bytes:
        """Return the exposition text."""
        return generate_latest(self.registry)
