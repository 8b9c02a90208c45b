"""What verification found: findings with file, record, byte range and time, and the verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum

from recorder.canonical import JSON


class Kind(StrEnum):
    """What happened to the place a finding names."""

    CHANGED = "changed"
    REMOVED = "removed"
    REORDERED = "reordered"
    TRUNCATED = "truncated"
    ADDED = "added"
    WRONG_KEY = "wrong_key"
    OTHER_SIGNER = "other_signer"
    DISAGREEMENT = "disagreement"
    UNSUPPORTED = "unsupported"
    UNPROVEN = "unproven"
    LEFTOVER = "leftover"
    DESTROYED = "destroyed"
    """Not there because a signed tombstone says so: no damage."""


_NOT_DAMAGE = (Kind.UNPROVEN, Kind.LEFTOVER, Kind.DESTROYED)


class Verdict(StrEnum):
    """``ok``: all holds. ``unproven``: no damage found, but not all is signed. ``broken``: damage found.
    ``destroyed``: all kinds of files and the key were destroyed by rule, and all that should be there holds.
    """

    OK = "ok"
    UNPROVEN = "unproven"
    BROKEN = "broken"
    DESTROYED = "destroyed"


@dataclass(frozen=True)
class Finding:
    """One thing found. Byte ranges are half open, of the file on disk."""

    kind: Kind
    file: str
    detail: str
    begin: int | None = None
    end: int | None = None
    record: int | None = None
    time: str = ""
    """When it was captured: ``from/to`` in RFC 3339, as signed checkpoints bound it; may be empty."""

    def __str__(self) -> str:
        place = self.file
        if self.record is not None:
            place += f", record {self.record}"
        if self.begin is not None:
            place += f", bytes {self.begin}–{self.end}"
        if self.time:
            place += f", time {self.time}"
        return f"{self.kind.value}: {place}: {self.detail}"


@dataclass
class Report:
    """The result of verifying one recording."""

    path: str
    recording: str = ""
    opened: bool = False
    """The data key was there: every chunk was opened too."""
    manifest: bool = False
    files: int = 0
    records: int = 0
    bytes: int = 0
    checkpoints: int = 0
    statements: int = 0
    signers: dict[str, str] = field(default_factory=dict)
    """Certificate fingerprint to subject, of all whose signatures were accepted."""
    trusted: bool = False
    """The signers were named by whoever verifies; else the recording vouches for its own certificate."""
    assurance: str = ""
    second_opinion: dict[str, JSON] | None = None
    """What was checked twice, by other code (``recorder.second_opinion``); None if that was not asked for."""
    destroyed: bool = False
    """A signed tombstone says that the data key was destroyed, and it is not there."""
    certificates: list[dict[str, JSON]] = field(default_factory=list)
    """What stored revocation lists say of each signer and its issuers (``recorder.certificates.Status``)."""
    timestamps: list[dict[str, JSON]] = field(default_factory=list)
    """Each time-stamp with its state (``recorder.tokens.TokenReport``)."""
    unproven_tail_ms: int = 0
    """Of parts that were recovered: the longest time at their end that no checkpoint covers."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        """Broken if any finding is damage; unproven if any says that something is not signed; else ok."""
        if any(finding.kind not in _NOT_DAMAGE for finding in self.findings):
            return Verdict.BROKEN
        if any(finding.kind == Kind.UNPROVEN for finding in self.findings):
            return Verdict.UNPROVEN
        return Verdict.DESTROYED if self.destroyed else Verdict.OK

    @property
    def ok(self) -> bool:
        """Whether everything that should be there holds."""
        return self.verdict in (Verdict.OK, Verdict.DESTROYED)

    def to_json(self) -> dict[str, JSON]:
        """Return the report as JSON, ``verdict`` and ``ok`` included."""
        value = asdict(self)
        value["findings"] = [{**asdict(finding), "kind": finding.kind.value} for finding in self.findings]
        return {"verdict": self.verdict.value, "ok": self.ok, **value}
