"""Read and check an audit log: chain, signatures, the links from file to file, numbers; with keys each entry.

No key is needed: everything that ties the log together, and recordings to it, is in its public frames.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from recorder.audit import anchors
from recorder.audit.anchors import Anchored, Pending
from recorder.audit.format import LogFile, entries_in, frame_fields, integer, list_files, unsigned_records
from recorder.audit.report import AuditReport
from recorder.canonical import JSON, CanonicalError
from recorder.clock import rfc3339
from recorder.gm import selftest
from recorder.gm.sm2 import Sm2Error
from recorder.gm.sm3 import named, parse_named
from recorder.gm.x509 import Certificate
from recorder.keys import SIDECAR, SIDECAR_TYPE
from recorder.keys.succession import successors
from recorder.placing import CheckedFile, check_file
from recorder.report import Finding, Kind
from recorder.sealed import DataKey, RecordInfo, RecordType, SealedError, SealedReader
from recorder.sealed.source import RecordSource
from recorder.signed import SignedError, SignedPage, open_page, read_page
from recorder.tokens import check_digest

KeyOf = Callable[[LogFile], DataKey]
_HOLES = 1000


def read_log(
    root: Path,
    *,
    key_of: KeyOf | None = None,
    trusted: Collection[str] | None = None,
    since_ns: int | None = None,
    kept: Iterable[bytes] = (),
    time_authorities: Sequence[bytes] | None = None,
) -> AuditReport:
    """Check the log in ``root`` ({data}/audit) and collect what it says of recordings.

    ``key_of`` opens each file's data key. ``trusted`` are certificate fingerprints to accept; without them
    the first file's signer is taken, and certificates over the same key. ``since_ns`` (UTC) leaves out files
    of months that ended two days before it. ``kept`` are anchor pages kept elsewhere, which the log must
    hold. ``time_authorities`` are DER certificates that time-stamps must lead to; without them none counts as
    verified. Damage never raises: it is in the report. Raise NotADirectoryError if there is no directory.
    """
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is no directory")
    selftest.require()
    reading = _Reading(root, key_of, frozenset(trusted) if trusted is not None else None, time_authorities)
    files = list_files(root)
    for node in sorted({file.node for file in files}):
        reading.node([file for file in files if file.node == node], since_ns)
    reading.compare(kept)
    return reading.report


@dataclass
class _Node:
    """Where reading one node's files stands."""

    before: CheckedFile | None = None
    partial: bool = False
    expired: tuple[int, str | None] | None = None
    first: tuple[LogFile, str | None] | None = None
    """The first file that was read, and the head it follows."""
    last_seq: int = 0
    unsigned: dict[int, tuple[LogFile, CheckedFile]] = field(default_factory=dict)
    """Files that end in records no checkpoint covers, until a later file says whose they are."""
    items: dict[tuple[int, str], list[tuple[int, list[anchors.Item]]]] = field(default_factory=dict)
    """By (file, tenant): (record, items)."""
    pages: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    """By tenant: number and digest of its last page."""
    until: str = ""


