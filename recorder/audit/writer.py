"""Write a node's audit log: entries in order, what ties recordings to it, signatures, file after file.

Nothing is ever reopened for writing: a start, a full file, a new day and a disk that failed each begin
another file, whose ``previous`` is the head of the last whole record before it. Not for two threads at once.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from recorder.atomic import sync_directory
from recorder.audit import anchors
from recorder.audit.anchors import Item, Pending, Tenant
from recorder.audit.format import (
    MEDIA_TYPE,
    LogFile,
    chunks_of,
    file_directory,
    frame_fields,
    integer,
    list_files,
    unsigned_records,
)
from recorder.canonical import JSON, CanonicalError, canonical
from recorder.checkpoint import Checkpoint, leaf_hash
from recorder.clock import Clock, rfc3339
from recorder.gm.sm2 import Sm2Error
from recorder.gm.sm3 import named, sm3
from recorder.gm.x509 import Certificate
from recorder.sealed import DataKey, FileScan, RecordInfo, RecordType, SealedWriter, scan
from recorder.signed import SignedError, Signer, sign_page

_log = logging.getLogger(__name__)
CHECKPOINT_NS = 2_000_000_000
FILE_BYTES = 16 << 20
"""A file is closed when it is longer: verifying reads it whole, and its index is kept in memory."""


@dataclass(frozen=True, slots=True)
class AnchorPage:
    """A tenant's page as it was written."""

    tenant: str
    number: int
    data: bytes
    digest: bytes


class SigningError(Exception):
    """The signing key's holder did not sign. The log itself is as it was, and goes on unsigned."""


