"""How long a recording is kept, what holds it, who reviewed it, and how it ends: signed statements.

Nothing here is a setting that somebody could quietly change: retention, holds, reviews and destruction are
statements of the recording itself, and what may be done now follows from them alone. Who acted and why lies
in their sealed parts. Retention is per kind of file (``original``, ``archive``, ``derived``).

    retention   {action: set | proposed | withdrawn, basis, until: {kind: time}}
    hold        {action: placed | released, hold: number of the statement that placed it}
    review      {state}
    destruction {action: proposed | withdrawn | carried_out, kinds, basis, key, destroyed: [file, …]}

Extending needs one person; shortening, ending a hold and destroying need a second one.
"""

from __future__ import annotations

import re
import time
from calendar import monthrange
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from recorder.atomic import locked
from recorder.canonical import JSON
from recorder.clock import rfc3339
from recorder.elsewhere import names_at_sites
from recorder.gm.x509 import Certificate
from recorder.manifest import read_manifest
from recorder.sealed import DataKey, FileSummary, SealedError
from recorder.signed import Signer
from recorder.statements import Statement, StatementError, append_statement, read_sealed, read_statements
from recorder.storage import files_directory

_PERIOD = re.compile(r"^P(?=\d)(?:(\d{1,3})Y)?(?:(\d{1,4})M)?(?:(\d{1,5})D)?$")
KINDS = ("original", "archive", "derived")
REVIEWS: Mapping[str, tuple[str, ...]] = {
    "unchecked": ("compliant", "to_rectify"),
    "compliant": ("to_rectify",),
    "to_rectify": ("rectified_pending",),
    "rectified_pending": ("confirmed", "to_rectify"),
    "confirmed": ("to_rectify",),
}
"""States of manual review, in the order of the field's table (0 to 4), and which may follow."""


