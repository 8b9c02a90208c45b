"""Index of recordings: find them in milliseconds, rebuild it from what is on disk.

The truth of a recording lies in its directory (journal, capture manifest, statements). This table only finds
it: it can be deleted, and ``reindex`` writes it again. Columns that may name a person are sealed
(``fieldkey``).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from recorder.fieldkey import FieldKey

SCHEMA_VERSION = 1
metadata = sa.MetaData()

recordings = sa.Table(
    "recordings",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("room", sa.String(64), nullable=False),
    sa.Column("business_key", sa.String(64), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("supersedes", sa.String(36)),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("mode", sa.String(16), nullable=False),
    sa.Column("directory", sa.Text, nullable=False),
    sa.Column("assurance", sa.String(16), nullable=False),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
    sa.Column("armed_ns", sa.BigInteger),
    sa.Column("stopped_ns", sa.BigInteger),
    sa.Column("part", sa.Integer, nullable=False),
    sa.Column("worker", sa.Integer),
    sa.Column("failure", sa.String(64)),
    sa.Column("composing", sa.Text, nullable=False),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    sa.UniqueConstraint("tenant", "business_key", "attempt", name="one_recording_per_attempt"),
    sa.Index("recordings_by_room", "tenant", "room", "id"),
    sa.Index("recordings_by_state", "state"),
)
files = sa.Table(
    "files",
    metadata,
    sa.Column("recording", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("media_type", sa.String(64), nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("plain_bytes", sa.BigInteger, nullable=False),
    sa.Column("sm3", sa.String(80), nullable=False),
    sa.Column("plain_sm3", sa.String(80), nullable=False),
    sa.Column("duration_ms", sa.BigInteger),
)
retention = sa.Table(
    "retention",
    metadata,
    sa.Column("recording", sa.String(36), primary_key=True),
    sa.Column("due_ns", sa.BigInteger, nullable=False, index=True),
)
schema = sa.Table("catalog_schema", metadata, sa.Column("version", sa.Integer, primary_key=True))

ACTIVE_STATES = ("arming", "recording", "paused", "stopping")


class CatalogError(Exception):
    """The index refuses: the named recording exists already, or the database is of a later release."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One fetchable file of a recording. ``path`` is relative to the recording's directory."""

    name: str
    kind: str
    media_type: str
    path: str
    bytes: int
    plain_bytes: int
    sm3: str
    plain_sm3: str
    duration_ms: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Give the object that the API shows: everything but the path."""
        return {
            "name": self.name,
            "kind": self.kind,
            "media_type": self.media_type,
            "bytes": self.bytes,
            "plain_bytes": self.plain_bytes,
            "sm3": self.sm3,
            "plain_sm3": self.plain_sm3,
            "duration_ms": self.duration_ms,
        }


@dataclass(frozen=True, slots=True)
class Entry:
    """One recording. Times are UTC nanoseconds; ``directory`` is relative to the data directory."""

    id: str
    tenant: str
    room: str
    business_no: str
    mode: str
    directory: str
    created_ns: int
    attempt: int = 1
    supersedes: str | None = None
    state: str = "arming"
    assurance: str = "development"
    armed_ns: int | None = None
    stopped_ns: int | None = None
    part: int = 1
    """Number of the last part begun."""
    worker: int | None = None
    """Index of the media worker that writes the part, while one does."""
    failure: str | None = None
    composing: dict[str, Any] = field(default_factory=lambda: {"state": "waiting", "progress": None})
    details: dict[str, Any] = field(default_factory=dict)
    """Sealed in the database: template, metadata, participants, gaps, part summaries, actors."""
    files: tuple[FileEntry, ...] = ()

    @property
    def active(self) -> bool:
        """True until the recording is sealed, recovered or failed."""
        return self.state in ACTIVE_STATES


class Catalog:
    """The index in a SQLAlchemy database. Calls block; use it from one thread."""

    def __init__(self, url: str, key: FieldKey) -> None:
        self._key = key
        self._engine = sa.create_engine(url)
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", durable_sqlite)
        metadata.create_all(self._engine)
        with self._engine.begin() as connection:
            version = connection.scalar(sa.select(sa.func.max(schema.c.version)))
            if version is None:
                connection.execute(schema.insert().values(version=SCHEMA_VERSION))
            elif version > SCHEMA_VERSION:
                raise CatalogError(f"the index has schema {version}, this release knows {SCHEMA_VERSION}")

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def add(self, entry: Entry) -> None:
        """Insert a new recording; raises CatalogError if its business number and attempt are taken."""
        try:
            with self._engine.begin() as connection:
                connection.execute(recordings.insert().values(**self._row(entry)))
        except sa.exc.IntegrityError as error:
            raise CatalogError("this attempt of the business number is recorded already") from error

    def put(self, entry: Entry) -> None:
        """Write a recording and its files as they are now, whether known or new."""
        row = self._row(entry)
        with self._engine.begin() as connection:
            changed = connection.execute(recordings.update().where(recordings.c.id == entry.id).values(**row))
            if changed.rowcount == 0:
                connection.execute(recordings.insert().values(**row))
            connection.execute(files.delete().where(files.c.recording == entry.id))
            if entry.files:
                connection.execute(files.insert(), [_file_row(entry.id, file) for file in entry.files])

    def get(self, recording: str) -> Entry | None:
        """Fetch one recording with its files, whatever its tenant."""
        return next(iter(self._entries(recordings.c.id == recording)), None)

    def active(self) -> list[Entry]:
        """List recordings that have not ended."""
        return self._entries(recordings.c.state.in_(ACTIVE_STATES))

    def uncomposed(self) -> list[Entry]:
        """List ended recordings whose composing was neither finished nor given up."""
        ended = self._entries(recordings.c.state.in_(("sealed", "recovered")))
        return [entry for entry in ended if entry.composing["state"] in ("waiting", "running")]

    def ended_since(self, utc_ns: int) -> list[Entry]:
        """List recordings that ended with a signed manifest at that time or later."""
        ended = recordings.c.state.in_(("sealed", "recovered"))
        return self._entries(ended, recordings.c.stopped_ns >= utc_ns)

    def by_business_no(self, tenant: str, business_no: str) -> list[Entry]:
        """List all attempts for a business number, first to last."""
        wanted = self._business_key(tenant, business_no)
        found = self._entries(recordings.c.tenant == tenant, recordings.c.business_key == wanted)
        return sorted(found, key=lambda entry: entry.attempt)

    def search(
        self,
        tenant: str,
        *,
        room: str | None = None,
        business_no: str | None = None,
        state: str | None = None,
        before: str | None = None,
        due_ns: int | None = None,
        limit: int = 50,
    ) -> list[Entry]:
        """List a tenant's recordings, newest first, older than the id ``before``; at most ``limit``.

        ``due_ns``: only those of which something may be destroyed by that time (UTC).
        """
        conditions = [recordings.c.tenant == tenant]
        if room is not None:
            conditions.append(recordings.c.room == room)
        if business_no is not None:
            conditions.append(recordings.c.business_key == self._business_key(tenant, business_no))
        if state is not None:
            conditions.append(recordings.c.state == state)
        if before is not None:
            conditions.append(recordings.c.id < before)
        if due_ns is not None:
            due = sa.select(retention.c.recording).where(retention.c.due_ns <= due_ns)
            conditions.append(recordings.c.id.in_(due))
        return self._entries(*conditions, limit=limit)

    def put_due(self, recording: str, due_ns: int | None) -> None:
        """Note when the first kind of a recording's files may be destroyed; None: not, as things stand."""
        with self._engine.begin() as connection:
            connection.execute(retention.delete().where(retention.c.recording == recording))
            if due_ns is not None:
                connection.execute(retention.insert().values(recording=recording, due_ns=due_ns))

    def forget_all(self) -> None:
        """Empty the index before it is rebuilt."""
        with self._engine.begin() as connection:
            connection.execute(retention.delete())
            connection.execute(files.delete())
            connection.execute(recordings.delete())

    def _business_key(self, tenant: str, business_no: str) -> str:
        return self._key.digest(f"{tenant}\0{business_no}", "business_no")

    def _row(self, entry: Entry) -> dict[str, Any]:
        sealed = {"business_no": entry.business_no, "details": entry.details}
        return {
            "id": entry.id,
            "tenant": entry.tenant,
            "room": entry.room,
            "business_key": self._business_key(entry.tenant, entry.business_no),
            "attempt": entry.attempt,
            "supersedes": entry.supersedes,
            "state": entry.state,
            "mode": entry.mode,
            "directory": entry.directory,
            "assurance": entry.assurance,
            "created_ns": entry.created_ns,
            "armed_ns": entry.armed_ns,
            "stopped_ns": entry.stopped_ns,
            "part": entry.part,
            "worker": entry.worker,
            "failure": entry.failure,
            "composing": json.dumps(entry.composing),
            "sealed": self._key.seal(sealed, "recordings.sealed"),
        }

    def _entries(self, *conditions: sa.ColumnElement[bool], limit: int | None = None) -> list[Entry]:
        query = sa.select(recordings).where(*conditions).order_by(recordings.c.id.desc())
        if limit is not None:
            query = query.limit(limit)
        with self._engine.connect() as connection:
            rows = [dict(row) for row in connection.execute(query).mappings()]
            held: dict[str, list[FileEntry]] = {row["id"]: [] for row in rows}
            found = sa.select(files).where(files.c.recording.in_(held)).order_by(files.c.name)
            for row in connection.execute(found).mappings():
                columns = {name: row[name] for name in FileEntry.__dataclass_fields__}
                held[row["recording"]].append(FileEntry(**columns))
        return [self._entry(row, tuple(held[row["id"]])) for row in rows]

    def _entry(self, row: Mapping[str, Any], held: tuple[FileEntry, ...]) -> Entry:
        values = {name: row[name] for name in row if name not in ("business_key", "sealed", "composing")}
        sealed = self._key.unseal(row["sealed"], "recordings.sealed")
        return Entry(
            **values,
            business_no=sealed["business_no"],
            details=sealed["details"],
            composing=json.loads(row["composing"]),
            files=held,
        )


def durable_sqlite(connection: Any, _record: Any) -> None:
    """Set a SQLite connection so that a committed row survives a power cut and readers do not block."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA secure_delete=ON")
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.close()


def _file_row(recording: str, file: FileEntry) -> dict[str, Any]:
    return {"recording": recording, "path": file.path, **file.to_json()}


def cursor_of(entry: Entry) -> str:
    """Make the opaque cursor that continues a list after ``entry``."""
    return base64.urlsafe_b64encode(entry.id.encode()).decode().rstrip("=")


def parse_cursor(cursor: str) -> str:
    """Read a cursor; raises ValueError if it is none of ours."""
    padded = cursor + "=" * (-len(cursor) % 4)
    identifier = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
    if len(identifier) != 36:
        raise ValueError("not a cursor")
    return identifier


def moved(entry: Entry, directory: Path, root: Path) -> Entry:
    """Give the entry with its directory relative to the data directory ``root``."""
    return replace(entry, directory=str(directory.resolve().relative_to(root.resolve())))


@contextmanager
def opened(url: str, key: FieldKey) -> Iterator[Catalog]:
    """Open an index for the length of a block."""
    catalog = Catalog(url, key)
    try:
        yield catalog
    finally:
        catalog.close()
