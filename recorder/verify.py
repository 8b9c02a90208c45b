"""Verify a recording: with no key everything signed, chained and digested; with the data key every chunk too.

Works on finished recordings and on those still running or left by a crash (then there is no manifest, and
what no checkpoint covers is ``unproven``). Writes nothing. Damage never raises: it is in the report, placed
as narrowly as is known.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from recorder.canonical import CanonicalError
from recorder.certificates import ChainError, Trust
from recorder.destruction import Destroyed, destroyed_by
from recorder.gm import selftest
from recorder.gm.sm3 import named
from recorder.journal.reader import segment_place
from recorder.keys import SIDECAR, SIDECAR_TYPE
from recorder.manifest import MANIFEST, SEALED_PART, Manifest, parse_manifest
from recorder.placing import CheckedFile, behind_named_head, bound_times, check_file, meets
from recorder.proven import recovered_tail, unproven_tail
from recorder.report import Finding, Kind, Report, Verdict
from recorder.sealed import DataKey, FileScan, FileSummary, Header
from recorder.signed import SignedError, SignedPage, digest_name, open_page, read_page
from recorder.signers import Signers
from recorder.statements import (
    STATEMENTS,
    Statement,
    StatementError,
    is_first_of,
    list_statements,
    parse_statement,
)
from recorder.storage import SegmentName, files_directory, list_segments, segments_directory
from recorder.tokens import TokenState, check_tokens

__all__ = ["Finding", "Kind", "Report", "Verdict", "verify"]


def verify(
    path: Path,
    *,
    data_key: DataKey | None = None,
    trusted: Trust | Collection[str] | None = None,
    time_authorities: Sequence[bytes] | None = None,
    now: datetime | None = None,
) -> Report:
    """Verify the recording in the directory ``path``.

    ``trusted`` are authorities and signers to accept (or fingerprints ``sm3:…`` of these alone); without them
    the certificate of the manifest (or of the key sidecar while there is none) is taken, and the report says
    that nobody vouched for it. ``time_authorities`` are DER certificates that time-stamps' chains may lead
    to; ``now`` is the time by which these have lapsed or not. Raise FileNotFoundError if there is no such
    directory, NotADirectoryError for a file.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is no recording's directory")
    selftest.require()
    verification = _Verification(path, data_key, trusted)
    verification.run(time_authorities, now or datetime.now(UTC))
    return verification.report


_HOLES = 1000
"""Of missing numbers this many are named: a file called 999999999.json must not keep us busy for days."""
_RECORDING_ID = re.compile(r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}$")