class CustodyError(Exception):
    """It is not allowed; ``code`` is retention_running, on_hold, second_person, no_proposal,
    other_proposal, proposal_stands, no_hold, review_state, reviewer_is_agent, destroyed, archive_missing or
    retention_unknown; the text names what stands against it.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


@dataclass(frozen=True)
class Hold:
    """A legal hold that stands: nothing is destroyed."""

    number: int
    """Of the statement that placed it; names it."""
    at: str


@dataclass(frozen=True)
class Proposal:
    """What one person has proposed and a second one must approve."""

    number: int
    kind: str
    """``destruction`` or ``retention`` (a shorter one)."""
    at: str
    body: Mapping[str, JSON]


@dataclass
class Custody:
    """The state of a recording as its statements give it."""

    until: dict[str, int] = field(default_factory=dict)
    """Kind to UTC ns before which nothing of it is destroyed. A kind that is missing is kept for ever."""
    basis: str = ""
    holds: dict[int, Hold] = field(default_factory=dict)
    proposals: dict[str, Proposal] = field(default_factory=dict)
    review: str = "unchecked"
    destroyed: set[str] = field(default_factory=set)
    """Kinds."""
    key_destroyed: bool = False

    def due(self, now_ns: int) -> list[str]:
        """List the kinds whose time is over and that nothing holds."""
        if self.holds:
            return []
        return [
            kind
            for kind in KINDS
            if kind not in self.destroyed and kind in self.until and self.until[kind] <= now_ns
        ]

    def first_due_ns(self) -> int | None:
        """Return when the first kind may be destroyed; None while nothing may."""
        times = [self.until[kind] for kind in KINDS if kind in self.until and kind not in self.destroyed]
        return min(times) if times and not self.holds else None

    def to_json(self) -> dict[str, JSON]:
        """Return what the API and the command line show."""
        return {
            "basis": self.basis,
            "until": {kind: rfc3339(at) for kind, at in self.until.items()},
            "holds": [{"hold": hold.number, "at": hold.at} for hold in self.holds.values()],
            "proposals": [
                {"statement": one.number, "kind": one.kind, "at": one.at, "body": dict(one.body)}
                for one in self.proposals.values()
            ],
            "review": self.review,
            "destroyed": sorted(self.destroyed),
            "key_destroyed": self.key_destroyed,
        }


def read_custody(directory: Path, accepted: Collection[bytes]) -> Custody:
    """Read a recording's custody. ``accepted``: public points of the signers to build upon (``points``).

    Raise StatementError where the chain is broken, or a stranger signed in it.
    """
    custody = Custody()
    for statement in read_statements(directory):
        if statement.page.certificate.public_key.point not in accepted:
            who = statement.page.certificate.subject
            raise StatementError(f"statement {statement.number:06d} was signed by {who}, who is not accepted")
        _apply(custody, statement)
    return custody


def points(*certificates_pem: str) -> set[bytes]:
    """Return the public points of certificates."""
    return {Certificate.from_pem(pem).public_key.point for pem in certificates_pem}


def _apply(custody: Custody, statement: Statement) -> None:
    body, action = statement.body, statement.body.get("action")
    if statement.kind == "retention" and action == "set":
        custody.until |= _times(body.get("until"))
        custody.basis = str(body.get("basis", ""))
        custody.proposals.pop("retention", None)
    elif statement.kind in ("retention", "destruction") and action == "proposed":
        proposal = Proposal(statement.number, statement.kind, statement.at, body)
        custody.proposals[statement.kind] = proposal
    elif statement.kind in ("retention", "destruction") and action == "withdrawn":
        custody.proposals.pop(statement.kind, None)
    elif statement.kind == "hold" and action == "placed":
        custody.holds[statement.number] = Hold(statement.number, statement.at)
    elif statement.kind == "hold" and action == "released":
        custody.holds.pop(int(str(body.get("hold"))), None)
    elif statement.kind == "review" and body.get("state") in REVIEWS:
        custody.review = str(body["state"])
    elif statement.kind == "destruction" and action == "carried_out":
        kinds = body.get("kinds")
        custody.destroyed |= {str(kind) for kind in kinds} if isinstance(kinds, list) else set()
        custody.key_destroyed = custody.key_destroyed or body.get("key") is True
        custody.proposals.pop("destruction", None)


def _times(value: JSON) -> dict[str, int]:
    if not isinstance(value, Mapping):
        return {}
    return {kind: utc_ns(str(value[kind])) for kind in KINDS if kind in value}


def utc_ns(text: str) -> int:
    """Read an RFC 3339 time, or a date (its beginning, UTC), as UTC ns. Raise ValueError."""
    when = datetime.fromisoformat(text)
    when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
    return round(when.timestamp() * 1000) * 1_000_000


def after(utc: int, period: str) -> int:
    """Return a UTC time (ns) later by a period of ISO 8601 in years, months and days, such as ``P5Y6M``.

    By the calendar: the 31st of a month goes to the last day of a shorter one. Raise ValueError.
    """
    match = _PERIOD.match(period)
    if match is None:
        raise ValueError(f"{period!r} is no period such as P5Y, P6M or P90D")
    years, months, days = (int(part or 0) for part in match.groups())
    rest, begin = utc % 1_000_000_000, datetime.fromtimestamp(utc // 1_000_000_000, UTC)
    month = begin.month - 1 + months
    year = begin.year + years + month // 12
    day = min(begin.day, monthrange(year, month % 12 + 1)[1])
    end = begin.replace(year=year, month=month % 12 + 1, day=day) + timedelta(days=days)
    return int(end.timestamp()) * 1_000_000_000 + rest


@dataclass(frozen=True)
class Keeper:
    """Somebody acting on one recording: what opens it, who signs, who acts.

    Every method checks what stands against it first, raises CustodyError then, and signs one statement.
    """

    directory: Path
    data_key: DataKey
    signer: Signer
    accepted: Collection[bytes]
    actor: str
    """Who acts, as authenticated; two persons are two different ones."""
    operator: str = ""
    """Whom the actor, such as a bank's system, says it acts for; put on record, proves nothing."""

    def custody(self) -> Custody:
        """Read the state as it is now."""
        return read_custody(self.directory, self.accepted)

    def set_retention(
        self, until: Mapping[str, int], basis: str, reason: str = "", *, now_ns: int | None = None
    ) -> Statement:
        """Keep kinds until a time (UTC ns). A shorter time than stands is only proposed.

        So is a time that is over (``now_ns``, else the clock's) for a kind that has none: that is kept for
        ever. What is proposed counts after ``approve_retention`` by another person.
        """
        now = time.time_ns() if now_ns is None else now_ns
        with locked(self.directory):
            custody = self._living()
            shorter = [kind for kind, at in until.items() if at < custody.until.get(kind, now)]
            return self._sign(
                "retention",
                {
                    "action": "proposed" if shorter else "set",
                    "basis": basis,
                    "until": {kind: rfc3339(at) for kind, at in until.items()},
                },
                reason,
            )

    def approve_retention(self, number: int) -> Statement:
        """Let a shorter retention, proposed by another in statement ``number``, count."""
        with locked(self.directory):
            custody = self._living()
            proposal = self._proposal(custody, "retention", number)
            if custody.holds:
                raise _on_hold(custody)
            body = {"basis": proposal.body.get("basis"), "until": proposal.body.get("until")}
            return self._sign("retention", {"action": "set", "proposal": proposal.number, **body}, "")

    def place_hold(self, reason: str) -> Statement:
        """Forbid destruction until the hold is released."""
        with locked(self.directory):
            self._living()
            return self._sign("hold", {"action": "placed"}, reason)

    def release_hold(self, number: int | None, reason: str) -> Statement:
        """Release a hold (the only one, if no number is given) that another person placed."""
        with locked(self.directory):
            custody = self.custody()
            if number is None and len(custody.holds) == 1:
                number = next(iter(custody.holds))
            if number is None or number not in custody.holds:
                standing = ", ".join(str(one) for one in custody.holds) or "none"
                raise CustodyError("no_hold", f"name the hold to release; standing: {standing}")
            self._second_person(number)
            return self._sign("hold", {"action": "released", "hold": number}, reason)

    def review(self, state: str, comment: str, reviewer: str, agents: Collection[str]) -> Statement:
        """Set the state of manual review. ``agents`` are identities that must not review it themselves."""
        with locked(self.directory):
            custody = self._living()
            if state not in REVIEWS[custody.review]:
                follow = " or ".join(REVIEWS[custody.review])
                raise CustodyError("review_state", f"after {custody.review} comes {follow}, not {state}")
            if state != "rectified_pending" and {reviewer, self.actor} & set(agents):
                raise CustodyError("reviewer_is_agent", "nobody reviews a recording he took part in as agent")
            sealed = {"actor": self.actor, "reviewer": reviewer, "comment": comment, **self._for()}
            return append_statement(
                self.directory,
                "review",
                {"state": state, "number": list(REVIEWS).index(state)},
                self.signer,
                sealed=sealed,
                data_key=self.data_key,
            )

    def propose_destruction(self, kinds: Collection[str], reason: str, now_ns: int) -> Statement:
        """Propose to destroy kinds of files; a second person approves. Nothing is destroyed by this."""
        with locked(self.directory):
            custody = self._living()
            if "destruction" in custody.proposals:
                stands = custody.proposals["destruction"].number
                raise CustodyError("proposal_stands", f"statement {stands} proposes one: withdraw it first")
            may_be_destroyed(custody, kinds, now_ns)
            self._archive_stays(kinds)
            body = {"action": "proposed", "kinds": sorted(kinds), "basis": custody.basis}
            return self._sign("destruction", body, reason)

    def withdraw(self, kind: str, reason: str) -> Statement:
        """Withdraw what is proposed of a kind (``destruction`` or ``retention``)."""
        with locked(self.directory):
            custody = self.custody()
            if kind not in custody.proposals:
                raise CustodyError("no_proposal", f"no {kind} is proposed")
            return self._sign(kind, {"action": "withdrawn"}, reason)

    def approve_destruction(self, number: int, now_ns: int) -> Statement:
        """Sign the tombstone of what another person proposed; ``recorder.destruction`` then removes it.

        ``number`` is that of the statement that proposes it: nothing else is approved than what was read.
        """
        with locked(self.directory):
            custody = self._living()
            proposal = self._proposal(custody, "destruction", number)
            listed = proposal.body.get("kinds")
            kinds = {str(kind) for kind in listed} if isinstance(listed, list) else set()
            may_be_destroyed(custody, kinds, now_ns)
            self._archive_stays(kinds)
            proposed = self.sealed_part(proposal.number)
            files = [_tombstone(summary) for summary in self._files() if summary.kind in kinds]
            body = {
                "action": "carried_out",
                "proposal": proposal.number,
                "kinds": sorted(kinds),
                "basis": custody.basis,
                "until": {kind: rfc3339(custody.until[kind]) for kind in sorted(kinds)},
                "key": kinds | custody.destroyed >= set(KINDS),
                "destroyed": files,
            }
            reason = str(proposed.get("reason", ""))
            return self._sign("destruction", body, reason, proposed_by=str(proposed.get("actor", "")))

    def sealed_part(self, number: int) -> Mapping[str, JSON]:
        """Open what a statement keeps sealed: who, why. Raise CustodyError if it cannot be read."""
        statement = read_statements(self.directory)[number - 1]
        try:
            return read_sealed(self.directory, statement, self.data_key)
        except (StatementError, SealedError, OSError, ValueError) as error:
            detail = f"who acted in statement {number} cannot be read: {error}"
            raise CustodyError("second_person", detail) from None

    def _archive_stays(self, kinds: Collection[str]) -> None:
        """Refuse to destroy the originals while nothing was made of them that is to outlive them."""
        if "original" in kinds and "archive" not in kinds:
            made = [file for file in self._files() if file.kind == "archive"]
            away = names_at_sites(self.directory)
            folder = files_directory(self.directory)
            kept = [one for one in made if (folder / one.name).exists() or f"files/{one.name}" in away]
            if not made or len(kept) < len(made):
                raise CustodyError("archive_missing", "the originals stay: there is no archive composite yet")

    def _files(self) -> list[FileSummary]:
        stated = [file for one in read_statements(self.directory) for file in one.files]
        return [*read_manifest(self.directory).segments, *stated]

    def _living(self) -> Custody:
        custody = self.custody()
        if custody.key_destroyed:
            raise CustodyError("destroyed", "the recording was destroyed")
        return custody

    def _proposal(self, custody: Custody, kind: str, number: int) -> Proposal:
        proposal = custody.proposals.get(kind)
        if proposal is None:
            raise CustodyError("no_proposal", f"no {kind} is proposed")
        if proposal.number != number:
            raise CustodyError("other_proposal", f"statement {proposal.number} proposes it, not {number}")
        self._second_person(proposal.number)
        return proposal

    def _second_person(self, number: int) -> None:
        first = self.sealed_part(number).get("actor")
        if not isinstance(first, str) or not first or first == self.actor:
            raise CustodyError("second_person", "a second person is needed, not the one of the first step")

    def _for(self) -> dict[str, str]:
        return {"operator": self.operator} if self.operator else {}

    def _sign(self, kind: str, body: Mapping[str, object], reason: str, **more: str) -> Statement:
        sealed = {"actor": self.actor, "reason": reason, **self._for(), **more}
        return append_statement(
            self.directory, kind, body, self.signer, sealed=sealed, data_key=self.data_key
        )