class _Reading:
    def __init__(
        self,
        root: Path,
        key_of: KeyOf | None,
        trusted: frozenset[str] | None,
        authorities: Sequence[bytes] | None,
    ) -> None:
        self.report = AuditReport(str(root), opened=key_of is not None, trusted=trusted is not None)
        self._root = root
        self._key_of = key_of
        self._trusted = trusted
        self._authorities = authorities
        self._signers: dict[str, Certificate] = {}

    def node(self, files: list[LogFile], since_ns: int | None) -> None:
        """Read one node's files in order."""
        if since_ns is not None:
            files = _since(files, since_ns, self.report)
        state = _Node(partial=self.report.partial)
        expected = files[0].number if files else 0
        for file in files:
            for missing in range(expected, min(file.number, expected + _HOLES)):
                name = f"{file.node}-{missing:06d}"
                self._add(Kind.REMOVED, name, f"file {missing} of node {file.node} is missing")
                state.before = None
            if file.number < expected:
                self._add(Kind.ADDED, file.name, f"file {file.number} is there twice")
                continue
            expected = file.number + 1
            self._file(file, state)
        self._beginning(state)
        self._ending(state)

    def compare(self, kept: Iterable[bytes]) -> None:
        """Look for pages that were kept elsewhere."""
        for data in kept:
            try:
                page = anchors.open_anchor_page(data)
            except SignedError as error:
                self._add(Kind.CHANGED, "kept page", str(error))
                continue
            name = f"page {page.fields['number']} of tenant {page.fields.get('tenant')}"
            if not self._accept(page.certificate):
                self._add(Kind.OTHER_SIGNER, name, f"is signed by {page.certificate.subject}, not accepted")
            elif named(page.digest) not in self.report.pages:
                at, chain = page.fields.get("at"), page.fields["chain"]
                assert isinstance(chain, dict)
                detail = f"of {at} is not in the log: its file {chain['file']} was cut off or removed"
                self._add(Kind.TRUNCATED, name, detail)

    # --- one file

    def _file(self, file: LogFile, state: _Node) -> None:
        report = self.report
        self._begun_by(file)
        sidecar = self._sidecar(file)
        key = self._key_of(file) if self._key_of is not None and sidecar is not None else None
        if not file.path.is_file():
            # An attempt that died before its first byte, or a file removed: its successor tells them apart.
            self._add(Kind.LEFTOVER, file.name, "the file was never begun, or its directory emptied")
            return
        checked = self._check(file, key)
        report.files += 1
        report.records += len(checked.scan.records)
        report.bytes += checked.scan.size
        report.checkpoints += len(checked.checkpoints)
        report.findings += checked.findings
        header = checked.scan.header
        if header is None:
            return
        place = (header.public.get("node"), header.public.get("number"))
        if place != (file.node, file.number):
            self._add(Kind.REORDERED, file.name, f"holds file {place[1]} of node {place[0]}")
        if sidecar is not None and sidecar.fields.get("key_id") != header.key_id:
            self._add(Kind.CHANGED, file.name, "is not sealed with the key of its sidecar")
        previous = named(header.previous) if header.previous is not None else None
        if state.before is not None:
            if header.previous != state.before.scan.head:
                self._unlinked(state.before, file.name)
        elif state.first is None:
            state.first = (file, previous)
        # Anyone can chain a record on: only what a signature covers is believed.
        for record in checked.scan.records:
            if record.offset < checked.proven_bytes:
                self._take(file, checked, record, state)
        if unsigned_records(checked.scan, checked.proven_bytes):
            state.unsigned[file.number] = (file, checked)
        if key is not None:
            self._entries(file, key)
        state.before = checked
        state.until = checked.proven_until or state.until

    def _check(self, file: LogFile, key: DataKey | None) -> CheckedFile:
        """Check a file by the signature of its last checkpoint, which is over all before it.

        Only if that one does not hold is every one checked, to find the place: a day has 43,200 of them.
        """
        seen: list[tuple[bytes, bytes]] = []

        def note(message: bytes, signature: bytes) -> bool | None:
            seen.append((message, signature))
            return True if self._signers else None

        checked = check_file(file.path, file.name, expected=None, signature_good=note, data_key=key)
        if seen and self._signature_good(*seen[-1]) is False:
            good = self._signature_good
            return check_file(file.path, file.name, expected=None, signature_good=good, data_key=key)
        return checked

    def _begun_by(self, file: LogFile) -> None:
        """Accept, or report, the certificate that a file says its checkpoints are signed with."""
        pem = _signer_of(file)
        if pem is None:
            return
        try:
            certificate = Certificate.from_pem(pem)
        except Sm2Error:
            return  # its checkpoints will not hold
        if not self._accept(certificate):
            detail = f"begun by {certificate.subject} ({certificate.fingerprint}), who is not accepted here"
            self._add(Kind.OTHER_SIGNER, file.name, detail)

    def _unlinked(self, before: CheckedFile, name: str) -> None:
        if before.scan.problem is not None:
            return  # the damage that cut it off is named already
        size = before.scan.size
        detail = f"ends otherwise than its successor {name} says: cut off, changed, or files lie between"
        self.report.findings.append(
            Finding(
                Kind.TRUNCATED, before.name, detail, before.scan.good_bytes, size, len(before.scan.records)
            )
        )

    def _sidecar(self, file: LogFile) -> SignedPage | None:
        name = f"{file.name.rpartition('/')[0]}/{SIDECAR}"
        try:
            page = open_page(read_page(file.directory / SIDECAR), page_type=SIDECAR_TYPE)
        except FileNotFoundError:
            if file.path.is_file():
                self._add(Kind.REMOVED, name, "the wrapped data key is missing: its entries are lost")
            return None
        except SignedError as error:
            self._add(Kind.CHANGED, name, str(error))
            return None
        if page.fields.get("recording") != file.series:
            self._add(Kind.REORDERED, name, f"is that of {page.fields.get('recording')}")
        # After a rotation the old signing key vouches in the sidecar for the new one.
        for successor in successors(page.fields, self._signers).values():
            self._signers[successor.fingerprint] = successor
        if not self._accept(page.certificate):
            subject, print_ = page.certificate.subject, page.certificate.fingerprint
            self._add(Kind.OTHER_SIGNER, name, f"signed by {subject} ({print_}), who is not accepted here")
        return page

    def _accept(self, certificate: Certificate) -> bool:
        """Tell whether a signer is accepted: by fingerprint, or by the same key under a new certificate."""
        if certificate.fingerprint in self._signers:
            accepted = True
        elif self._trusted is not None:
            accepted = certificate.fingerprint in self._trusted
        else:
            accepted = not self._signers or any(
                one.public_key.point == certificate.public_key.point for one in self._signers.values()
            )
        if accepted:
            self._signers[certificate.fingerprint] = certificate
            self.report.signers[certificate.fingerprint] = certificate.subject
        return accepted

    def _signature_good(self, message: bytes, signature: bytes) -> bool | None:
        if not self._signers:
            return None
        return any(one.public_key.verify(message, signature) for one in self._signers.values())

    def _entries(self, file: LogFile, key: DataKey) -> None:
        """Open every entry: whole ones, and in order."""
        last = 0
        try:
            with SealedReader(file.path, key) as reader:
                for chunk in reader.chunks():
                    for entry in entries_in(chunk):
                        seq = integer(entry, "seq")
                        if seq <= last:
                            self._add(Kind.REORDERED, file.name, f"entry {seq} comes after entry {last}")
                        last = seq
        except CanonicalError as error:
            self._add(Kind.CHANGED, file.name, f"an entry {error}")
        except SealedError:
            return  # placed by check_file

    # --- frames

    def _take(self, file: LogFile, checked: CheckedFile, record: RecordInfo, state: _Node) -> None:
        try:
            self._frame(file, record, state)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            detail = f"a public frame of type {record.type}: {error!s}"
            if not isinstance(error, ValueError):
                detail = f"a public frame of type {record.type} is not of its form: {error!r}"
            checked.add(Kind.CHANGED, detail, record.offset, record.end, record.number)
            self.report.findings.append(checked.findings[-1])

    def _frame(self, file: LogFile, record: RecordInfo, state: _Node) -> None:
        if record.type == RecordType.MARK:
            self._mark(frame_fields(record.payload), state)
        elif record.type == RecordType.TIMESTAMP:
            frame = frame_fields(record.payload)
            page = str(frame.get("anchor"))
            if page not in self.report.pages:
                raise CanonicalError("a time-stamp over a page that is not before it")
            stamped = check_digest(frame.get("response"), parse_named(page), self._authorities)
            self.report.timestamps.append({"page": page, **stamped})
        elif record.type == RecordType.EXPIRED:
            frame = frame_fields(record.payload)
            head, listed = frame.get("head"), frame.get("files")
            # Without a head none of them held anything: what remains joins on to those before.
            before = state.expired[1] if state.expired else None
            state.expired = (integer(frame, "through"), before if head is None else str(head))
            self.report.expired += len(listed) if isinstance(listed, list) else 0
        elif record.type == RecordType.ANCHOR:
            frame = frame_fields(record.payload)
            if frame.get("type") == anchors.BEGIN_TYPE:
                self._tails(file, frame, state)
            elif frame.get("type") == anchors.HEADS_TYPE:
                self._heads(file, record, frame, state)
            elif frame.get("type") == anchors.PAGE_TYPE:
                self._page(file, record, state)

    def _tails(self, file: LogFile, frame: dict[str, JSON], state: _Node) -> None:
        """Settle the unsigned ends of files before by what this one's first frame says of them.

        A process that lived on vouches for what it wrote itself, up to a head; of what it found there, it
        says that it is unsigned. Of any other file it said that it was finished.
        """
        tails = frame.get("tails")
        for one in tails if isinstance(tails, list) else []:
            number, head = integer(one, "file"), one.get("head")
            if number in state.unsigned:
                self._unsigned(*state.unsigned.pop(number), state, Kind.UNPROVEN, head)
        for number in [number for number in state.unsigned if number < file.number]:
            kind = Kind.ADDED if isinstance(tails, list) else Kind.UNPROVEN
            self._unsigned(*state.unsigned.pop(number), state, kind)

    def _unsigned(
        self, file: LogFile, checked: CheckedFile, state: _Node, kind: Kind, head: object = None
    ) -> None:
        """Believe a file's unsigned records up to ``head``; report those behind."""
        found = checked.scan
        vouched = found.good_bytes if head == named(found.head) else 0
        for record in found.records:
            if record.head_before and head == named(record.head_before):
                vouched = record.offset
        rest = unsigned_records(found, checked.proven_bytes)
        for record in rest:
            if record.end <= vouched:
                self._take(file, checked, record, state)
        rest = [record for record in rest if record.end > vouched]
        if rest and all(one.kind == Kind.LEFTOVER for one in checked.findings):
            detail = f"the last {len(rest)} records are chained but not signed: nothing in them is believed"
            time = f"{checked.proven_until}/" if checked.proven_until else ""
            self.report.findings.append(
                Finding(kind, file.name, detail, rest[0].offset, found.size, rest[0].number, time)
            )

    def _mark(self, frame: dict[str, JSON], state: _Node) -> None:
        first, last, count = (integer(frame, name) for name in ("first", "last", "entries"))
        if not 0 < first <= last or not 0 < count <= last - first + 1:
            raise CanonicalError(f"marks {count} entries {first} to {last}")
        self.report.entries += count
        if first <= state.last_seq:
            self.report.repeated += count
        state.last_seq = max(state.last_seq, last)
        self.report.last_seq = max(self.report.last_seq, last)

    def _heads(self, file: LogFile, record: RecordInfo, frame: dict[str, JSON], state: _Node) -> None:
        tenant, items = str(frame["tenant"]), anchors.items_of(frame)
        state.items.setdefault((file.number, tenant), []).append((record.number, items))
        for item in items:
            recording = str(item["recording"])
            known = self.report.recordings.setdefault(recording, Anchored(recording, tenant))
            known.take(item)

    def _page(self, file: LogFile, record: RecordInfo, state: _Node) -> None:
        try:
            page = anchors.open_anchor_page(record.payload)
        except SignedError as error:
            raise CanonicalError(str(error)) from None
        fields, tenant = page.fields, str(page.fields.get("tenant"))
        if not self._accept(page.certificate):
            raise CanonicalError(f"a tenant's page signed by {page.certificate.subject}, who is not accepted")
        chain, since = fields["chain"], fields["since"]
        assert isinstance(chain, dict)
        assert isinstance(since, dict)
        stood = (file.number, record.number, record.offset, named(record.head_before))
        if stood != (chain["file"], chain["record"], chain["bytes"], chain["head"]):
            raise CanonicalError("a tenant's page made for another place")
        number = integer(fields, "number")
        before = state.pages.get(tenant)
        if before is not None and (number, fields.get("previous")) != (before[0] + 1, named(before[1])):
            raise CanonicalError(f"page {number} of tenant {tenant} does not follow page {before[0]}")
        self._check_root(state, tenant, (since["file"], since["record"]), (file.number, record.number), page)
        state.pages[tenant] = (number, page.digest)
        self.report.pages[named(page.digest)] = str(fields.get("at"))
        self.report.anchors += 1

    def _check_root(
        self,
        state: _Node,
        tenant: str,
        since: tuple[int, int],
        here: tuple[int, int],
        page: SignedPage,
    ) -> None:
        if state.first is not None and since[0] < state.first[0].number:
            return  # its items lie in files that were not read, or whose time had come
        pending = Pending(since)
        for number in range(since[0], here[0] + 1):
            for record, items in state.items.get((number, tenant), ()):
                if since < (number, record) < here:
                    pending.add(items)
        for number in range(since[0], here[0]):
            state.items.pop((number, tenant), None)
        root = pending.root()
        stated = (page.fields.get("root"), page.fields["leaves"])
        if stated != (named(root) if root is not None else None, len(pending.items)):
            raise CanonicalError(f"page {page.fields['number']} of tenant {tenant} is over other items")

    # --- the ends

    def _beginning(self, state: _Node) -> None:
        """The first file follows none, or the last of those the log says were removed in time."""
        if state.first is None or state.partial:
            return
        file, previous = state.first
        if previous is None:
            return  # a number before it is of a process that died in its first write
        through, head = state.expired or (0, None)
        # Of those up to ``through`` some may remain, if a crash cut their removal off.
        if file.number <= through or (file.number == through + 1 and head == previous):
            return
        detail = f"files before number {file.number} are missing, not removed by the log's own word"
        self._add(Kind.REMOVED, file.name, detail)

    def _ending(self, state: _Node) -> None:
        """What follows the last checkpoint is chained, but not signed."""
        last = state.before
        if last is None:
            return
        self.report.proven_until = max(self.report.proven_until, state.until)
        size = last.scan.size
        for file, checked in state.unsigned.values():
            if checked is not last:
                self._unsigned(file, checked, state, Kind.UNPROVEN)
        behind = unsigned_records(last.scan, last.proven_bytes)
        if not behind and not last.scan.torn_bytes and last.checkpoints:
            return
        if not last.findings or (behind and all(one.kind == Kind.LEFTOVER for one in last.findings)):
            detail = f"the last {size - last.proven_bytes} bytes are chained but not signed"
            time = f"{last.proven_until}/" if last.proven_until else ""
            self.report.findings.append(
                Finding(Kind.UNPROVEN, last.name, detail, last.proven_bytes, size, None, time)
            )

    def _add(self, kind: Kind, file: str, detail: str) -> None:
        self.report.findings.append(Finding(kind, file, detail))


def _signer_of(file: LogFile) -> str | None:
    """Return the certificate in a file's first frame; what is wrong with the file is said elsewhere."""
    if not file.path.is_file():
        return None
    source = RecordSource(file.path)
    try:
        first = source.record(source.header()[2].end)
        frame = frame_fields(bytes(first.body)) if first and first.type == RecordType.ANCHOR else {}
    except (SealedError, CanonicalError):
        return None
    finally:
        source.close()
    signer = frame.get("signer")
    return signer if isinstance(signer, str) else None


def _since(files: list[LogFile], since_ns: int, report: AuditReport) -> list[LogFile]:
    year, month = rfc3339(since_ns - 2 * 86_400 * 10**9)[:7].split("-")
    kept = [file for file in files if file.month >= (year, month)]
    report.partial = report.partial or len(kept) < len(files)
    return kept
