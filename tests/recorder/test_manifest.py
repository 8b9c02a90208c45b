"""Canonical JSON, signed pages, the manifest, statements."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorder.canonical import CanonicalError, as_int, canonical, parse_canonical
from recorder.keys import FileProvider
from recorder.manifest import MANIFEST, ManifestError, read_manifest, read_sealed_part, write_manifest
from recorder.signed import SignedError, open_page, sign_page, signable
from recorder.statements import (
    StatementError,
    append_statement,
    list_statements,
    read_sealed,
    read_statements,
)
from tests.recorder.small_recording import SmallRecording, make_provider, make_recording


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> FileProvider:
    return make_provider(tmp_path_factory.mktemp("crypto") / "keys")


@pytest.fixture
def recording(tmp_path: Path, provider: FileProvider) -> SmallRecording:
    return make_recording(tmp_path / "r", provider)


def test_canonical_json_is_rfc_8785s() -> None:
    """Section 3.2.3's example of sorting, without its floats."""
    value = {
        "\u20ac": "Euro Sign",
        "\r": "Carriage Return",
        "\ufb33": "Hebrew Letter Dalet With Dagesh",
        "1": "One",
        "\U0001f600": "Emoji: Grinning Face",
        "\u0080": "Control",
        "\u00f6": "Latin Small Letter O With Diaeresis",
    }
    names = list(json.loads(canonical(value)))
    assert names == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    literal = {"literals": [None, True, False], "string": '€$\u000f\nA\'B"\\\\"/', "n": [0, -7]}
    expected = '{"literals":[null,true,false],"n":[0,-7],"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    assert canonical(literal).decode() == expected


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=4), JSON_VALUES, max_size=4))
@settings(max_examples=30, deadline=None)
def test_canonical_form_is_the_only_form(value: dict[str, object]) -> None:
    data = canonical(value)  # type: ignore[arg-type]
    assert parse_canonical(data) == value
    with pytest.raises(CanonicalError):
        parse_canonical(data + b" ")


@pytest.mark.parametrize(
    "value", [{"a": 1.5}, {"a": 2**53}, {"a": b"x"}, {1: 2}, {"a": "\ud800"}, {"a": {"b": object()}}]
)
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(CanonicalError):
        canonical(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b'{"a":1,"a":2}',
        b'{"b":1,"a":2}',
        b'{"a": 1}',
        b'{"a":1.0}',
        b'{"a":"\\u0061"}',
        b"\xff",
    ],
)
def test_other_forms_of_json_are_refused(data: bytes) -> None:
    with pytest.raises(CanonicalError):
        parse_canonical(data)


def test_integers_are_numbers_or_strings() -> None:
    assert (as_int(5), as_int("1767225600000000000")) == (5, 1_767_225_600_000_000_000)
    for bad in (True, None, "x", [1]):
        with pytest.raises(CanonicalError):
            as_int(bad)
    assert signable({"at_ns": 2**60, "n": 1, "l": [{"b_ns": 2}]}) == {
        "at_ns": str(2**60),
        "n": 1,
        "l": [{"b_ns": "2"}],
    }


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_a_signed_page_holds_at_every_byte(provider: FileProvider) -> None:
    data = sign_page({"type": "t", "n": 1}, provider.signer())
    page = open_page(data, page_type="t")
    assert page.fields == {"type": "t", "n": 1}
    with pytest.raises(SignedError, match="not a 'u'"):
        open_page(data, page_type="u")
    missed = []
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 7
        try:
            open_page(bytes(changed), page_type="t")
        except SignedError:
            continue
        missed.append(position)
    assert not missed
    for size in range(0, len(data), 11):
        with pytest.raises(SignedError):
            open_page(data[:size], page_type="t")
    with pytest.raises(ValueError, match="added by signing"):
        sign_page({"certificate": "x"}, provider.signer())


