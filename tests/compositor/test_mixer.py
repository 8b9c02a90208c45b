"""Sound lies where the timeline puts it: exact after silence, never jumping in speech, never clipping."""

from __future__ import annotations

import numpy as np

from compositor.canvas import Floats
from compositor.mixer import CEILING, Limiter, Mixer
from recorder.template import Audio
from tests.compositor.calls import START_NS, audio_frame, track

A = track(2, "agent#1", "audio/opus")
C = track(4, "customer#1", "audio/opus")
E = track(6, "expert#1", "audio/opus")


def packet(value: float = 0.1) -> Floats:
    return np.full((2, 960), value, np.float32)


def test_placement_is_sample_exact_and_gaps_are_silent() -> None:
    mixer = Mixer(START_NS, Audio())
    mixer.add(A, audio_frame(2, 100), packet())
    mixer.add(A, audio_frame(2, 120), packet())
    mixer.add(A, audio_frame(2, 500.25, lost_before=True), packet())
    out = mixer.take(48_000)[0]
    sounding = np.flatnonzero(out)
    assert sounding[0] == 4800
    assert np.array_equal(sounding[sounding < 24_000], np.arange(4800, 4800 + 1920))
    assert sounding[sounding > 20_000][0] == round(500.25 * 48)
    assert np.allclose(out[4900:6720], 0.1)
    assert out.size == 48_000
    assert mixer.late_samples == 0


def test_every_party_is_in_the_mix() -> None:
    mixer = Mixer(START_NS, Audio())
    infos = [track(10 + index, f"party#{index}", "audio/opus") for index in range(6)]
    for index, info in enumerate(infos):
        mixer.add(info, audio_frame(info.track, 0), packet(0.01 * 2**index))
    assert np.allclose(mixer.take(960)[0, 100:900], 0.63, atol=1e-6)


def test_stereo_by_role() -> None:
    mixer = Mixer(START_NS, Audio(layout="stereo_by_role"))
    assert mixer.channels == 2
    mixer.add(A, audio_frame(2, 0), packet(0.1))
    mixer.add(C, audio_frame(4, 0), packet(0.2))
    mixer.add(E, audio_frame(6, 0), packet(0.1))
    left, right = mixer.take(960)[:, 500]
    assert abs(left - (0.1 + 0.07071)) < 1e-4
    assert abs(right - (0.2 + 0.07071)) < 1e-4


def test_drift_is_corrected_by_at_most_half_a_percent_and_without_steps() -> None:
    """A sender 300 ppm slow would lag 9 ms after 30 s; the mixer keeps it within half a ms of its time."""
    mixer = Mixer(START_NS, Audio())
    hertz = 200.0
    n = 1500
    wave = (0.5 * np.sin(2 * np.pi * hertz * np.arange(n * 960) / 48_000)).astype(np.float32)
    parts = []
    for index in range(n):
        piece = wave[index * 960 : (index + 1) * 960]
        mixer.add(A, audio_frame(2, index * 20 * 1.0003), np.stack([piece, piece]))
        parts.append(mixer.take(round(index * 20 * 1.0003 * 48) - 4800))
    out = np.concatenate(parts, axis=1)[0]
    steps = np.abs(np.diff(out[100:]))
    assert steps.max() < 2 * np.pi * hertz / 48_000 * 0.5 * 1.02, (
        "a jump would be steeper than the sine itself"
    )
    crossings = np.flatnonzero((out[:-1] < 0) & (out[1:] >= 0))
    last = crossings[-1]
    period = 48_000 / hertz
    wanted = round(last / period / 1.0003) * period * 1.0003
    assert abs(last - wanted) < 24
    assert mixer.late_samples == 0


def test_stall_of_ten_seconds_does_not_shift_later_speech() -> None:
    mixer = Mixer(START_NS, Audio())
    mixer.add(A, audio_frame(2, 0), packet())
    mixer.take(4_000)
    mixer.add(A, audio_frame(2, 10_000), packet())
    out = mixer.take(490_000)[0]
    assert np.flatnonzero(out)[-1] == 480_000 + 959 - 3840
    assert np.flatnonzero(out[1000:])[0] + 1000 == 480_000 - 3840


def test_pause_is_silent_exactly() -> None:
    mixer = Mixer(START_NS, Audio())
    for index in range(50):
        mixer.add(A, audio_frame(2, 20 * index), packet())
    mixer.silence(START_NS + 300_000_000, START_NS + 400_000_000)
    out = mixer.take(48_000)[0]
    assert np.array_equal(np.flatnonzero(out == 0), np.arange(14_400, 19_200))


def test_limiter_leaves_quiet_sound_alone_and_never_clips() -> None:
    random = np.random.default_rng(1)
    quiet = (random.random((1, 4800)).astype(np.float32) - 0.5) * 0.5
    limiter = Limiter(1)
    assert np.array_equal(limiter.apply(quiet, 0.0), quiet)
    loud = np.sin(np.arange(48_000, dtype=np.float32) / 20)[None, :] * np.float32(3.0)
    loud[:, :20_000] *= np.float32(0.2)
    out = np.concatenate(
        [
            limiter.apply(
                loud[:, at : at + 1920], float(np.abs(loud[:, at + 1920 : at + 2160]).max(initial=0))
            )
            for at in range(0, 48_000, 1920)
        ],
        axis=1,
    )
    assert np.abs(out).max() <= CEILING + 1e-4
    assert np.abs(out[:, :19_000]).max() < 0.61
    assert np.abs(out[:, 25_000:]).max() > 0.9
    gain = out[0, 1:] / loud[0, 1:]
    good = np.abs(loud[0, 1:]) > 0.1
    assert np.abs(np.diff(gain[good])).max() < 0.05, "the gain moves in straight lines"
