"""The seal scenario measures what it says, with libgcrypt and without; speeds are not judged here."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.report import html
from bench.scenarios import seal
from recorder.gm import libgcrypt


def test_a_small_run(tmp_path: Path) -> None:
    told: list[str] = []
    report = seal.run(seal.Plan(mebibytes=8, runs=1, call_s=4, directory=tmp_path), told.append)
    assert len(told) == 3
    assert report["directory"] == str(tmp_path)
    assert report["file_system"]
    without = report["libgcrypt"]["without"]
    assert without["libraries"]["libgcrypt"] == "switched off by SHUANGLU_NO_LIBGCRYPT"
    assert without["libraries"]["sm4-gcm"] == "cryptography"
    assert report["libgcrypt"]["with"]["libraries"]["libgcrypt"] == libgcrypt.version
    for one in report["libgcrypt"].values():
        assert {name: suite["mebibytes"] for name, suite in one["suites"].items()} == {
            "sm4-gcm": 8,
            "sm4-ctr-hmac-sm3": 1,
            "aes-256-gcm": 1,
        }
        # 4 s of 2.1 and 0.9 Mbit/s; checkpoints at 2 s and 4 s, or a little later.
        assert 1_400_000 < one["verify"]["bytes"] < 1_700_000
        assert 1 <= one["verify"]["checkpoints"] <= 3
        assert one["signing"]["rooms"] == 150
    assert len(report["goals"]) == 10
    page = html({"machine": {}, **report})
    assert "checkpoints of 150 rooms" in page
    assert not list(tmp_path.iterdir()), "what was measured is removed"


def test_no_room_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="MiB of room"):
        seal.run(seal.Plan(mebibytes=1 << 30, directory=tmp_path), print)
