"""Random changes to copies of recordings, each knowing where it is, for `bench tamper` and the tests.

A change is *found* when verification names the file and a byte range that holds the first changed byte; of a
change inside one record of a sealed file, also that record. Two things are left out because nothing in the
recording itself can show them (docs/container.md, section 7): a statement removed from the end of the chain,
and what is cut off behind the last checkpoint of a recording that has no manifest yet.
"""

from __future__ import annotations

import os
import random
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from recorder.sealed import scan

SEALED = (".seg", ".sealed")
FAR = 4096
"""Two bytes that are exchanged lie no farther apart."""
LONGEST = 300
"""Bytes removed, repeated or set to zero at once."""


@dataclass(frozen=True)
class Place:
    """Where a change is."""

    file: str
    at: int | None = None
    """Offset of the first changed byte in the file as it lies there now; None: the file is gone, or new."""
    record: int | None = None
    """Of a change inside one record of a sealed file."""


@dataclass(frozen=True)
class Tampering:
    """What was done to a copy. Each place must be found; of ``either`` one."""

    kind: str
    places: tuple[Place, ...] = ()
    either: tuple[Place, ...] = ()

    def missed(self, findings: Sequence[Mapping[str, object]]) -> list[Place]:
        """Return the places that findings (as ``recorder verify --json`` has them) do not name."""
        missed = [place for place in self.places if not any(_names(one, place) for one in findings)]
        if self.either and not any(_names(one, place) for one in findings for place in self.either):
            missed += self.either
        return missed