def test_names_are_only_in_the_sealed_half(recording: SmallRecording) -> None:
    manifest = read_manifest(recording.path)
    assert [segment.file_id for segment in manifest.segments] == [s.file_id for s in recording.segments]
    private = read_sealed_part(recording.path, recording.data_key)
    assert private["template"] == {"layout": {"kind": "side_by_side"}}
    assert "李伟" in json.dumps(private, ensure_ascii=False)
    for path in recording.path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            for name in ("李伟", "li-wei", "王芳", "B-1"):
                assert name.encode() not in data, path
            assert json.dumps("李伟").encode() not in data
    assert manifest.page.fields["provider"]["assurance"] == "development"  # type: ignore[index,call-overload]


def test_a_recording_never_gets_a_second_manifest(recording: SmallRecording) -> None:
    before = (recording.path / MANIFEST).read_bytes()
    with pytest.raises(FileExistsError):
        write_manifest(
            recording.path,
            recording.recording,
            facts={},
            sealed={},
            template=None,
            parts=[],
            data_key=recording.data_key,
            provider=recording.provider.info(),
            signer=recording.provider.signer(),
        )
    assert (recording.path / MANIFEST).read_bytes() == before


def test_a_manifest_is_signed_anew_after_a_death_before_the_signature(
    recording: SmallRecording, tmp_path: Path
) -> None:
    manifest = recording.path / MANIFEST
    manifest.unlink()
    left = (recording.path / "manifest.sealed").read_bytes()
    made = write_manifest(
        recording.path,
        recording.recording,
        facts={"state": "recovered"},
        sealed={},
        template=None,
        parts=[],
        data_key=recording.data_key,
        provider=recording.provider.info(),
        signer=recording.provider.signer(),
    )
    assert made.facts == {"state": "recovered"}
    assert (recording.path / "manifest.sealed").read_bytes() != left
    manifest.write_bytes(b"{}")
    with pytest.raises(ManifestError):
        read_manifest(recording.path)


def test_sealed_halves_are_the_signed_ones(recording: SmallRecording, tmp_path: Path) -> None:
    path = tmp_path / "sealed halves"
    shutil.copytree(recording.path, path)
    statement = read_statements(path)[1]
    assert statement.sealed is not None
    one, other = path / "manifest.sealed", path / "statements" / statement.sealed.name
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    with pytest.raises(ManifestError, match="not the file that was signed"):
        read_sealed_part(path, recording.data_key)
    with pytest.raises(StatementError, match="not the signed one"):
        read_sealed(path, statement, recording.data_key)


def test_statements_are_chained_from_the_manifest_on(recording: SmallRecording) -> None:
    statements = read_statements(recording.path)
    assert [statement.kind for statement in statements] == ["composite", "review"]
    assert [file.media_type for file in statements[0].files] == ["video/mp4"]
    assert read_sealed(recording.path, statements[1], recording.data_key) == {"operator": "王芳"}
    with pytest.raises(StatementError, match="no sealed part"):
        read_sealed(recording.path, statements[0], recording.data_key)
    first = list_statements(recording.path)[0][1]
    data = first.read_bytes()
    first.unlink()
    with pytest.raises(StatementError, match="000001 is missing"):
        read_statements(recording.path)
    first.write_bytes(data.replace(b'"composite"', b'"derived"'))
    with pytest.raises(StatementError, match="signature"):
        read_statements(recording.path)


def test_statements_need_a_manifest_and_a_known_kind(tmp_path: Path, provider: FileProvider) -> None:
    running = make_recording(tmp_path / "running", provider, stopped=False)
    with pytest.raises(FileNotFoundError):
        append_statement(running.path, "review", {}, provider.signer())
    with pytest.raises(ValueError, match="kind"):
        append_statement(running.path, "gossip", {}, provider.signer())
    with pytest.raises(ValueError, match="together"):
        append_statement(running.path, "review", {}, provider.signer(), sealed={})


def test_statements_of_several_writers_at_once_form_one_chain(recording: SmallRecording) -> None:
    def append(name: int) -> None:
        for _ in range(3):
            append_statement(
                recording.path,
                "review",
                {"by": name},
                recording.provider.signer(),
                sealed={"n": name},
                data_key=recording.data_key,
            )

    threads = [threading.Thread(target=append, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statements = read_statements(recording.path)
    assert [statement.number for statement in statements] == list(range(1, 12))
    sealed = [path for path in (recording.path / "statements").glob("*.sealed")]
    assert len(sealed) == 10
