"""Metrics: counters survive a worker's death, and no label names a room or a person."""

from __future__ import annotations

from mediaserver.metrics import Metrics


def value(metrics: Metrics, name: str) -> float | None:
    return metrics.registry.get_sample_value(name, {"worker": "0"})


def test_a_counter_goes_on_after_a_worker_died() -> None:
    metrics = Metrics()
    metrics.from_worker(0, 100, {"forwarder": {"kind": "native", "datagrams_sent": 50}, "rooms": 2})
    metrics.from_worker(0, 100, {"forwarder": {"kind": "native", "datagrams_sent": 70}, "rooms": 3})
    metrics.from_worker(0, 101, {"forwarder": {"kind": "python", "datagrams_sent": 5}, "rooms": 0})
    assert value(metrics, "shuanglu_packets_sent_total") == 75
    assert value(metrics, "shuanglu_rooms") == 0
    assert value(metrics, "shuanglu_native_forwarder") == 0


def test_odd_values_are_left_out() -> None:
    metrics = Metrics()
    metrics.from_worker(
        0, 1, {"forwarder": {"datagrams_sent": "many"}, "rooms": None, "cpu_s_per_s": 0.5, "else": 1}
    )
    assert value(metrics, "shuanglu_packets_sent_total") is None
    assert value(metrics, "shuanglu_cpu_s_per_s") == 0.5


def test_what_is_refused_is_one_figure() -> None:
    metrics = Metrics()
    refused = {"ice": {"malformed": 1, "bad_integrity": 2, "checks": 99}, "dtls": {"fingerprint_mismatch": 4}}
    metrics.from_worker(0, 1, {**refused, "forwarder": {"malformed": 8}, "rtcp_malformed": 16})
    assert value(metrics, "shuanglu_packets_rejected_total") == 31


def test_labels_name_nobody() -> None:
    metrics = Metrics()
    metrics.from_worker(0, 1, {"forwarder": {"datagrams_sent": 1}})
    metrics.recordings_ended.labels("sealed").inc()
    text = metrics.text().decode()
    allowed = {"worker", "method", "status", "state", "kind", "outcome", "le"}
    for line in text.splitlines():
        if "{" in line and not line.startswith("#"):
            labels = line[line.index("{") + 1 : line.rindex("}")]
            assert {pair.split("=")[0] for pair in labels.split(",") if pair} <= allowed, line
    assert all(line.startswith(("#", "shuanglu_")) for line in text.splitlines())