def damage(findings: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """Return the findings that are damage, not remarks."""
    return [one for one in findings if one["kind"] not in ("unproven", "leftover")]


def _names(finding: Mapping[str, object], place: Place) -> bool:
    if finding["file"] != place.file or finding["kind"] in ("unproven", "leftover"):
        return False
    if place.at is None:
        return True
    begin, end, record = finding["begin"], finding["end"], finding["record"]
    if not isinstance(begin, int) or not isinstance(end, int):
        return False
    if place.record is not None and record != place.record:
        return False
    # A page is named whole; of one that was cut off the first missing byte is just behind it.
    inside = begin <= place.at < end
    return inside or (not place.file.endswith(SEALED) and begin == 0 and place.at <= end)


@dataclass
class Original:
    """An untouched recording, held in memory; its copies are made of links, but for what is changed."""

    path: Path
    ended: bool = True
    """It has its manifest."""
    files: dict[str, bytes] = field(default_factory=dict)
    records: dict[str, list[int]] = field(default_factory=dict)
    """Of sealed files, where each record begins, and where the last one ends."""

    def __post_init__(self) -> None:
        for file in sorted(path for path in self.path.rglob("*") if path.is_file()):
            name = str(file.relative_to(self.path))
            self.files[name] = file.read_bytes()
            if file.suffix in SEALED:
                found = scan(file).records
                self.records[name] = [record.offset for record in found] + [found[-1].end]

    def copy(self, directory: Path) -> Path:
        """Make a copy in ``directory``, named as the original: as a recording's directory is."""
        made = directory / self.path.name
        for name in self.files:
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(self.path / name, made / name)
        return made

    @property
    def removable(self) -> list[str]:
        """Names of files whose absence the recording shows: all but its last statement."""
        statements = sorted(name for name in self.files if name.startswith("statements/") and _page(name))
        return [name for name in self.files if name not in statements[-1:]]

    def record_of(self, name: str, at: int) -> int | None:
        """Return the number of the record that holds a byte; None outside of records (magic, torn end)."""
        begins = self.records.get(name, [])
        if not begins or not begins[0] <= at < begins[-1]:
            return None
        return bisect_right(begins, at) - 1


def put(copy: Path, name: str, data: bytes) -> None:
    """Replace a file of a copy; the original, linked from there, stays as it is."""
    (copy / name).unlink(missing_ok=True)
    (copy / name).write_bytes(data)


def first_change(before: bytes, after: bytes) -> int:
    """Return the offset of the first byte that differs; the shorter's length if it is the other's begin."""
    low, high = 0, min(len(before), len(after))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if before[:middle] == after[:middle] else (low, middle - 1)
    return low


class Nothing(Exception):
    """The draw would change nothing, or nothing that can be seen; draw again."""


class Tamperer:
    """Draws changes. The same source gives the same changes to the same originals."""

    def __init__(self, source: random.Random, originals: Sequence[Original]) -> None:
        self._source, self._originals = source, originals
        self._kinds: dict[str, Callable[[Original, Path], tuple[Place, ...]]] = {
            "bit flipped": self._flip,
            "bytes exchanged": self._swap_bytes,
            "bytes zeroed": self._zero,
            "bytes removed": self._remove_bytes,
            "bytes repeated": self._repeat_bytes,
            "records exchanged": self._swap_records,
            "record removed": self._remove_record,
            "record repeated": self._repeat_record,
            "record of another recording": self._splice_record,
            "end of another recording's file": self._splice_end,
            "cut off": self._cut,
            "cut off at a record": self._cut_at_record,
            "appended": self._append,
            "file removed": self._remove_file,
            "file repeated": self._copy_file,
            "file renamed": self._rename,
            "files exchanged": self._swap_files,
            "page of another recording": self._foreign_page,
            "sidecar of another recording": self._foreign_sidecar,
            "file of another recording": self._foreign_file,
        }
        self.in_place = ("bit flipped", "bytes exchanged", "bytes zeroed", "records exchanged")
        """Kinds that are found in a recording without a manifest too, wherever they are."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the names of all kinds."""
        return tuple(self._kinds)

    def tamper(self, original: Original, copy: Path, kind: str) -> Tampering:
        """Change a fresh copy of ``original``."""
        while True:
            try:
                places = self._kinds[kind](original, copy)
            except Nothing:
                continue
            if kind == "file renamed":
                return Tampering(kind, either=places)
            return Tampering(kind, places)

    # --- bytes

    def _change(self, one: Original, copy: Path, name: str, data: bytes, *, inside: bool) -> Place:
        before = one.files[name]
        if data == before:
            raise Nothing
        at = first_change(before, data)
        if not one.ended and name in one.records and at >= one.records[name][-1]:
            raise Nothing  # a torn record behind what is signed
        put(copy, name, data)
        return Place(name, at, one.record_of(name, at) if inside else None)

    def _flip(self, one: Original, copy: Path) -> tuple[Place, ...]:
        name = self._source.choice(list(one.files))
        data = bytearray(one.files[name])
        data[self._source.randrange(len(data))] ^= 1 << self._source.randrange(8)
        return (self._change(one, copy, name, bytes(data), inside=True),)

    def _swap_bytes(self, one: Original, copy: Path) -> tuple[Place, ...]:
        name = self._source.choice(list(one.files))
        data = bytearray(one.files[name])
        first = self._source.randrange(len(data))
        second = self._source.randrange(first, min(len(data), first + FAR))
        data[first], data[second] = data[second], data[first]
        return (self._change(one, copy, name, bytes(data), inside=True),)

    def _zero(self, one: Original, copy: Path) -> tuple[Place, ...]:
        name, begin, end = self._range(one)
        data = one.files[name]
        return (self._change(one, copy, name, data[:begin] + bytes(end - begin) + data[end:], inside=True),)

    def _remove_bytes(self, one: Original, copy: Path) -> tuple[Place, ...]:
        name, begin, end = self._range(one)
        data = one.files[name]
        return (self._change(one, copy, name, data[:begin] + data[end:], inside=False),)

    def _repeat_bytes(self, one: Original, copy: Path) -> tuple[Place, ...]:
        name, begin, end = self._range(one)
        data = one.files[name]
        return (self._change(one, copy, name, data[:end] + data[begin:], inside=False),)

    def _range(self, one: Original) -> tuple[str, int, int]:
        name = self._source.choice(list(one.files))
        size = len(one.files[name])
        begin = self._source.randrange(size)
        return name, begin, min(size, begin + self._source.randrange(1, LONGEST))

    def _cut(self, one: Original, copy: Path) -> tuple[Place, ...]:
        name = self._source.choice(list(one.files))
        data = one.files[name]
        return (self._change(one, copy, name, data[: self._source.randrange(len(data))], inside=False),)

    def _cut_at_record(self, one: Original, copy: Path) -> tuple[Place, ...]:
        name = self._source.choice(list(one.records))
        at = self._source.choice(one.records[name])
        return (self._change(one, copy, name, one.files[name][:at], inside=False),)

    def _append(self, one: Original, copy: Path) -> tuple[Place, ...]:
        name = self._source.choice(list(one.files))
        more = self._source.randbytes(self._source.randrange(1, LONGEST))
        if self._source.random() < 0.5:
            begin = self._source.randrange(len(one.files[name]))
            more = one.files[name][begin : begin + LONGEST]
        return (self._change(one, copy, name, one.files[name] + more, inside=False),)

    # --- records

    def _record(self, one: Original) -> tuple[str, int, int, int]:
        """Draw a record: file, number, where it begins and ends."""
        name = self._source.choice(list(one.records))
        begins = one.records[name]
        number = self._source.randrange(len(begins) - 1)
        return name, number, begins[number], begins[number + 1]

    def _swap_records(self, one: Original, copy: Path) -> tuple[Place, ...]:
        name, number, begin, end = self._record(one)
        begins = one.records[name]
        other = self._source.randrange(number, len(begins) - 1)
        if other == number:
            raise Nothing
        data, far, last = one.files[name], begins[other], begins[other + 1]
        swapped = data[:begin] + data[far:last] + data[end:far] + data[begin:end] + data[last:]
        return (self._change(one, copy, name, swapped, inside=False),)

    def _remove_record(self, one: Original, copy: Path) -> tuple[Place, ...]:
        name, _, begin, end = self._record(one)
        data = one.files[name]
        return (self._change(one, copy, name, data[:begin] + data[end:], inside=False),)

    def _repeat_record(self, one: Original, copy: Path) -> tuple[Place, ...]:
        name, _, begin, end = self._record(one)
        data = one.files[name]
        return (self._change(one, copy, name, data[:end] + data[begin:], inside=False),)

    def _splice_record(self, one: Original, copy: Path) -> tuple[Place, ...]:
        """Put a record of another recording in place of one here, or before it."""
        name, _, begin, end = self._record(one)
        other = self._other(one)
        theirs, _, from_, to = self._record(other)
        data = one.files[name]
        rest = data[end:] if self._source.random() < 0.5 else data[begin:]
        return (
            self._change(one, copy, name, data[:begin] + other.files[theirs][from_:to] + rest, inside=False),
        )

    def _splice_end(self, one: Original, copy: Path) -> tuple[Place, ...]:
        name, _, begin, _ = self._record(one)
        other = self._other(one)
        theirs, _, from_, _ = self._record(other)
        spliced = one.files[name][:begin] + other.files[theirs][from_:]
        return (self._change(one, copy, name, spliced, inside=False),)

    # --- files

    def _other(self, one: Original) -> Original:
        return self._source.choice([other for other in self._originals if other is not one and other.ended])

    def _remove_file(self, one: Original, copy: Path) -> tuple[Place, ...]:
        name = self._source.choice(one.removable)
        (copy / name).unlink()
        return (Place(name),)

    def _copy_file(self, one: Original, copy: Path) -> tuple[Place, ...]:
        name = self._source.choice(list(one.files))
        new = self._new_name(one, name)
        put(copy, new, one.files[name])
        return (Place(new),)

    def _rename(self, one: Original, copy: Path) -> tuple[Place, ...]:
        name = self._source.choice(list(one.files))
        new = self._new_name(one, name)
        (copy / name).rename(copy / new)
        return Place(name), Place(new)

    def _new_name(self, one: Original, name: str) -> str:
        """Draw a name of the same sort that no file has."""
        folder, _, plain = name.rpartition("/")
        stem, _, rest = plain.partition(".")
        if folder == "segments":
            new = f"p{self._source.randrange(1, 4):04d}-{self._source.randrange(12):06d}.seg"
        elif folder == "statements" and _page(name):
            new = f"{self._source.randrange(1, 12):06d}.json"
        elif rest.endswith("sealed") and rest != "sealed":
            parts = rest.split(".")
            parts[-2] = self._source.randbytes(16).hex()
            new = ".".join([stem, *parts])
        else:
            new = f"{stem}-{self._source.randrange(10)}.{rest}"
        new = f"{folder}/{new}" if folder else new
        if new in one.files:
            raise Nothing
        return new

    def _swap_files(self, one: Original, copy: Path) -> tuple[Place, ...]:
        first, second = self._source.sample(list(one.files), 2)
        if _page(first) != _page(second):
            raise Nothing
        places = (
            self._change(one, copy, first, one.files[second], inside=False),
            self._change(one, copy, second, one.files[first], inside=False),
        )
        return places

    def _foreign_page(self, one: Original, copy: Path) -> tuple[Place, ...]:
        return (self._foreign(one, copy, [name for name in one.files if _page(name)]),)

    def _foreign_sidecar(self, one: Original, copy: Path) -> tuple[Place, ...]:
        return (self._foreign(one, copy, ["keys.json"]),)

    def _foreign_file(self, one: Original, copy: Path) -> tuple[Place, ...]:
        return (self._foreign(one, copy, list(one.records)),)

    def _foreign(self, one: Original, copy: Path, names: Sequence[str]) -> Place:
        """Put another recording's file of the same sort in the place of one."""
        name, other = self._source.choice(names), self._other(one)
        theirs = [their for their in other.files if _sort(their) == _sort(name)]
        if not theirs:
            raise Nothing
        return self._change(one, copy, name, other.files[self._source.choice(theirs)], inside=False)


def _page(name: str) -> bool:
    return name.endswith(".json")


def _sort(name: str) -> str:
    """Return what sort of file a name is of: its folder and what follows the numbers and ids."""
    folder, _, plain = name.rpartition("/")
    return f"{folder}/{plain.rpartition('.')[2]}" if folder else plain
