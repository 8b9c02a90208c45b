"""How compositor processes are kept running, with a program that only speaks their lines."""

from __future__ import annotations

import asyncio
import datetime
import sys
from pathlib import Path
from typing import Any

import pytest

from mediaserver.recordings import composing
from mediaserver.recordings.composing import ComposingFailed, Composition, child_environment
from mediaserver.recordings.finishing import within

STAND_IN = str(Path(__file__).with_name("stand_in_compositor.py"))


def composition(
    *arguments: str, live: bool = False, attempts: int = 2, heard: list[Any] | None = None
) -> Composition:
    async def on_event(kind: str, data: dict[str, Any]) -> None:
        if heard is not None:
            heard.append((kind, data))

    command = [sys.executable, STAND_IN, *arguments]
    request = {"live": live, "data_key": "secret"}
    return Composition("id", request, attempts=attempts, on_event=on_event, command=command)


async def test_done() -> None:
    work = composition("done")
    assert await work.result() == {"file": None, "live": False}
    assert (work.progress, work.attempt) == (1.0, 1)
    assert "secret" not in repr(work)


def test_the_child_gets_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "SHUANGLU__CRYPTO__PASSPHRASE",
        "SHUANGLU_CRYPTO_PASSPHRASE",
        "SHUANGLU_CRYPTO_SIGNING_KEY",
        "SHUANGLU_CRYPTO_ENCRYPTION_KEY",
        "SHUANGLU_NO_LIBGCRYPT",
    ):
        monkeypatch.setenv(name, "canary")
    assert [name for name, value in child_environment().items() if value == "canary"] == [
        "SHUANGLU_NO_LIBGCRYPT"
    ]


async def test_a_dead_child_is_started_again(tmp_path: Path) -> None:
    work = composition("dies_once", str(tmp_path / "marker"))
    assert (await work.result())["file"] is None
    assert work.attempt == 2


async def test_a_hanging_child_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composing, "SILENT_S", 1.5)
    monkeypatch.setattr(composing, "KILL_AFTER_S", 0.2)
    work = composition("hangs_once", str(tmp_path / "marker"))
    assert (await work.result())["file"] is None
    assert work.attempt == 2


@pytest.mark.parametrize(("what", "code"), [("dies", "compositor_died"), ("fails", "disk_full")])
async def test_it_gives_up(what: str, code: str) -> None:
    work = composition(what, attempts=1)
    with pytest.raises(ComposingFailed) as caught:
        await work.result()
    assert caught.value.code == code


async def test_it_is_told_that_the_journal_ended() -> None:
    work = composition("follows", live=True)
    while work.progress is None:
        await asyncio.sleep(0.01)
    assert (work.progress, work.lag_s, work.live) == (0.25, 5.5, True)
    work._told_s -= 5.0
    assert work.lag_s == pytest.approx(8.5, abs=0.5), "silence adds to it"
    work.journal_ended()
    work.journal_ended()
    assert (await work.result())["live"] is True


async def test_events_pass_and_rubbish_does_not_stop_it() -> None:
    heard: list[Any] = []
    await composition("chatters", heard=heard).result()
    assert heard == [("overlay.glyph_missing", {"code_point": "U+3400"})]


async def test_closing_ends_the_child() -> None:
    work = composition("follows", live=True)
    while work.progress is None:
        await asyncio.sleep(0.01)
    assert work.pid is not None
    pid = work.pid
    await work.close()
    async with asyncio.timeout(5):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.01)


def test_quiet_hours() -> None:
    at = datetime.time
    assert within("20:00-06:00", at(23, 0))
    assert within("20:00-06:00", at(5, 59))
    assert not within("20:00-06:00", at(6, 0))
    assert within("01:00-02:00", at(1, 30))
    assert not within("01:00-02:00", at(2, 0))
