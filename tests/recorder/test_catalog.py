"""The index: what is found, what is sealed, and that it can be rebuilt from the recordings alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recorder.catalog import Catalog, CatalogError, Entry, FileEntry, cursor_of, parse_cursor
from recorder.fieldkey import FieldKey, FieldKeyError
from recorder.ids import uuid7

KEY = FieldKey(b"i" * 32)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = Catalog(f"sqlite:///{tmp_path / 'index.sqlite'}", KEY)
    yield catalog
    catalog.close()


def entry(number: int = 1, **columns: Any) -> Entry:
    values: dict[str, Any] = {
        "id": str(uuid7(1_790_000_000_000 + number)),
        "tenant": "one",
        "room": "desk",
        "business_no": f"金丝雀-{number}",
        "mode": "composite",
        "directory": f"recordings/{number}",
        "created_ns": number,
        "details": {"metadata": {"customer": "王小明"}},
    }
    return Entry(**{**values, **columns})


def file(name: str = "composite.mp4") -> FileEntry:
    return FileEntry(name, "archive", "video/mp4", f"files/{name}", 10, 8, "sm3:aa", "sm3:bb", 1000)


def test_what_is_put_is_found(catalog: Catalog) -> None:
    one = entry(1, state="sealed", files=(file(),), armed_ns=2, stopped_ns=3)
    catalog.put(one)
    assert catalog.get(one.id) == one
    changed = replace(one, files=(file("a.mp4"), file("b.mp4")), composing={"state": "done", "progress": 1.0})
    catalog.put(changed)
    assert catalog.get(one.id) == changed
    assert catalog.get("nothing") is None


def test_search(catalog: Catalog) -> None:
    entries = [
        entry(1, state="sealed"),
        entry(2, room="other"),
        entry(3, tenant="two", business_no="金丝雀-1"),
        entry(4, state="sealed", business_no="金丝雀-1", attempt=2),
    ]
    for one in entries:
        catalog.add(one)

    def found(tenant: str = "one", **wanted: Any) -> list[int]:
        return [one.created_ns for one in catalog.search(tenant, **wanted)]

    assert found() == [4, 2, 1]
    assert found("two") == [3]
    assert found(business_no="金丝雀-1") == [4, 1]
    assert found(room="other") == [2]
    assert found(state="sealed") == [4, 1]
    assert found(limit=2) == [4, 2]
    assert found(before=entries[1].id) == [1]
    assert [one.attempt for one in catalog.by_business_no("one", "金丝雀-1")] == [1, 2]
    assert [one.created_ns for one in catalog.active()] == [3, 2]
    assert [one.created_ns for one in catalog.uncomposed()] == [4, 1]
    catalog.forget_all()
    assert found() == []


def test_an_attempt_is_recorded_once(catalog: Catalog) -> None:
    catalog.add(entry(1))
    with pytest.raises(CatalogError):
        catalog.add(entry(2, business_no="金丝雀-1"))
    catalog.add(entry(3, business_no="金丝雀-1", tenant="two"))


def test_names_are_sealed_on_disk(catalog: Catalog, tmp_path: Path) -> None:
    catalog.put(entry(1))
    written = b"".join(path.read_bytes() for path in tmp_path.glob("index.sqlite*"))
    for secret in ("金丝雀", "王小明"):
        assert secret.encode() not in written
        assert secret.encode("unicode_escape") not in written
    other = Catalog(f"sqlite:///{tmp_path / 'index.sqlite'}", FieldKey(b"o" * 32))
    with pytest.raises(FieldKeyError):
        other.search("one")
    other.close()


def test_cursors() -> None:
    one = entry(1)
    assert parse_cursor(cursor_of(one)) == one.id
    for bad in ("", "x", "????", "a" * 48 + "!", "\u00e9" * 48):
        with pytest.raises(ValueError):
            parse_cursor(bad)


def test_field_key(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "index.key"
    key = FieldKey.open(path)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    sealed = key.seal({"a": [1, "二"]}, "column")
    assert FieldKey.open(path).unseal(sealed, "column") == {"a": [1, "二"]}
    for column, data in (
        ("other", sealed),
        ("column", sealed[:-1] + bytes([sealed[-1] ^ 1])),
        ("column", b""),
    ):
        with pytest.raises(FieldKeyError):
            key.unseal(data, column)
    assert key.digest("a", "one") != key.digest("a", "two")
    assert repr(key) == "FieldKey(…)"
    path.write_bytes(b"short")
    with pytest.raises(FieldKeyError):
        FieldKey.open(path)
    assert [one.name for one in path.parent.iterdir()] == ["index.key"]
