"""What checking an audit log found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from recorder.audit.anchors import Anchored
from recorder.canonical import JSON
from recorder.report import Finding, Kind, Verdict

_NOT_DAMAGE = (Kind.UNPROVEN, Kind.LEFTOVER)


@dataclass
class AuditReport:
    """The result of reading an audit log; ``recordings`` is what it says of each recording."""

    path: str
    opened: bool = False
    """Every entry was opened too."""
    partial: bool = False
    """Older files were left out on purpose."""
    files: int = 0
    records: int = 0
    bytes: int = 0
    checkpoints: int = 0
    entries: int = 0
    repeated: int = 0
    """Entries written twice, because a crash or a full disk left open whether they had been."""
    anchors: int = 0
    """Signed pages of tenants that hold."""
    timestamps: list[dict[str, JSON]] = field(default_factory=list)
    """Of each: the page it is over, time, authority, ``state`` (``recorder.tokens.TokenState``), detail."""
    last_seq: int = 0
    expired: int = 0
    """Files that the log says were removed when their time had come."""
    proven_until: str = ""
    """Time of the last checkpoint. What came after it, and whole files behind the last one, could be missing
    without a trace in the log: a page or time-stamp kept elsewhere bounds that."""
    signers: dict[str, str] = field(default_factory=dict)
    trusted: bool = False
    findings: list[Finding] = field(default_factory=list)
    recordings: dict[str, Anchored] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)
    """SM3 of each tenant's page that holds, and its time."""

    @property
    def verdict(self) -> Verdict:
        """Broken if any finding is damage; unproven if something is not signed; else ok."""
        if any(finding.kind not in _NOT_DAMAGE for finding in self.findings):
            return Verdict.BROKEN
        if not self.files or any(finding.kind == Kind.UNPROVEN for finding in self.findings):
            return Verdict.UNPROVEN
        return Verdict.OK

    def to_json(self) -> dict[str, JSON]:
        """Return the report as JSON, without what it says of each recording."""
        names = (
            "path", "opened", "partial", "files", "records", "bytes", "checkpoints", "entries", "repeated",
            "anchors", "timestamps", "last_seq", "expired", "proven_until", "signers", "trusted",
        )  # fmt: skip
        return {
            "verdict": self.verdict.value,
            "ok": self.verdict == Verdict.OK,
            **{name: getattr(self, name) for name in names},
            "recordings": len(self.recordings),
            "findings": [{**asdict(one), "kind": one.kind.value} for one in self.findings],
        }
