"""One room for two seconds on real servers, through the command a machine would call."""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

import pytest
from typer.testing import CliRunner

from bench.__main__ import app
from bench.scenarios import forward
from bench.servers import Ours, ServerError
from bench.servers.base import own_address

pytestmark = pytest.mark.e2e
APT = "apt-get install -y --no-install-recommends janus"


def janus_missing() -> str:
    """Return why Janus cannot be measured here, empty if it can."""
    if shutil.which("janus") is None:
        return f"Janus is not installed: {APT}  (or: make bench-peers)"
    try:
        own_address()
    except ServerError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Measure this server on both packet loops, and Janus where there is one, once for all tests."""
    directory = tmp_path_factory.mktemp("forward")
    path, page = directory / "forward.json", directory / "forward.html"
    peers = "ours-python" if janus_missing() else "ours-python,janus"
    options = ["--rooms", "1", "--seconds", "2", "--runs", "1", "--peers", peers]
    cores = os.sched_getaffinity(0)
    with pytest.MonkeyPatch.context() as patch:
        # Steady figures need rest before they are taken; whether they come at all does not.
        patch.setattr(Ours, "rest_s", 0.0)
        patch.setattr(forward, "SETTLE_S", 0.5)
        done = CliRunner().invoke(app, ["forward", *options, "--json", str(path), "--html", str(page)])
    assert done.exit_code == 0, done.output[-2000:]
    assert os.sched_getaffinity(0) == cores
    assert "<svg" in page.read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def whole(figures: dict[str, Any]) -> None:
    """Check that everything arrived as it was sent."""
    assert figures["verified"]["median"] > 0
    assert figures["bad"]["median"] == figures["auth_failed"]["median"] == 0
    assert figures["loss"]["median"] < 0.01  # a starved machine may drop; what arrives must be right
    assert figures["packets_per_s"]["median"] > 100
    assert figures["cpu_us_per_packet"]["median"] > 0
    assert figures["delay_ms"].keys() == {"p50", "p95", "p99"}
    assert figures["srtp"]


@pytest.mark.parametrize("server", ["ours", "ours-python"])
def test_everything_arrives_as_it_was_sent(report: dict[str, Any], server: str) -> None:
    whole(report["servers"][server])


def test_contract_for_machines(report: dict[str, Any]) -> None:
    assert report["scenario"] == "forward"
    assert report["rooms"] == 1
    ours, theirs = (report["servers"][name]["cpu_us_per_packet"] for name in ("ours", "ours-python"))
    assert report["ratio"]["ours-python"] == pytest.approx(ours["median"] / theirs["median"], rel=0.01)
    assert {"at", "commit", "cpu", "cores", "kernel", "python", "load_average"} <= report["machine"].keys()
    for figures in report["servers"].values():
        assert {"median", "min", "max", "runs"} <= figures["cpu_us_per_packet"].keys()
        assert figures["version"]


@pytest.mark.skipif(bool(janus_missing()), reason=janus_missing())
def test_janus_beside_it(report: dict[str, Any]) -> None:
    whole(report["servers"]["janus"])
    assert report["servers"]["janus"]["version"].startswith("Janus 1.")
    assert report["ratio"]["janus"] > 0