class AuditWriter:
    """The writing end of one node's log.

    ``begin`` opens a file; everything else raises OSError when the disk refuses, and the file is then left
    for good: ``begin`` another and write again what was not acknowledged. What may come twice for this reason
    is told by its ``seq``.
    """

    def __init__(self, root: Path, node: str, signer: Signer, clock: Clock) -> None:
        """Read where the log stands; nothing is written yet. Raise OSError if the last file is unreadable."""
        self.root = root
        self.node = node
        self.last_seq = 0
        """``seq`` of the last entry in the log that a signature covers or this process wrote; 0 if none."""
        self._signer = signer
        self._clock = clock
        self._file: SealedWriter | None = None
        self._previous: bytes | None = None
        self._day = ""
        self._dirty = False
        self._unsynced = False
        self._checkpoint_ns = 0
        self._tenants: dict[str, Tenant] = {}
        self._pending: dict[str, Pending] = {}
        self._stirred: set[str] = set()
        self._tails: list[JSON] = []
        """Of files that may end unsigned: number, and the head up to which we wrote them ourselves."""
        self.made: deque[AnchorPage] = deque()
        """Pages that were written, oldest first; whoever gives them to others takes them out."""
        mine = [one for one in list_files(root) if one.node == node]
        self._number = mine[-1].number if mine else 0
        for file in reversed(mine):
            if self._resume(file):
                break

    @property
    def open(self) -> bool:
        """Whether a file is open."""
        return self._file is not None

    @property
    def unsettled(self) -> bool:
        """Whether something was written that is not signed or not synced yet."""
        return self._dirty or self._unsynced

    @property
    def due(self) -> bool:
        """Whether ``begin`` is to be called before anything is written: no file, a full one, another day."""
        file = self._file
        return file is None or file.bytes > FILE_BYTES or self._day != self._today()

    @property
    def number(self) -> int:
        """Number of the newest file."""
        return self._number

    def next_file(self) -> LogFile:
        """Return the file that ``begin`` is to open; its key and sidecar are made before."""
        number = self._number + 1
        taken = {one.number for one in list_files(self.root) if one.node == self.node}
        while number in taken:  # by whom, verification asks; this log must go on
            number += 1
        return LogFile(self.node, number, file_directory(self.root, self.node, number, self._clock.utc_ns()))

    def begin(self, file: LogFile, data_key: DataKey) -> None:
        """Finish the open file, if any, and open ``file``, whose directory and sidecar are there.

        If it cannot be opened its directory is removed again, so that a full disk leaves no trail.
        """
        if self._file is not None:
            try:
                self.finish()
            except Exception as error:  # a disk, or a device that signs: the next file is the way out
                _log.error("file %d of the audit log is left unfinished: %s", self._number, error)
                self.leave()
        try:
            writer = SealedWriter(
                file.path,
                data_key,
                kind="original",
                media_type=MEDIA_TYPE,
                public={"node": self.node, "number": file.number, "begun": rfc3339(self._clock.utc_ns())},
                previous=self._previous,
            )
        except OSError:
            shutil.rmtree(file.directory, ignore_errors=True)
            raise
        self._file, self._number, self._day = writer, file.number, self._today()
        self._previous = writer.head
        known: dict[str, JSON] = {
            tenant: {"number": one.number, "digest": named(one.digest or bytes(32))}
            for tenant, one in sorted(self._tenants.items())
        }
        begin: dict[str, JSON] = {
            "type": anchors.BEGIN_TYPE,
            "signer": self._signer.certificate_pem,
            "last_seq": self.last_seq,
            "tenants": known,
            "tails": self._tails,
        }
        self._frame(RecordType.ANCHOR, begin)
        self._tails = []
        sync_directory(file.directory)

    def put(self, entries: Sequence[Mapping[str, JSON]], items: Mapping[str, Sequence[Item]]) -> None:
        """Write entries, and items by tenant. ``last_seq`` goes on with each chunk that is written."""
        file = self._require()
        at = rfc3339(self._clock.utc_ns())
        for text, first, last, count in chunks_of(entries):
            self._do(partial(file.append, text))
            self._frame(RecordType.MARK, {"first": first, "last": last, "entries": count, "at": at})
            self.last_seq = max(self.last_seq, last)
        self._stirred.update(str(entry["tenant"]) for entry in entries)
        for tenant, some in items.items():
            for frame in anchors.heads_frames(tenant, at, some):
                self._frame(RecordType.ANCHOR, frame)
            self._of(tenant).add(some)

    def anchor(self) -> list[AnchorPage]:
        """Sign and write the next page of each tenant that something was written about since its last."""
        file = self._require()
        stirred = self._stirred | {tenant for tenant, one in self._pending.items() if one.items}
        pages = []
        for tenant in sorted(stirred):
            before = self._tenants.get(tenant, Tenant())
            pending = self._of(tenant)
            record = file.records
            chain: dict[str, JSON] = {
                "file": self._number,
                "record": record,
                "bytes": file.bytes,
                "head": named(file.head),
            }
            at = rfc3339(self._clock.utc_ns())
            fields = anchors.page_fields(tenant, self.node, before, pending, chain=chain, at=at)
            data = self._signed(partial(sign_page, fields, self._signer))
            self._do(partial(file.public_frame, RecordType.ANCHOR, data))
            page = AnchorPage(tenant, before.number + 1, data, sm3(data))
            self._tenants[tenant] = Tenant(page.number, page.digest)
            self._pending[tenant] = Pending((self._number, record))
            self._stirred.discard(tenant)
            self.made.append(page)
            pages.append(page)
        return pages

    def timestamp(self, page: AnchorPage, response: bytes) -> None:
        """Keep an authority's time-stamp response over a page, whole (RFC 3161, DER; at most 32 KiB)."""
        if len(response) > 32 << 10:
            raise ValueError(f"a time-stamp response of {len(response)} bytes")
        encoded = base64.b64encode(response).decode()
        self._frame(RecordType.TIMESTAMP, {"anchor": named(page.digest), "response": encoded})

    def checkpoint(self, now_ns: int, *, now: bool = False) -> None:
        """Sign the head if anything was written since, at most every 2 s unless ``now``.

        Raise SigningError if it cannot be signed.
        """
        due = now or now_ns - self._checkpoint_ns >= CHECKPOINT_NS
        if self._file is not None and self._dirty and due:
            self._checkpoint_ns = now_ns
            self._sign(self._file)

    def sync(self) -> None:
        """Make what is written survive a power cut."""
        if self._file is not None and self._unsynced:
            self._do(self._file.sync, adds=False)
            self._unsynced = False

    def finish(self) -> None:
        """Write what is pending of anchors, sign to the end, close the file."""
        if self._file is None:
            return
        self.anchor()
        file = self._require()
        if self._dirty:
            self._sign(file)
        self._do(file.close)
        self._previous = file.head
        self._file = None

    def leave(self) -> None:
        """Leave the open file as it is."""
        if self._file is not None:
            self._file.abandon()
            self._file = None
            # All up to here is our own, though it may not be signed: the next file says so.
            head = self._previous
            self._tails.append({"file": self._number, "head": named(head) if head is not None else None})

    def expire(self, before_ns: int) -> list[LogFile]:
        """Remove whole files whose last entry is older than ``before_ns`` (UTC); return them.

        First the log says so, signed: which files, up to which number, and the head of the last, so that what
        remains still joins on. A call cut off by a crash is made good by the next.
        """
        mine = [one for one in list_files(self.root) if one.node == self.node]
        old: list[LogFile] = []
        for file in mine:
            if file.number >= self._number or _newest_ns(file) >= before_ns:
                break
            old.append(file)
        if not old:
            return []
        # A directory without its file is of a process that died before the first write.
        scans = [(file, scan(file.path)) for file in old if file.path.exists()]
        listed: list[JSON] = [
            {"file": file.name, "number": file.number, "bytes": found.size, "head": named(found.head)}
            for file, found in scans
            if found.head
        ]
        self._frame(
            RecordType.EXPIRED,
            {
                "through": old[-1].number,
                "head": next((named(found.head) for _, found in reversed(scans) if found.head), None),
                "files": listed[-200:],
                "before": rfc3339(before_ns),
                "at": rfc3339(self._clock.utc_ns()),
            },
        )
        self._sign(self._require())
        self.sync()
        for file in old:
            shutil.rmtree(file.directory)
        return old

    # --- inside

    def _resume(self, file: LogFile) -> bool:
        """Take up where a file ends; False if nothing in it is signed, and the one before is to be read too.

        Behind its last good checkpoint anyone who can write the disk may have chained records on: they are
        named to whoever verifies, and nothing in them is believed.
        """
        if not file.path.exists():
            return False
        found = scan(file.path)
        if found.header is None or not found.head:
            return False
        self._previous = self._previous or found.head
        signed = _signed_bytes(found)
        for record in found.records:
            if record.offset >= signed:
                break
            try:
                self._remember(file, record)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # verification says what is wrong with it
        if unsigned_records(found, signed):
            self._tails.insert(0, {"file": file.number, "head": None})
        return signed > 0

    def _remember(self, file: LogFile, record: RecordInfo) -> None:
        if record.type == RecordType.MARK:
            self.last_seq = max(self.last_seq, integer(frame_fields(record.payload), "last"))
        if record.type != RecordType.ANCHOR:
            return
        frame = frame_fields(record.payload)
        kind = frame.get("type")
        if kind == anchors.BEGIN_TYPE:
            self.last_seq = max(self.last_seq, integer(frame, "last_seq"))
            known = frame.get("tenants")
            for tenant, one in known.items() if isinstance(known, Mapping) else ():
                if isinstance(one, Mapping):
                    digest = bytes.fromhex(str(one.get("digest")).removeprefix("sm3:"))
                    self._tenants[tenant] = Tenant(integer(one, "number"), digest)
        elif kind == anchors.HEADS_TYPE:
            self._pending.setdefault(str(frame["tenant"]), Pending((file.number, 0))).add(
                anchors.items_of(frame)
            )
        elif kind == anchors.PAGE_TYPE:
            try:
                page = anchors.open_anchor_page(record.payload)
            except SignedError as error:
                raise CanonicalError(str(error)) from None
            tenant = str(page.fields["tenant"])
            self._tenants[tenant] = Tenant(integer(page.fields, "number"), page.digest)
            self._pending[tenant] = Pending((file.number, record.number))

    def _of(self, tenant: str) -> Pending:
        return self._pending.setdefault(tenant, Pending((self._number, 0)))

    def _today(self) -> str:
        return rfc3339(self._clock.utc_ns())[:10]

    def _require(self) -> SealedWriter:
        if self._file is None:
            raise OSError("no file of the audit log is open")
        return self._file

    def _frame(self, kind: RecordType, fields: Mapping[str, JSON]) -> None:
        file = self._require()
        data = canonical(fields)
        self._do(partial(file.public_frame, kind, data))

    def _sign(self, file: SealedWriter) -> None:
        head = file.head
        unsigned = Checkpoint(0, 1, self._clock.now_ns(), self._clock.utc_ns(), leaf_hash(head), ())
        signature = self._signed(lambda: self._signer.sign(unsigned.signed_message()))
        signed = Checkpoint(0, 1, unsigned.at_ns, unsigned.utc_ns, unsigned.root, (), signature)
        self._do(partial(file.public_frame, RecordType.CHECKPOINT, signed.to_bytes()))
        self._dirty = False

    def _signed(self, sign: Callable[[], bytes]) -> bytes:
        try:
            return sign()
        except Exception as error:  # a device or key service may fail in any way
            raise SigningError(f"the audit log cannot be signed: {error}") from error

    def _do(self, write: Callable[[], object], *, adds: bool = True) -> None:
        """Write something, or sync; after an error the file is left, and its last whole record stays its end.

        ``adds``: it adds what is to be signed and synced.
        """
        file = self._require()
        try:
            write()
        except OSError:
            self.leave()
            # What lies there counts, not what this process meant to write: a reader sees only that.
            with contextlib.suppress(OSError):
                self._previous = scan(file.path).head or self._previous
            raise
        if adds:
            self._previous = file.head
            self._dirty = self._unsynced = True


def _newest_ns(file: LogFile) -> int:
    try:
        return file.path.stat().st_mtime_ns
    except FileNotFoundError:
        return file.directory.stat().st_mtime_ns


def _signed_bytes(found: FileScan) -> int:
    """Return where the last checkpoint lies that the signer named in the file's first frame made; else 0.

    Whether that signer is accepted is for verification to say: a file of another's is damage.
    """
    signer: Certificate | None = None
    checkpoints: list[RecordInfo] = []
    for record in found.records:
        if record.type == RecordType.CHECKPOINT:
            checkpoints.append(record)
        elif record.type == RecordType.ANCHOR and signer is None:
            try:
                signer = Certificate.from_pem(str(frame_fields(record.payload).get("signer")))
            except (CanonicalError, Sm2Error):
                return 0
    for record in reversed(checkpoints):
        try:
            one = Checkpoint.from_bytes(record.payload)
        except ValueError:
            continue
        if signer is None or not one.proves(record.head_before):
            continue
        if signer.public_key.verify(one.signed_message(), one.signature):
            return record.offset
    return 0
