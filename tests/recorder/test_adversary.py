"""Someone holds the data key, but not the signing key, and years of signed pages: all attacks are found.

Each attack is a class in `attacks_on_segments` and `attacks_on_pages`; each is done with several seeds to an
ended recording, to one recovered after a crash and, where it touches more than the tail that no checkpoint
covers, to a crashed one that nobody signed yet. What cannot be found in the recording itself stands at the
end, as tests of what is said then.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from recorder.canonical import JSON
from recorder.gm.x509 import Certificate
from recorder.journal import recover
from recorder.keys import FileProvider
from recorder.manifest import read_manifest, write_manifest
from recorder.recovering import recover_recording
from recorder.report import Kind, Report, Verdict
from recorder.sealed import DataKey, RecordType, scan
from recorder.signed import digest_name, open_page, sign_page
from recorder.statements import append_statement
from recorder.verify import verify
from tests.recorder import attacks_on_pages, attacks_on_segments
from tests.recorder.attacks_on_segments import Attack, Target
from tests.recorder.originals import make_crashed
from tests.recorder.small_recording import make_provider, make_recording

SEEDS = 3
MODULES = (attacks_on_segments, attacks_on_pages)


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> FileProvider:
    return make_provider(tmp_path_factory.mktemp("crypto") / "keys")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> FileProvider:
    return make_provider(tmp_path_factory.mktemp("stranger") / "keys")


@dataclass
class Made:
    """The untouched recordings, each in a directory of its id, and their data keys."""

    paths: dict[str, Path]
    keys: dict[str, DataKey]
    signer: str
    """Fingerprint of the recorder's certificate."""
    earlier: bytes
    """A manifest the recorder once signed of the ended one."""

    def copy(self, state: str, folder: Path) -> Path:
        return Path(shutil.copytree(self.paths[state], folder / self.paths[state].name))

    def control(self, state: str) -> None:
        """Check that the untouched one holds, in between as at the beginning."""
        report = verify(self.paths[state], data_key=self.keys[state], trusted=[self.signer])
        assert report.verdict == (Verdict.UNPROVEN if state == "crashed" else Verdict.OK)
        assert named(report) == set()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, provider: FileProvider) -> Made:
    folder = tmp_path_factory.mktemp("made")
    paths, keys = {}, {}
    for name, seed in (("ended", 1), ("other", 2)):
        one = make_recording(folder / name, provider, seed=seed, segments=4, composite_bytes=600_000)
        append_statement(one.path, "review", {"verdict": "failed"}, provider.signer())
        paths[name], keys[name] = one.path.rename(folder / one.recording), one.data_key
    paths["recovered"], keys["recovered"] = make_crashed(folder, provider)
    recover_recording(
        paths["recovered"], keys["recovered"], provider=provider.info(), signer=provider.signer()
    )
    paths["crashed"], keys["crashed"] = make_crashed(folder, provider)
    signer = Certificate.from_pem(provider.info().signing_certificate_pem).fingerprint
    earlier = sign_earlier(folder / "earlier", paths["ended"], keys["ended"], provider)
    return Made(paths, keys, signer, earlier)


def sign_earlier(earlier: Path, path: Path, data_key: DataKey, provider: FileProvider) -> bytes:
    """Let the recorder sign the recording as it was with three segments: an attempt that was not the last."""
    shutil.copytree(path / "segments", earlier / "segments")
    sorted((earlier / "segments").iterdir())[-1].unlink()
    write_manifest(
        earlier,
        read_manifest(path).recording,
        facts={"tenant": "default", "room": "r1", "state": "recovered"},
        sealed={},
        template=None,
        parts=recover(earlier, data_key),
        data_key=data_key,
        provider=provider.info(),
        signer=provider.signer(),
    )
    return (earlier / "manifest.json").read_bytes()


