"""The recogniser that judges heavy loss: knows what was said, and what was not."""

from __future__ import annotations

import numpy as np
import pytest

from tests.lab.speech import SLOT_S, recognised, speech
from tests.media.sounds import RATE, Sound

SAID = speech(5, 16)


def told(heard: Sound) -> str:
    """Return + for each word recognised, - for the others, in the order of the sound."""
    return "".join("+" if known else "-" for _, known in recognised(SAID, heard))


def test_all_words_are_known_wherever_the_sound_begins() -> None:
    twice = np.concatenate([SAID.sound, SAID.sound])
    for begin_s in (0.0, 3.3, 9.75):
        first = round(begin_s * RATE)
        heard = told(twice[first : first + round(14 * SLOT_S * RATE)])
        assert heard == "+" * len(heard)
        assert len(heard) >= 12


@pytest.mark.parametrize("lag_s", [0.16, 0.9])
def test_a_sound_that_lags_more_and_more_is_still_known(lag_s: float) -> None:
    hole = np.zeros(round(lag_s / 16 * RATE), np.float32)
    parts = [np.concatenate([part, hole]) for part in np.array_split(SAID.sound, 16)]
    assert told(np.concatenate(parts)).count("-") <= 1


@pytest.mark.parametrize("word", range(5, 9))
def test_words_on_both_sides_of_a_wait_that_begins_are_known(word: int) -> None:
    """What is missing is waited for from here on: half a second within two words."""
    slot, wait = round(SLOT_S * RATE), np.zeros(round(0.25 * RATE), np.float32)
    first, second = word * slot, (word + 1) * slot
    sound = SAID.sound
    assert "-" not in told(np.concatenate([sound[:first], wait, sound[first:second], wait, sound[second:]]))


@pytest.mark.parametrize("lost", ["silence", "another word"])
def test_a_word_that_did_not_come_is_not_known(lost: str) -> None:
    heard = SAID.sound.copy()
    slot = round(SLOT_S * RATE)
    first, other = 6 * slot, 10 * slot
    heard[first : first + slot] = 0 if lost == "silence" else heard[other : other + slot]
    assert told(heard).count("-") == 1


def test_noise_is_no_speech() -> None:
    noise = np.random.default_rng(1).normal(0, 0.1, len(SAID.sound)).astype(np.float32)
    assert "+" not in told(noise)


def test_holes_of_a_packet_do_not_hide_a_word_but_half_of_it_missing_may() -> None:
    holes, halves = SAID.sound.copy(), SAID.sound.copy()
    for at in range(0, len(holes), 9600):
        holes[at : at + 960] = 0
        halves[at : at + 8400] = 0
    assert told(holes).count("-") <= 1
    assert told(halves).count("-") >= 8