class _Verification:
    def __init__(self, path: Path, data_key: DataKey | None, trusted: Trust | Collection[str] | None) -> None:
        self._path = path
        self._data_key = data_key
        self.report = self._report = Report(
            str(path), opened=data_key is not None, trusted=trusted is not None
        )
        self._signers = Signers(trusted)
        self._stated: list[Statement] = []
        self._key_id = ""
        self._seen: set[Path] = set()
        self._owner: dict[str, str] = {}
        """File id → name of the first file that has it."""
        self._destroyed = Destroyed()
        self._gone: dict[tuple[int, str], int] = {}

    def run(self, time_authorities: Sequence[bytes] | None, now: datetime) -> None:
        """Check page by page, then file by file, then what others say of them."""
        sidecar = self._sidecar()
        manifest = self._manifest()
        self._signers.learn(manifest.page.member("provider", "chain") if manifest else None)
        self._signers.learn(sidecar.fields.get("chain") if sidecar else None)
        self._accept_signers([manifest.page if manifest else None, sidecar])
        if manifest is not None:
            self._report.recording = manifest.recording
            self._report.manifest = True
            self._report.assurance = str(manifest.page.member("provider", "assurance"))
            self._check_sidecar_fits(sidecar, manifest)
        elif sidecar is not None:
            self._report.recording = str(sidecar.fields.get("recording"))
        self._check_directory(sidecar)
        self._key_id = manifest.key_id if manifest else str(sidecar.fields.get("key_id")) if sidecar else ""
        statements = self._statements(manifest)
        self._destroyed = destroyed_by(statements)
        if manifest is not None:
            self._signed_segments(manifest)
            self._expect(manifest.sealed, self._path, "")
        else:
            self._unsigned_segments()
        self._statement_files(statements)
        self._say_destroyed()
        self._leftovers()
        self._report.signers = {print_: cert.subject for print_, cert in self._signers.accepted.items()}
        self._attested(manifest, time_authorities, now)

    def _attested(
        self, manifest: Manifest | None, authorities: Sequence[bytes] | None, now: datetime
    ) -> None:
        """Say what certificates' status and time-stamps are, from the pages already read."""
        for name, detail in self._signers.revoked():
            self._add(Kind.OTHER_SIGNER, name, f"signed when {detail}")
        self._report.certificates = [status.to_json() for status in self._signers.statuses()]
        for token in check_tokens(manifest, self._stated, authorities, now) if manifest else []:
            self._report.timestamps.append(token.to_json())
            if token.state == TokenState.BROKEN:
                size = (self._path / token.file).stat().st_size
                self._add(Kind.CHANGED, token.file, f"its time-stamp does not hold: {token.detail}", 0, size)

    def _add(
        self, kind: Kind, file: str, detail: str, begin: int | None = None, end: int | None = None
    ) -> None:
        self._report.findings.append(Finding(kind, file, detail, begin, end))

    # --- pages

    def _sidecar(self) -> SignedPage | None:
        path = self._path / SIDECAR
        self._seen.add(path)
        if not path.exists():
            self._add(Kind.REMOVED, SIDECAR, "the wrapped data key is missing (erased, or removed)")
            return None
        try:
            return open_page(read_page(path), page_type=SIDECAR_TYPE)
        except SignedError as error:
            self._add(Kind.CHANGED, SIDECAR, str(error), 0, path.stat().st_size)
            return None

    def _manifest(self) -> Manifest | None:
        path = self._path / MANIFEST
        self._seen.add(path)
        if not path.exists():
            if list_statements(self._path) or (self._path / SEALED_PART).exists():
                self._add(Kind.REMOVED, MANIFEST, "missing, but statements or its sealed part are there")
            else:
                self._add(Kind.UNPROVEN, MANIFEST, "none yet: running, or left by a crash (recorder recover)")
            return None
        try:
            return parse_manifest(read_page(path))
        except (SignedError, CanonicalError) as error:
            self._add(Kind.CHANGED, MANIFEST, str(error), 0, path.stat().st_size)
            return None

    def _accept_signers(self, pages: Iterable[SignedPage | None]) -> None:
        """Take the trusted signers, or the first page's where nobody named any; report pages by others."""
        for page, name in zip(pages, (MANIFEST, SIDECAR), strict=True):
            if page is not None:
                # After a rotation the old signing key vouches in the sidecar for the one that signed it.
                self._signers.learn_succession(page)
                self._signer_of(page, name)

    def _signer_of(self, page: SignedPage, name: str) -> bool:
        try:
            self._signers.check(page, name)
        except ChainError as error:
            self._add(Kind.OTHER_SIGNER, name, f"its signer: {error}")
            return False
        return True

    def _signature_good(self, message: bytes, signature: bytes) -> bool | None:
        accepted = self._signers.accepted.values()
        if not accepted:
            return None
        return any(cert.public_key.verify(message, signature) for cert in accepted)

    def _check_sidecar_fits(self, sidecar: SignedPage | None, manifest: Manifest) -> None:
        if sidecar is None:
            return
        size = (self._path / SIDECAR).stat().st_size
        for member, expected in (("recording", manifest.recording), ("key_id", manifest.key_id)):
            if sidecar.fields.get(member) != expected:
                found = sidecar.fields.get(member)
                self._add(Kind.CHANGED, SIDECAR, f"its {member} is {found!r}, not {expected!r}", 0, size)

    def _check_directory(self, sidecar: SignedPage | None) -> None:
        """A directory that bears a recording's id must hold that recording, not another, whole one."""
        name, found = self._path.resolve().name, self._report.recording
        if not _RECORDING_ID.match(name) or found in ("", name):
            return
        if self._report.manifest and sidecar is not None and sidecar.fields.get("recording") == name:
            size = (self._path / MANIFEST).stat().st_size
            self._add(Kind.REORDERED, MANIFEST, f"is that of recording {found}", 0, size)
        else:
            detail = f"holds recording {found}, not the one it is named after"
            self._add(Kind.REORDERED, name, detail)

    def _statements(self, manifest: Manifest | None) -> list[Statement]:
        statements: list[Statement] = []
        # Of a broken manifest the first statement names the digest it had: nothing to compare with.
        previous = named(manifest.page.digest) if manifest is not None else None
        expected = 1
        for number, path in list_statements(self._path):
            name = f"{STATEMENTS}/{path.name}"
            self._seen.add(path)
            for missing in range(expected, min(number, expected + _HOLES)):
                self._add(Kind.REMOVED, f"{STATEMENTS}/{missing:06d}.json", f"statement {missing} is missing")
                previous = None
            data = b""
            try:
                data = read_page(path)
                statement = parse_statement(data, number=number, previous=previous)
            except (SignedError, StatementError) as error:
                kind = Kind.REORDERED if "is number" in str(error) else Kind.CHANGED
                self._add(kind, name, str(error), 0, len(data))
                if number == 1 and manifest is not None and is_first_of(data, manifest):
                    size = (self._path / MANIFEST).stat().st_size
                    self._add(Kind.CHANGED, MANIFEST, "is not the manifest that statement 1 names", 0, size)
                # The next one names the digest of the page as it was: its link cannot be checked by this one.
                previous, expected = None, number + 1
                continue
            self._signers.learn_statement(statement)
            self._stated.append(statement)
            if manifest is not None and statement.page.fields.get("recording") != manifest.recording:
                self._add(Kind.CHANGED, name, "is a statement about another recording", 0, len(data))
            previous, expected = digest_name(data), number + 1
        for statement in self._stated:
            if self._signer_of(statement.page, f"{STATEMENTS}/{statement.number:06d}.json"):
                statements.append(statement)
        self._report.statements = len(statements)
        return statements

    # --- sealed files

    def _signed_segments(self, manifest: Manifest) -> None:
        folder = segments_directory(self._path)
        self._signed_damage(manifest)
        self._numbering([SegmentName.parse(summary.name) for summary in manifest.segments])
        by_id = {summary.file_id: summary.name for summary in manifest.segments}
        series: list[tuple[str, CheckedFile | None]] = []
        before: CheckedFile | None = None
        for summary in manifest.segments:
            checked = self._expect(summary, folder, f"{folder.name}/")
            series.append((f"{folder.name}/{summary.name}", checked))
            header = checked.scan.header if checked else None
            if checked and header and header.file_id != summary.file_id and header.file_id in by_id:
                detail = f"holds the bytes of {by_id[header.file_id]}"
                self._report.findings[:] = [f for f in self._report.findings if f.file != checked.name]
                self._add(Kind.REORDERED, checked.name, detail, 0, checked.scan.size)
                checked = None
            elif checked and header and before and not checked.findings:
                self._link(before, checked, header)
            if checked and header and checked is series[0][1] and not checked.findings:
                self._begins(checked, header)
            if checked and header:
                self._check_place(checked, header)
            before = checked if checked and not checked.findings else None
        for part in manifest.parts:
            lying = [
                one
                for _, one in series
                if one and (place := SegmentName.parse(one.path.name)) and place.part == part["part"]
            ]
            self._report.findings += recovered_tail(part, lying, self._report)
        bound_times(self._report.findings, series)

    def _signed_damage(self, manifest: Manifest) -> None:
        """Say what was damaged already when the manifest was signed: its digests are of the damaged bytes."""
        for part in manifest.parts:
            listed = part.get("damage")
            for text in listed if isinstance(listed, list) else []:
                name, _, detail = str(text).partition(": ")
                self._add(Kind.CHANGED, f"segments/{name}", f"was so when it was signed: {detail}")

    def _numbering(self, names: Iterable[SegmentName | None]) -> None:
        """Parts count from 1 and each one's segments from 0. Numbers left out are of what was removed.

        Recovery signs what it finds, so this holds for signed segments too. A number whose file lies there
        is not left out: its writer died in the first write.
        """
        indexes: dict[int, set[int]] = {}
        for name in names:
            if name is not None:
                indexes.setdefault(name.part, set()).add(name.index)
        for part in range(1, min(max(indexes, default=0), len(indexes) + _HOLES) + 1):
            present = indexes.get(part, {0})
            for index in range(min(max(present), len(present) + _HOLES) + 1):
                name = SegmentName(part, index)
                path = segments_directory(self._path) / str(name)
                if index not in indexes.get(part, ()) and not path.exists():
                    what = f"segment {index} of part {part}" if part in indexes else f"all of part {part}"
                    self._add(Kind.REMOVED, f"{path.parent.name}/{name}", f"{what} is missing")

    def _begins(self, checked: CheckedFile, header: Header) -> None:
        if header.previous is not None:
            detail = "names a predecessor, but is the first segment there is"
            self._add(Kind.REMOVED, checked.name, detail, 0, checked.scan.size)

    def _check_place(self, checked: CheckedFile, header: Header) -> None:
        """A file's name is in no digest before a manifest names it; the header says where it belongs."""
        place = segment_place(header)
        if not checked.findings and str(place) != checked.path.name:
            detail = f"holds {place or 'what is no segment'}"
            self._add(Kind.REORDERED, checked.name, detail, 0, checked.scan.size)

    def _unsigned_segments(self) -> None:
        """Check what lies there by itself: structure, chain from file to file, checkpoints, numbering."""
        series: list[tuple[str, CheckedFile | None]] = []
        parts: dict[int, list[CheckedFile]] = {}
        last: dict[int, int] = {}
        before: CheckedFile | None = None
        listed = list_segments(self._path)
        self._numbering([name for name, _ in listed])
        for name, path in listed:
            after = last.get(name.part, -1) + 1
            for missing in range(after, min(name.index, after + _HOLES)):
                series.append((f"{path.parent.name}/{SegmentName(name.part, missing)}", None))
                before = None
            checked = self._check(path, f"{path.parent.name}/{path.name}", None)
            series.append((checked.name, checked))
            header = checked.scan.header
            if header is not None and checked is series[0][1]:
                self._begins(checked, header)
            if header is not None:
                self._check_place(checked, header)
            if header is not None and before is not None:
                self._link(before, checked, header)
            before = None if checked.findings else checked
            last[name.part] = name.index
            parts.setdefault(name.part, []).append(checked)
        self._check_key_ids([checked for segments in parts.values() for checked in segments])
        for segments in parts.values():
            self._report.findings += unproven_tail(segments)
        bound_times(self._report.findings, series)

    def _check_key_ids(self, segments: list[CheckedFile]) -> None:
        """Name the segments of another key than keys.json; if all are of one other, name keys.json."""
        named = [one for one in segments if one.scan.header is not None]
        other = [one for one in named if one.scan.header and one.scan.header.key_id != self._key_id]
        if not self._key_id or not other:
            return
        keys = {one.scan.header.key_id for one in named if one.scan.header}
        if len(keys) == 1:
            size = (self._path / SIDECAR).stat().st_size
            self._add(Kind.CHANGED, SIDECAR, "is of another key than all segments", 0, size)
            return
        for one in other:
            self._add(Kind.CHANGED, one.name, "belongs to another recording's key", 0, one.scan.size)

    def _link(self, before: CheckedFile, after: CheckedFile, header: Header) -> None:
        """Two segments must meet. If not, the end of the first was changed, or the second belongs elsewhere.

        Where a checkpoint signs the second's header and nothing else speaks against it, it is the first.
        """
        if meets(before, header):
            self._report.findings += behind_named_head(before, header, signed=self._report.manifest)
            return
        size = before.scan.size
        told = any(finding.file == after.name for finding in self._report.findings)
        if before.scan.torn_bytes:
            before.add(Kind.CHANGED, "ends otherwise than its successor says", before.scan.good_bytes, size)
        elif after.checkpoints and not told:
            detail = f"is not the file that {after.name} was signed to follow"
            before.add(Kind.CHANGED, detail, before.proven_bytes, size)
        else:
            detail = f"names another predecessor than {before.name}: one of them belongs elsewhere"
            self._add(Kind.REORDERED, after.name, detail, 0, after.scan.size)
            if told:
                return
            before.add(Kind.REORDERED, f"is not what {after.name} names", before.proven_bytes, size)
        self._report.findings.append(before.findings[-1])

    def _statement_files(self, statements: list[Statement]) -> None:
        folder = files_directory(self._path)
        for statement in statements:
            for summary in statement.files:
                self._expect(summary, folder, f"{folder.name}/")
            if statement.sealed is not None:
                self._expect(statement.sealed, self._path / STATEMENTS, f"{STATEMENTS}/")

    def _expect(self, summary: FileSummary, folder: Path, prefix: str) -> CheckedFile | None:
        """Check a file a signed page names."""
        name = f"{prefix}{summary.name}"
        path = folder / summary.name
        tombstone = self._destroyed.files.get(summary.file_id)
        if tombstone is not None and not os.path.lexists(path):
            self._gone[tombstone, prefix] = self._gone.get((tombstone, prefix), 0) + 1
            return None
        if tombstone is not None:
            detail = f"statement {tombstone} destroys it, but it is still here: the removal was interrupted"
            self._add(Kind.LEFTOVER, name, detail)
        if Path(summary.name).name != summary.name or not os.path.isfile(path):
            self._add(Kind.REMOVED, name, f"the signed file (id {summary.file_id}) is not there")
            return None
        if path in self._seen:
            return None
        return self._check(path, name, summary)

    def _check(self, path: Path, name: str, expected: FileSummary | None) -> CheckedFile:
        self._seen.add(path)
        if path.is_file():
            checked = check_file(
                path, name, expected=expected, signature_good=self._signature_good, data_key=self._data_key
            )
        else:  # a directory, a named pipe
            checked = CheckedFile(name, path, FileScan(path))
            checked.findings.append(Finding(Kind.ADDED, name, "is no file"))
        if checked.scan.header is not None:
            self._owner.setdefault(checked.scan.header.file_id, name)
        report = self._report
        report.files += 1
        report.records += len(checked.scan.records)
        report.bytes += checked.scan.size
        report.checkpoints += len(checked.checkpoints)
        report.findings += checked.findings
        return checked

    def _say_destroyed(self) -> None:
        """Say what tombstones account for; a missing sidecar is no finding any more if one does."""
        for (number, prefix), count in self._gone.items():
            detail = (
                f"{count} files destroyed by rule; statement {number} is the tombstone with their digests"
            )
            self._add(Kind.DESTROYED, prefix, detail)
        if self._destroyed.key is None:
            return
        if (self._path / SIDECAR).exists():
            detail = f"statement {self._destroyed.key} destroys it, but it is still here"
            self._add(Kind.LEFTOVER, SIDECAR, detail)
            return
        findings = self._report.findings
        findings[:] = [one for one in findings if (one.kind, one.file) != (Kind.REMOVED, SIDECAR)]
        self._report.destroyed = True
        self._add(
            Kind.DESTROYED, SIDECAR, f"erased by rule; statement {self._destroyed.key} is the tombstone"
        )

    def _leftovers(self) -> None:
        """Name what no signed page speaks of: harmless remains of a crash, or something added."""
        pages_hold = not any(
            finding.kind in (Kind.CHANGED, Kind.REMOVED, Kind.OTHER_SIGNER) and finding.file.endswith(".json")
            for finding in self._report.findings
        )
        for path in sorted(self._path.rglob("*")):
            if path in self._seen or path.is_dir():
                continue
            name, status = str(path.relative_to(self._path)), path.lstat()
            if not stat.S_ISREG(status.st_mode):  # a link (to nothing, or in a circle), a pipe, a socket
                self._add(Kind.ADDED, name, "is no regular file")
            elif path.name.startswith(".") and path.suffix != ".seg":
                self._add(Kind.LEFTOVER, name, "a temporary file that a crash left", 0, status.st_size)
            else:
                self._unlisted(path, name, status.st_size, pages_hold=pages_hold)

    def _unlisted(self, path: Path, name: str, size: int, *, pages_hold: bool) -> None:
        if path.suffix not in (".sealed", ".seg"):
            self._add(Kind.ADDED, name, "does not belong to a recording", 0, size)
            return
        checked = self._check(path, name, None)
        if checked.findings or not pages_hold:
            return  # a page that does not hold may be the one that names this file
        header = checked.scan.header
        if path.suffix == ".seg" and self._report.manifest and checked.scan.chunks:
            self._add(Kind.ADDED, name, "a segment the manifest does not name", 0, size)
        elif header is not None and self._key_id and header.key_id != self._key_id:
            self._add(Kind.ADDED, name, "belongs to another recording's key", 0, size)
        elif header is not None and (owner := self._owner[header.file_id]) != name:
            self._add(Kind.ADDED, name, f"a copy of {owner}", 0, size)
        elif header is not None and path.name == SEALED_PART and not self._report.manifest:
            self._add(
                Kind.LEFTOVER, name, "sealed part of a manifest that is not there or not readable", 0, size
            )
        else:
            state = "finished" if checked.scan.finished else "unfinished"
            detail = f"{state} sealed file no signed page speaks of (an attempt that died)"
            self._add(Kind.LEFTOVER, name, detail, 0, size)