def attacks() -> list[type[Attack]]:
    """Return all attacks, in the order they stand in their files."""
    found = [one for module in MODULES for one in vars(module).values() if isinstance(one, type)]
    return list(dict.fromkeys(one for one in found if issubclass(one, Attack) and one is not Attack))


CASES = [(attack, state, seed) for attack in attacks() for state in attack.states for seed in range(SEEDS)]


def test_there_are_a_hundred_attacks_and_more() -> None:
    assert len(CASES) >= 100
    assert len(attacks()) >= 25


@pytest.mark.parametrize(
    ("attack", "state", "seed"), CASES, ids=[f"{kind.__name__}-{state}-{seed}" for kind, state, seed in CASES]
)
def test_found(
    attack: type[Attack], state: str, seed: int, made: Made, stranger: FileProvider, tmp_path: Path
) -> None:
    path = made.copy(state, tmp_path)
    source, other = random.Random(f"{attack.__name__} {state} {seed}"), made.paths["other"]
    name = attack().forge(
        Target(path, made.keys[state], other, made.keys["other"], made.earlier, stranger, source)
    )
    for data_key in (None, made.keys[state]):
        report = verify(path, data_key=data_key, trusted=[made.signer])
        assert report.verdict == Verdict.BROKEN, [str(one) for one in report.findings]
        assert name in named(report), [str(one) for one in report.findings]
        # Whoever trusts nobody beforehand sees it too, if not always which of two signers is the right one.
        assert verify(path, data_key=data_key).verdict == Verdict.BROKEN
    made.control(state)


def named(report: Report) -> set[str]:
    return {one.file for one in report.findings if one.kind not in (Kind.UNPROVEN, Kind.LEFTOVER)}


def signed_anew(path: Path, signer: FileProvider) -> None:
    """Sign every page of a recording with another key, each naming the one before as it is now."""
    previous = ""
    for name in (
        "keys.json",
        "manifest.json",
        *sorted(f"statements/{p.name}" for p in path.glob("statements/*.json")),
    ):
        page = open_page((path / name).read_bytes(), page_type=json.loads((path / name).read_bytes())["type"])
        fields: dict[str, JSON] = dict(page.fields)
        if "previous" in fields:
            fields["previous"] = previous
        data = sign_page(fields, signer.signer())
        (path / name).write_bytes(data)
        previous = digest_name(data)


def test_a_recording_wholly_signed_anew_is_found_by_whom_one_trusts(
    made: Made, stranger: FileProvider, tmp_path: Path
) -> None:
    path = made.copy("ended", tmp_path)
    signed_anew(path, stranger)
    report = verify(path, trusted=[made.signer])
    assert report.verdict == Verdict.BROKEN
    assert {"keys.json", "manifest.json", "statements/000001.json"} <= named(report)
    # The checkpoints, every two seconds, are still the recorder's; one who removes them too is believed.
    assert verify(path).verdict == Verdict.BROKEN


def test_a_statement_cut_from_the_end_is_only_seen_by_what_it_left(made: Made, tmp_path: Path) -> None:
    """docs/container.md, section 7: its absence is proved by the audit chain, not by the recording."""
    path = made.copy("ended", tmp_path)
    (path / "statements/000003.json").unlink()
    assert verify(path).ok
    (path / "statements/000002.json").unlink()
    report = verify(path)
    assert report.ok
    assert [one.kind for one in report.findings] == [Kind.LEFTOVER]


def test_a_crashed_recording_cut_back_to_a_checkpoint_is_never_ok(made: Made, tmp_path: Path) -> None:
    """Nor is this in the recording: it is not proven from that checkpoint on, as any crashed one."""
    path = made.copy("crashed", tmp_path)
    last = sorted((path / "segments").iterdir())[-2]
    sorted((path / "segments").iterdir())[-1].unlink()
    frame = next(record for record in scan(last).records if record.type == RecordType.CHECKPOINT)
    last.write_bytes(last.read_bytes()[: frame.end])
    assert verify(path, trusted=[made.signer]).verdict == Verdict.UNPROVEN
