"""Check one sealed file against what was signed about it, and place what does not hold.

Without any key: every record ends in the SM3 of the file so far, so the first record that was touched is
known; if someone made these digests anew, the signed checkpoints (every 2 s in journals) bound the change,
and in other files the whole file is named. With the key every chunk is opened as well, which finds each
changed one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from recorder.checkpoint import Checkpoint
from recorder.clock import rfc3339
from recorder.gm.sm3 import Sm3, named
from recorder.report import Finding, Kind
from recorder.sealed import (
    DataKey,
    FileScan,
    FileSummary,
    Header,
    RecordInfo,
    RecordType,
    SealedError,
    SealedReader,
    scan,
)

_KINDS = {
    "unsupported_version": Kind.UNSUPPORTED,
    "unsupported_suite": Kind.UNSUPPORTED,
    "wrong_key": Kind.WRONG_KEY,
    "incomplete": Kind.TRUNCATED,
}


@dataclass
class CheckedFile:
    """One sealed file as found, its signed checkpoints, and what does not hold."""

    name: str
    path: Path
    scan: FileScan
    checkpoints: list[tuple[int, int]] = field(default_factory=list)
    """(file offset, UTC ns) of those that hold, in order."""
    findings: list[Finding] = field(default_factory=list)

    def time_of(self, begin: int, end: int) -> str:
        """Return ``from/to`` of the checkpoints around a byte range; empty where there is none."""
        offsets = [offset for offset, _ in self.checkpoints]
        before = bisect_right(offsets, begin) - 1
        after = bisect_right(offsets, max(begin, end - 1))
        first = rfc3339(self.checkpoints[before][1]) if before >= 0 else ""
        last = rfc3339(self.checkpoints[after][1]) if after < len(offsets) else ""
        return f"{first}/{last}" if first or last else ""

    def add(self, kind: Kind, detail: str, begin: int, end: int, record: int | None = None) -> None:
        """Add a finding unless one of this file's names these bytes already."""
        for found in self.findings:
            if (
                found.begin is not None
                and found.end is not None
                and found.begin <= begin
                and end <= found.end
            ):
                return
        self.findings.append(Finding(kind, self.name, detail, begin, end, record, self.time_of(begin, end)))

    @property
    def proven_bytes(self) -> int:
        """Bytes of the file that a signed checkpoint covers."""
        return self.checkpoints[-1][0] if self.checkpoints else 0

    @property
    def proven_until(self) -> str:
        """UTC of the last signed checkpoint; empty if there is none."""
        return rfc3339(self.checkpoints[-1][1]) if self.checkpoints else ""


SignatureCheck = Callable[[bytes, bytes], bool | None]
"""(message, signature) -> whether an accepted signer made it; None if no signer is known."""


def check_file(
    path: Path,
    name: str,
    *,
    expected: FileSummary | None,
    signature_good: SignatureCheck,
    data_key: DataKey | None,
) -> CheckedFile:
    """Check one file that is there. ``expected`` is what a signed page says of it, None where none does."""
    checked = CheckedFile(name, path, FileScan(path))
    checkpoints = _Checkpoints()
    checked.scan = scan(path, on_record=checkpoints.look)
    checked.checkpoints = checkpoints.that_hold(signature_good)
    if expected is not None:
        _identify(checked, expected)
    _place_structure(checked, expected)
    if checkpoints.broken:
        # The change lies after the last checkpoint that holds, up to and with this one.
        record, problem = min(checkpoints.broken, key=lambda one: one[0].offset)
        checked.add(Kind.CHANGED, problem, checked_before(checked, record.offset), record.end, record.number)
    if expected is not None:
        _compare(checked, expected)
    if data_key is not None and checked.scan.header is not None:
        _open(checked, expected, data_key)
    return checked


def checked_before(checked: CheckedFile, offset: int) -> int:
    """Return the offset of the last good checkpoint before ``offset``, 0 if there is none."""
    return max((at for at, _ in checked.checkpoints if at < offset), default=0)


