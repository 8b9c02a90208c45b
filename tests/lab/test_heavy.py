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

CLEAN_S, CALL_S = 20.0, 60.0


@pytest.fixture(scope="session")
def said(lab_seed: int) -> Speech:
    """Return what the customer says, again and again."""
    return speech(lab_seed, 60)


@pytest.mark.parametrize("both", [False, True], ids=["customer's line", "both lines"])
@pytest.mark.parametrize(
    ("loss", "understood", "frozen"), [(0.1, 95.0, 5.0), (0.2, 90.0, 10.0), (0.3, 80.0, 20.0)]
)
async def test_heavy_loss(
    lab: Laboratory,
    tmp_path: Path,
    devices: Devices,
    table: Table,
    said: Speech,
    loss: float,
    understood: float,
    frozen: float,
    both: bool,
) -> None:
    """So much loss each way; words are judged against the same call before the loss began."""
    name = f"{loss:.0%} loss each way, {'both lines' if both else 'customer alone'}"
    microphone = write_wav(tmp_path / "speech.wav", said.sound)
    async with call(lab, tmp_path, (devices[0], microphone)) as made:
        await made.viewer.listen(CUSTOMER.identity)
        await asyncio.sleep(CLEAN_S)
        before = await made.viewer.heard()
        await impaired(made, name, table, CALL_S, frozen, {**BAD, "loss": loss}, both=both)
        during = await made.viewer.heard()
        records = await journal(made, name, table, CALL_S, {})
        await gaps(made, name, table, records)
    whole = share(said, before)
    assert whole > 0.9, "not even the clean line was understood"
    heard = 100 * share(said, during) / whole
    table.add(name, "words the viewer understands", heard, "%", at_least=understood, clean=whole)
    kept = 100 * share(said, recorded_sound(records)) / whole
    table.add(name, "words the recording has", kept, "%", at_least=understood)


def share(said: Speech, heard: Sound) -> float:
    """Return the share of the words that is recognised, 0 … 1."""
    told = recognised(said, heard)
    assert len(told) > 10, "too little sound came"
    return float(np.mean([known for _, known in told]))
