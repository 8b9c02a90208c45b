"""Which composites may follow their calls."""

from __future__ import annotations

import pytest

from mediaserver.recordings.admission import BASE_CORES, SOUND_CORES, Admission
from recorder.template import Template

STANDARD = Template()


def test_as_many_as_the_cores_bear_and_at_least_one() -> None:
    admission = Admission(cores=2.5 * BASE_CORES)
    shares = [admission.admit(STANDARD) for _ in range(4)]
    assert shares[:2] == pytest.approx([BASE_CORES, BASE_CORES])
    assert shares[2:] == [None, None]
    admission.release(BASE_CORES)
    assert admission.admit(STANDARD) == pytest.approx(BASE_CORES)
    small = Admission(cores=0.01)
    assert small.admit(STANDARD) is not None
    assert small.admit(STANDARD) is None


def test_what_a_template_costs_follows_its_pixels() -> None:
    admission = Admission(cores=1.0)
    full = admission.expected(STANDARD)
    assert admission.expected(Template(profile="evidence")) == pytest.approx(
        SOUND_CORES + (full - SOUND_CORES) * 15 / 25
    )
    assert admission.expected(Template(profile="hd")) > 2 * full
    assert admission.expected(Template(video=False)) == pytest.approx(SOUND_CORES)


def test_it_learns_what_composing_costs_here() -> None:
    admission = Admission(cores=1.0)
    before = admission.expected(STANDARD)
    for _ in range(40):
        admission.learn(STANDARD, cpu_s=60 * 2 * before, duration_s=60)
    assert admission.expected(STANDARD) == pytest.approx(2 * before, rel=0.01)
    admission.learn(STANDARD, cpu_s=1000, duration_s=2)
    admission.learn(STANDARD, cpu_s=0, duration_s=60)
    assert admission.expected(STANDARD) == pytest.approx(2 * before, rel=0.01)
    admission.learn(STANDARD, cpu_s=1e9, duration_s=60)
    assert admission.expected(STANDARD) < 4 * before, "one wild measurement does not stop all"