class _Checkpoints:
    """The checkpoints a scan comes by, and which of them hold.

    A signature is over all bytes before it, earlier checkpoints and their times among them: of those that fit
    their place, the last good signature vouches for all. It alone is checked; one check takes as long as
    hashing 200 KB.
    """

    def __init__(self) -> None:
        self._fitting: list[tuple[RecordInfo, Checkpoint]] = []
        self.broken: list[tuple[RecordInfo, str]] = []

    def look(self, record: RecordInfo) -> None:
        """Take in a record as the scan passes it."""
        if record.type != RecordType.CHECKPOINT:
            return
        try:
            checkpoint = Checkpoint.from_bytes(record.payload)
        except ValueError as error:
            self.broken.append((record, f"checkpoint: {error}"))
            return
        if checkpoint.proves(record.head_before):
            self._fitting.append((record, checkpoint))
        else:
            self.broken.append((record, "the signed checkpoint is of other bytes than those before it"))

    def that_hold(self, signature_good: SignatureCheck) -> list[tuple[int, int]]:
        """Return (file offset, UTC ns) of each that holds; none where no signer is known."""
        while self._fitting:
            record, last = self._fitting[-1]
            good = signature_good(last.signed_message(), last.signature)
            if good is None:
                return []
            if good:
                break
            self.broken.append((record, "the checkpoint's signature is not of the recording's signer"))
            self._fitting.pop()
        held: list[tuple[int, int]] = []
        for record, checkpoint in self._fitting:
            if held and checkpoint.utc_ns < held[-1][1] - _HOUR_NS:
                self.broken.append((record, "the checkpoint is an hour older than the one before it"))
            else:
                held.append((record.offset, checkpoint.utc_ns))
        return held


_HOUR_NS = 3600 * 10**9


def _identify(checked: CheckedFile, expected: FileSummary) -> None:
    """Say first that the whole file is another's; a header that was changed does not hold as a record."""
    found = checked.scan
    if found.header is not None and found.header_holds and found.header.file_id != expected.file_id:
        detail = f"another sealed file (id {found.header.file_id}) lies in its place"
        checked.add(Kind.CHANGED, detail, 0, found.size)


def _place_structure(checked: CheckedFile, expected: FileSummary | None) -> None:
    found = checked.scan
    problem = found.problem
    if problem is not None:
        kind = _KINDS.get(problem.code, Kind.CHANGED)
        if "missing before it" in problem.detail:
            kind = Kind.REMOVED
        elif "repeated or moved" in problem.detail:
            kind = Kind.REORDERED
        elif problem.code == "incomplete" and expected is not None and found.size >= expected.bytes:
            kind = Kind.CHANGED  # nothing is missing: a length was changed
        elif problem.code == "incomplete" and expected is None:
            kind = Kind.LEFTOVER
        end = min(max(problem.end, problem.offset + 1), max(found.size, problem.offset + 1))
        if kind == Kind.TRUNCATED and expected is not None:
            end = expected.bytes
        checked.add(kind, problem.detail, problem.offset, end, problem.record)
    elif expected is not None and expected.finished and not found.finished:
        if found.size < expected.bytes:
            checked.add(
                Kind.TRUNCATED,
                f"{expected.bytes - found.size} bytes at the end are cut off",
                found.good_bytes,
                expected.bytes,
                len(found.records),
            )
        else:
            checked.add(
                Kind.CHANGED,
                "a record's length was changed, or its end is missing",
                found.good_bytes,
                found.size,
                len(found.records),
            )


