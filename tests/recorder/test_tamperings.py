"""Random changes of every kind to recordings of every state: each is found where it is; `bench tamper` does
10,000 of them through the program, this file some hundreds.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from bench.tampering import Original, Tamperer, damage
from recorder.keys import FileProvider, read_sidecar
from recorder.report import Verdict
from recorder.sealed import DataKey
from recorder.verify import verify
from tests.recorder.originals import make_originals
from tests.recorder.small_recording import make_provider

EACH = 20
SEED = 20261126


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> FileProvider:
    return make_provider(tmp_path_factory.mktemp("crypto") / "keys")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory, provider: FileProvider) -> list[Original]:
    return make_originals(tmp_path_factory.mktemp("originals"), provider)


def key_of(provider: FileProvider, path: Path) -> DataKey:
    return provider.unwrap_now(read_sidecar(path), recording_id=path.name, purpose="test", actor="test")


def test_untouched_ones_raise_no_alarm(provider: FileProvider, originals: list[Original]) -> None:
    for one in originals:
        for data_key in (None, key_of(provider, one.path)):
            report = verify(one.path, data_key=data_key)
            assert report.verdict == (Verdict.OK if one.ended else Verdict.UNPROVEN), report.findings
            assert damage(report.to_json()["findings"]) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", Tamperer(random.Random(0), ()).kinds)
def test_every_change_is_found_where_it_is(
    kind: str, provider: FileProvider, originals: list[Original], tmp_path: Path
) -> None:
    print(f"seed {SEED} {kind}")
    source = random.Random(f"{SEED} {kind}")
    tamperer = Tamperer(source, originals)
    missed = []
    for number in range(EACH):
        one = source.choice([one for one in originals if one.ended or kind in tamperer.in_place])
        copy = one.copy(tmp_path / str(number))
        done = tamperer.tamper(one, copy, kind)
        report = verify(copy, data_key=key_of(provider, one.path) if number % 4 == 0 else None)
        findings = report.to_json()["findings"]
        if left := done.missed(findings):  # type: ignore[arg-type]
            missed.append((one.ended, left, [str(finding) for finding in report.findings]))
        assert report.verdict == Verdict.BROKEN or left
        shutil.rmtree(tmp_path / str(number))
    assert not missed, "\n".join(map(str, missed))
