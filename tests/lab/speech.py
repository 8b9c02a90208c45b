"""Speech whose words are recognised again after a bad line: who understands them is no ear but a comparison.

The recogniser is template matching for one speaker, as in the first word recognisers (Sakoe and Chiba,
*Dynamic programming algorithm optimization for spoken word recognition*, IEEE ASSP 26, 1978; symmetric form,
slope constraint P = 1). A word counts as recognised when, of the whole vocabulary, what was received is most
like the word that was sent. It hears spectra, not waveforms: a jitter buffer that stretches sound does not
disturb it, a hole or a wrong syllable does.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from tests.media.sounds import RATE, WORD_LEVEL, Sound, speak

_WORDS: Final = (
    "agent product contract question expert advice table number insurance payment interest signature "
    "account document customer balance telephone january purpose danger family window yellow minute"
)
VOCABULARY: Final = tuple(_WORDS.split())
VOICE: Final = "en-us"
SLOT_S: Final = 1.1
"""A word begins so often; the longest lasts 0.8 s."""
MARGIN_S: Final = 0.35
"""A word is looked for so much earlier and later than the rest of its sentence says."""
SENTENCE: Final = 4
"""Words that are put in their place together: a jitter buffer's delay mostly moves more slowly than this
lasts."""
SLIP_S: Final = 0.6
"""So far a word is looked for from the place of its sentence: sound is stretched when a buffer begins to wait
for what is sent again, by half a second within two words. Less than the way to the next word."""
REACH_S: Final = 1.3
"""So far a sentence is looked for before and after its place: buffers hold up to 1 s."""
PART_S: Final = 8.0
HOP: Final = RATE // 50
WINDOW: Final = 2048
BANDS: Final = 24
FLOOR: Final = 1e-6
"""Of a band's energy: below -60 dB of full scale is silence."""
UNLIKE: Final = 0.62
"""Distance per step from which on a word is like none; silence is at 1."""

Features = npt.NDArray[np.float64]
"""``(frames, BANDS)``, 50 frames a second; each frame has length 1, or 0 in silence."""


@dataclass(frozen=True, slots=True)
class Speech:
    """What is said, and when."""

    sound: Sound
    words: tuple[tuple[float, str], ...]
    """(second of the first sample, word)"""

    @property
    def length_s(self) -> float:
        """Return how long all of it takes."""
        return len(self.sound) / RATE


@lru_cache(maxsize=len(VOCABULARY))
def word(text: str) -> Sound:
    """Return one word as it is said."""
    spoken = speak(text, VOICE)
    loud: Sound = (spoken * (WORD_LEVEL / np.abs(spoken).max())).astype(np.float32)
    return loud


def speech(seed: int, count: int) -> Speech:
    """Return ``count`` words of the vocabulary in an order made by the seed."""
    chance = random.Random(seed)
    words: list[tuple[float, str]] = []
    sound = np.zeros(round(count * SLOT_S * RATE), np.float32)
    while len(words) < count:
        for text in chance.sample(VOCABULARY, min(len(VOCABULARY), count - len(words))):
            at_s = len(words) * SLOT_S + 0.1
            spoken = word(text)
            sound[round(at_s * RATE) :][: len(spoken)] += spoken
            words.append((at_s, text))
    return Speech(sound, tuple(words))


def _frames(seconds: float) -> int:
    return round(seconds * RATE / HOP)


@lru_cache(maxsize=1)
def _filters() -> Features:
    """Return triangular mel filters ``(BANDS, WINDOW // 2 + 1)`` from 100 Hz to 7 kHz."""

    def mel(hz: float) -> float:
        return 2595 * float(np.log10(1 + hz / 700))

    edges = 700 * (10 ** (np.linspace(mel(100), mel(7000), BANDS + 2) / 2595) - 1)
    hz = np.fft.rfftfreq(WINDOW, 1 / RATE)
    rising = (hz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hz) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling))