def _compare(checked: CheckedFile, expected: FileSummary) -> None:
    """Name what differs from the signed digests, as narrowly as it can be known."""
    found = checked.scan
    digest = named(found.digest)
    if digest == expected.sm3 and found.size == expected.bytes:
        return
    if checked.findings:
        return
    if found.size < expected.bytes:
        checked.add(
            Kind.TRUNCATED,
            f"{expected.bytes - found.size} bytes at the end are cut off",
            # Of a torn record nothing says which of its bytes are missing.
            found.size if expected.finished else found.good_bytes,
            expected.bytes,
            len(found.records),
        )
    elif found.size > expected.bytes and not expected.finished:
        checked.add(Kind.ADDED, "bytes were added behind the signed end", expected.bytes, found.size)
    elif found.head and named(found.head) == expected.head:
        # Every whole record is as signed: the change is in the torn record behind them.
        checked.add(Kind.CHANGED, "the torn last record was changed", found.good_bytes, found.size)
    else:
        begin = checked.proven_bytes
        detail = "the file is another than the signed one, with its chain made anew"
        checked.add(Kind.CHANGED, detail, begin, max(found.size, begin + 1))


def _open(checked: CheckedFile, expected: FileSummary | None, data_key: DataKey) -> None:
    """Open every chunk; what fails to is placed by its own record."""
    plain = Sm3()
    try:
        with SealedReader(checked.path, data_key) as reader:
            for chunk in reader.chunks():
                plain.update(chunk)
    except SealedError as error:
        if error.code == "incomplete":
            return
        kind = _KINDS.get(error.code, Kind.CHANGED)
        end = max(error.end, error.offset + 1)
        if not checked.findings or kind == Kind.WRONG_KEY:
            checked.add(kind, error.detail, error.offset, end, error.record)
        return
    if checked.findings or expected is None or not expected.plain_sm3:
        return
    if named(plain.digest()) != expected.plain_sm3:
        checked.add(Kind.CHANGED, "the plain text is not the signed one", 0, checked.scan.size)


def meets(before: CheckedFile, header: Header) -> bool:
    """Tell whether a segment follows another: it names its head.

    Of one left unfinished, the head after any whole record: the disk may have failed between two of them.
    """
    if header.previous is None or not before.scan.records:
        return True  # the first segment of a part names none
    heads = {before.scan.head}
    if not before.scan.finished:
        heads |= {record.head_before for record in before.scan.records}
    return header.previous in heads


def behind_named_head(before: CheckedFile, header: Header, *, signed: bool) -> list[Finding]:
    """Say what lies behind the head that the next segment names, of two that meet.

    A writer names the head after the last chunk that it knows to be written and begins another file: behind
    it may be a torn record, or the index whose end could not be written, and never a whole chunk. ``signed``:
    a manifest gives the digest of all of it, so that the rest is proven.
    """
    records = before.scan.records
    place = next((at for at, one in enumerate(records) if one.head_before == header.previous), None)
    if header.previous in (None, before.scan.head) or place is None:
        return []
    chunks = any(one.type == RecordType.CHUNK for one in records[place:])
    if signed and not chunks:
        return []
    count = len(before.findings)
    kind, detail = Kind.UNPROVEN, "lies behind the head that the next segment names"
    if chunks:
        kind, detail = Kind.ADDED, f"{detail}: a chunk that its writer did not write before that segment"
    before.add(kind, detail, records[place].offset, before.scan.size, records[place].number)
    return before.findings[count:]


def bound_times(findings: list[Finding], series: list[tuple[str, CheckedFile | None]]) -> None:
    """Close the open sides of findings' times by the checkpoints of the segments around."""
    place = {name: number for number, (name, _) in enumerate(series)}
    times = [[utc for _, utc in checked.checkpoints] if checked else [] for _, checked in series]
    for number, finding in enumerate(findings):
        at = place.get(finding.file)
        if at is None or finding.kind == Kind.UNPROVEN:
            continue
        first, _, last = finding.time.partition("/")
        earlier = next((utc[-1] for utc in reversed(times[:at]) if utc), None)
        later = next((utc[0] for utc in times[at + 1 :] if utc), None)
        first = first or (rfc3339(earlier) if earlier is not None else "")
        last = last or (rfc3339(later) if later is not None else "")
        time = f"{first}/{last}" if first or last else ""
        findings[number] = replace(finding, time=time)
