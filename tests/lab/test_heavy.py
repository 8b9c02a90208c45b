"""Lines so bad that speech is what counts: is it understood, does the picture move, is every hole listed?"""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from tests.lab.call import Devices, call, recorded_sound
from tests.lab.measured import BAD, gaps, impaired, journal
from tests.lab.network import Laboratory
from tests.lab.speech import Speech, recognised, speech
from tests.lab.table import Table
from tests.media.files import write_wav
from tests.media.pictures import CUSTOMER
from tests.media.sounds import Sound

pytestmark = [pytest.mark.lab, pytest.mark.whole, pytest.mark.timeout(400)]

CLEAN_S, CALL_S = 20.0, 45.0
LEVELS = ((0.1, 95.0, 5.0), (0.2, 90.0, 10.0), (0.3, 80.0, 20.0))
"""Loss each way, words that shall be understood (%), time that the picture may be frozen (%)."""


@pytest.fixture(scope="session")
def said(lab_seed: int) -> Speech:
    """Return what the customer says, again and again."""
    return speech(lab_seed, 60)


@pytest.mark.parametrize("both", [False, True], ids=["customer's line", "both lines"])
async def test_heavy_loss(
    lab: Laboratory, tmp_path: Path, devices: Devices, table: Table, said: Speech, both: bool
) -> None:
    """A line that gets worse and worse; words are judged against the same call before the loss began."""
    where = "both lines" if both else "customer's line"
    microphone = write_wav(tmp_path / "speech.wav", said.sound)
    heard: list[Sound] = []
    async with call(lab, tmp_path, (devices[0], microphone)) as made:
        await made.viewer.listen(CUSTOMER.identity)
        await asyncio.sleep(CLEAN_S)
        clean = await made.viewer.heard()
        for loss, _, frozen in LEVELS:
            bad = {**BAD, "loss": loss}
            await impaired(made, f"{loss:.0%} loss each way, {where}", table, CALL_S, frozen, bad, both=both)
            heard.append(await made.viewer.heard())
            write_wav(tmp_path / f"heard-{loss:.0%}.wav", heard[-1])  # for ears that want to judge
        name = f"10, 20, 30 % loss each way, {where}"
        records = await journal(made, name, table, len(LEVELS) * CALL_S, {"video": 1.0, "audio": 1.0})
        await gaps(made, name, table, records)
    whole = share(said, clean)
    assert whole > 0.9, "not even the clean line was understood"
    for (loss, understood, _), during in zip(LEVELS, heard, strict=True):
        words = 100 * share(said, during) / whole
        figure = "words the viewer understands"
        level = f"{loss:.0%} loss each way, {where}"
        row = table.add(level, figure, words, "%", at_least=understood, clean=whole)
        assert row.reached or loss > 0.1 or both
    kept = 100 * share(said, recorded_sound(records)) / whole
    assert table.add(name, "words the recording has", kept, "%", at_least=95).reached


def share(said: Speech, heard: Sound) -> float:
    """Return the share of the words that is recognised, 0 … 1."""
    told = recognised(said, heard)
    assert len(told) > 10, "too little sound came"
    return float(np.mean([known for _, known in told]))