def may_be_destroyed(custody: Custody, kinds: Collection[str], now_ns: int) -> None:
    """Raise CustodyError naming what stands against destroying these kinds."""
    if not kinds or set(kinds) - set(KINDS):
        raise CustodyError("retention_unknown", f"kinds are {', '.join(KINDS)}")
    if custody.holds:
        raise _on_hold(custody)
    for kind in sorted(kinds):
        if kind in custody.destroyed:
            raise CustodyError("destroyed", f"{kind} was destroyed already")
        if kind not in custody.until:
            raise CustodyError("retention_unknown", f"no retention was ever set for {kind}: it is kept")
        if custody.until[kind] > now_ns:
            when = rfc3339(custody.until[kind])
            raise CustodyError("retention_running", f"{kind} is kept until {when} ({custody.basis})")


def _on_hold(custody: Custody) -> CustodyError:
    standing = ", ".join(f"hold {hold.number} of {hold.at}" for hold in custody.holds.values())
    return CustodyError("on_hold", f"a legal hold stands: {standing}")


def _tombstone(summary: FileSummary) -> dict[str, JSON]:
    """What stays of a destroyed file: which it was, and its digests."""
    kept = ("name", "file_id", "kind", "media_type", "bytes", "sm3", "plain_bytes", "plain_sm3")
    value = summary.to_json()
    return {name: value[name] for name in kept}