def features(sound: Sound) -> Features:
    """Return what the recogniser hears: the shape of the spectrum every 20 ms, whatever its level."""
    padded = np.pad(sound.astype(np.float64), (WINDOW // 2, WINDOW // 2))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW), axis=1)) ** 2 / WINDOW
    bands = np.log(np.maximum(power @ _filters().T, FLOOR)) - np.log(FLOOR)
    shape = bands - bands.mean(axis=1, keepdims=True)
    length = np.linalg.norm(shape, axis=1, keepdims=True)
    quiet = bands.max(axis=1, keepdims=True) < 3
    return np.where(quiet, 0, shape / np.maximum(length, 1e-9))


@lru_cache(maxsize=1)
def _templates() -> dict[str, Features]:
    return {text: features(word(text)) for text in VOCABULARY}


def unlikeness(template: Features, heard: Features) -> float:
    """Return how unlike a word is to the most like part of what was heard: 0 the same, about 1 silence."""
    cost = 1 - template @ heard.T
    size, width = cost.shape
    pad, none = np.full(2, np.inf), np.ones(2)
    # Rows of the accumulated cost with the steps so far behind it: (1,1), (2,1) and (1,2), weighted as in the
    # symmetric form, so that all ways are as long as what they pass through.
    rows = [np.concatenate([pad, cost[0] * 2])]
    steps = [np.concatenate([none, np.full(width, 2.0)])]
    for row in range(1, size):
        here = cost[row]
        before, taken = rows[-1], steps[-1]
        ways = [(before[1:-1] + 2 * here, taken[1:-1] + 2)]
        ways.append((before[:-2] + 2 * np.concatenate([[np.inf], here[:-1]]) + here, taken[:-2] + 3))
        if row > 1:
            ways.append((rows[-2][1:-1] + 2 * cost[row - 1] + here, steps[-2][1:-1] + 3))
        costs = np.stack([way[0] for way in ways])
        best = np.argmin(costs / np.stack([way[1] for way in ways]), axis=0)
        column = np.arange(width)
        rows.append(np.concatenate([pad, costs[best, column]]))
        steps.append(np.concatenate([none, np.stack([way[1] for way in ways])[best, column]]))
    return float(np.min(rows[-1][2:] / steps[-1][2:]))


def _offset(sent: Features, heard: Features) -> int:
    """Return how many frames later than in ``sent`` the same is in ``heard``."""
    size = 1 << (len(sent) + len(heard)).bit_length()
    alike = np.fft.irfft(np.fft.rfft(heard, size, axis=0) * np.conj(np.fft.rfft(sent, size, axis=0)), axis=0)
    total = alike.sum(axis=1)[: max(1, len(heard))]
    return int(total.argmax())


def _starts(received: Features, sent: Features, period: int) -> tuple[int, list[int | None]]:
    """Return where in the speech the received sound begins, and by how much earlier by each of its parts,
    None where one says nothing: a buffer's delay moves.
    """
    size, reach = _frames(PART_S), _frames(REACH_S)
    # A part lies somewhere in the repeated speech: the other way round than a word in a sentence.
    begins = range(0, max(1, len(received) - size + 1), size // 2)
    starts = [_offset(received[at : at + size], sent) - at for at in begins]

    def earlier(one: int, other: int) -> int:
        return (one - other + period // 2) % period - period // 2

    def agree(one: int) -> int:
        return sum(abs(earlier(one, other)) <= reach for other in starts)

    start = max(starts, key=agree)
    moved = [earlier(start, one) for one in starts]
    return start % period, [one if abs(one) <= 2 * reach else None for one in moved]


def recognised(said: Speech, heard: Sound) -> list[tuple[str, bool]]:
    """Return which of the words said are heard, of those that fall wholly into what was received.

    ``heard`` begins anywhere in the speech, which is repeated as a fake microphone repeats its file.
    """
    received = features(heard)
    sent = features(np.concatenate([said.sound, said.sound]))
    period = len(said.sound) // HOP
    start, moved = _starts(received, sent, period)
    told: list[tuple[str, bool]] = []
    ahead = [
        (_frames(at_s) + turn * period - start, text)
        for turn in range(2 + len(received) // period)
        for at_s, text in said.words
    ]
    margin = _frames(MARGIN_S)
    inside = [
        (at, text)
        for at, text in ahead
        if at >= margin and at + len(_templates()[text]) + margin < len(received)
    ]
    before = 0
    for index in range(0, len(inside), SENTENCE):
        sentence = inside[index : index + SENTENCE]
        part = moved[min(len(moved) - 1, int(2 * sentence[0][0] * HOP / RATE / PART_S))]
        shift = _shift(sentence, received, {before, before if part is None else part}, REACH_S)
        understood = [
            _is_at(at + shift, text, received)
            or _is_at(at + _shift([(at, text)], received, {shift}, SLIP_S), text, received)
            for at, text in sentence
        ]
        if 2 * sum(understood) > len(sentence):
            before = shift
        told += [(text, one) for (_, text), one in zip(sentence, understood, strict=True)]
    return told


def _is_at(at: int, text: str, received: Features) -> bool:
    """Tell whether a word is what was received there."""
    margin = _frames(MARGIN_S)
    sound = received[max(0, at - margin) : max(0, at + len(_templates()[text]) + margin)]
    return len(sound) > 0 and _best(sound) == text


def _shift(words: Sequence[tuple[int, str]], received: Features, near: set[int], reach_s: float) -> int:
    """Return by how many frames words are away from their place, near one of some guesses."""
    reach = _frames(reach_s)

    def likeness(shift: int) -> float:
        total = 0.0
        for at, text in words:
            template = _templates()[text]
            part = received[max(0, at + shift) : max(0, at + shift) + len(template)]
            total += float((template[: len(part)] * part).sum())
        return total

    return max({shift for guess in near for shift in range(guess - reach, guess + reach + 1)}, key=likeness)


def _best(heard: Features) -> str | None:
    """Return the word that the sound is most like, None if it is like none."""
    found = {text: unlikeness(template, heard) for text, template in _templates().items()}
    best = min(found, key=lambda text: found[text])
    return best if found[best] < UNLIKE else None
