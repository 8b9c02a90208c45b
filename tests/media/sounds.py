"""Sound of a party: a beep at every whole second, spoken words between, and how to find both again.

Sound is mono float32 at 48 kHz in -1 … 1. The programme repeats every ``PERIOD_S`` seconds.
"""

from __future__ import annotations

import io
import subprocess
import wave
from functools import lru_cache

import av
import numpy as np
import numpy.typing as npt

from tests.media.pictures import Party

Sound = npt.NDArray[np.float32]

RATE = 48000
PERIOD_S = 12
BEEP_S = 0.06
BEEP_LEVEL, WORD_LEVEL = 0.30, 0.55
WORD_OFFSET_S = 0.16
"""From the whole second to the word's first sample: the beep is over, and its echo in the codec too."""


class SpeechError(RuntimeError):
    """espeak-ng is missing or refused; the message says what to install."""


@lru_cache(maxsize=64)
def speak(text: str, voice: str, *, words_per_minute: int = 0) -> Sound:
    """Let espeak-ng say ``text``; returns it at 48 kHz, silence cut from both ends.

    Without a speed it is one at which every word of a programme fits between two beeps. Raises SpeechError.
    """
    words_per_minute = words_per_minute or (240 if voice.startswith("cmn") else 165)
    command = ["espeak-ng", "-v", voice, "-s", str(words_per_minute), "--stdout", text]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=30)
    except FileNotFoundError as error:
        raise SpeechError("espeak-ng is not installed: apt-get install espeak-ng") from error
    except subprocess.CalledProcessError as error:
        raise SpeechError(f"espeak-ng -v {voice} failed: {error.stderr.decode(errors='replace')}") from error
    # Its stream header promises 2 GiB; wave reads what is there.
    with wave.open(io.BytesIO(done.stdout)) as file:
        rate = file.getframerate()
        samples = np.frombuffer(file.readframes(2**24), np.int16)
    sound = resample(samples.astype(np.float32) / np.float32(32768), rate, RATE)
    loud = np.flatnonzero(np.abs(sound) > 0.01)
    return sound[loud[0] : loud[-1] + 1]


def resample(sound: Sound, rate: int, new_rate: int) -> Sound:
    """Resample mono sound with libswresample."""
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[None, :]), format="fltp", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=new_rate)
    parts = [part.to_ndarray()[0] for part in [*resampler.resample(frame), *resampler.resample(None)]]
    return np.concatenate(parts).astype(np.float32)


@lru_cache(maxsize=8)
def beep(tone_hz: float) -> Sound:
    """Return a beep whose first sample is its onset; its edges last 1 ms, so that it does not click."""
    count = round(BEEP_S * RATE)
    edge = RATE // 1000
    envelope = np.ones(count)
    envelope[:edge] = np.linspace(0, 1, edge)
    envelope[-edge:] = np.linspace(1, 0, edge)
    return (BEEP_LEVEL * envelope * np.sin(2 * np.pi * tone_hz * np.arange(count) / RATE)).astype(np.float32)


def word_times(party: Party) -> list[tuple[float, str]]:
    """Return (second in the programme, word). Odd parties speak in odd seconds, so that none talks over
    another.
    """
    return [(2 * index + party.number % 2 + WORD_OFFSET_S, word) for index, word in enumerate(party.words)]


@lru_cache(maxsize=8)
def programme(party: Party) -> Sound:
    """Return one period of what ``party`` sends: beeps at 0, 1, 2 … s and its words."""
    sound = np.zeros(PERIOD_S * RATE, np.float32)
    note = beep(party.tone_hz)
    for second in range(PERIOD_S):
        sound[second * RATE : second * RATE + len(note)] += note
    for start_s, word in word_times(party):
        spoken = speak(word, party.voice)
        spoken = spoken * (WORD_LEVEL / np.abs(spoken).max())
        at = round(start_s * RATE)
        sound[at : at + len(spoken)] += spoken
    return sound


def beep_onsets(sound: Sound, tone_hz: float, *, rate: int = RATE) -> list[float]:
    """Return the times (s from the first sample) at which beeps of ``tone_hz`` begin.

    The sound is demodulated at the tone and smoothed over 10 ms: the magnitude crosses half of its plateau
    exactly at the onset. Something that does not last at least half a beep, speech for example, is no beep.
    """
    width = round(0.010 * rate)
    # A beep in the very first sample needs something to rise from.
    padded = np.pad(sound, (width, width))
    time = np.arange(len(padded)) / rate
    mixed = padded * np.exp(-2j * np.pi * tone_hz * time)
    total = np.concatenate([[0], np.cumsum(mixed)])
    level = np.abs(total[width:] - total[:-width]) * 2 / width
    if not level.size or level.max() < 0.02:
        return []
    plateau = float(np.quantile(level, 1 - 0.6 * BEEP_S))
    above = level > plateau / 2
    edges = np.flatnonzero(np.diff(above.astype(np.int8), prepend=0))
    found = []
    for start, end in zip(edges[::2], [*edges[1::2], len(level)][: len(edges[::2])], strict=True):
        if BEEP_S / 2 <= (end - start) / rate <= BEEP_S * 2:
            found.append(float((start - width / 2) / rate))
    return found


def locate(sound: Sound, word: Sound, *, rate: int = RATE) -> tuple[float, float]:
    """Find ``word`` in ``sound``: returns (its first sample's time in s, likeness 0 … 1).

    Normalised cross-correlation of the waveforms. Opus and AAC keep the waveform of voiced speech: a hit has
    0.5 or more, another word less than half of that.
    """
    if len(sound) < len(word):
        raise ValueError(f"sound of {len(sound)} samples is shorter than the word of {len(word)}")
    size = 1 << (len(sound) + len(word)).bit_length()
    spectrum = np.fft.rfft(sound, size) * np.conj(np.fft.rfft(word, size))
    product = np.fft.irfft(spectrum, size)[: len(sound) - len(word) + 1]
    energy = np.concatenate([[0.0], np.cumsum(sound.astype(np.float64) ** 2)])
    local = np.sqrt(np.maximum(energy[len(word) :] - energy[: -len(word)], 1e-6))
    likeness = np.abs(product) / (
        local[: len(product)] * np.sqrt(float((word.astype(np.float64) ** 2).sum()))
    )
    best = int(likeness.argmax())
    return best / rate, float(likeness[best])


def locate_stretched(sound: Sound, word: Sound, most: float = 0.005) -> tuple[float, float]:
    """Find ``word`` as `locate` does, in a recording that plays up to ``most`` slower or faster.

    A recorder follows a sender's clock by resampling; 0.4 % moves a wave of 1 kHz by two periods within half
    a second, and the word as it was spoken is not found any more, though every ear hears it.
    """
    rates = [round(RATE * (1 + most * step / 5)) for step in range(-5, 6)]
    return max((locate(sound, resample(word, RATE, rate)) for rate in rates), key=lambda found: found[1])


def loudness(sound: Sound) -> float:
    """Return the RMS of ``sound``, 0 for nothing."""
    return float(np.sqrt((sound.astype(np.float64) ** 2).mean())) if len(sound) else 0.0
