"""What requests and answers hold: strict pydantic models, unknown keys refused. /openapi.json is made from
them.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from recorder.custody import utc_ns
from recorder.template import LayoutField, OverlayList, Template


def _printable(value: str) -> str:
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise ValueError("control characters are not allowed")
    return value


def _path_segment(value: str) -> str:
    if value in (".", ".."):
        raise ValueError("must not be . or ..")
    return value


Text = Annotated[str, AfterValidator(_printable)]
RoomName = Annotated[
    str,
    StringConstraints(pattern=r"^[\w.@:+-]+$", min_length=1, max_length=64),
    AfterValidator(_path_segment),
]
Identity = Annotated[Text, StringConstraints(pattern=r"^[^/\s]+$", min_length=1, max_length=128)]
Role = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=32)]
DisplayName = Annotated[Text, StringConstraints(max_length=128)]
BusinessNo = Annotated[Text, StringConstraints(min_length=1, max_length=128)]
Mode = Literal["single", "composite", "both"]
Mime = Annotated[str, StringConstraints(pattern=r"^(audio|video)/[A-Za-z0-9.-]+$", max_length=32)]
METADATA_LIMIT = 16 * 1024


def _small(value: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(value, ensure_ascii=False).encode()) > METADATA_LIMIT:
        raise ValueError(f"larger than {METADATA_LIMIT} bytes of JSON")
    return value


def _moment(value: str) -> str:
    utc_ns(value)
    return value


Moment = Annotated[str, StringConstraints(max_length=40), AfterValidator(_moment)]
"""A date or an RFC 3339 time."""
FreeObject = Annotated[dict[str, Any], AfterValidator(_small)]


class Request(BaseModel):
    """A body that a client sends."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Grants(Request):
    """What a participant may do. What is not given follows from its role."""

    publish: bool | None = None
    subscribe: bool | None = None
    record: bool | None = None
    hidden: bool | None = None
    admin: bool | None = None


class CompositeWanted(Request):
    """One more composite of a recording, of kind derived."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,59}\.(mp4|m4a)$")] = Field(
        description="Its file; composite.* and single-* are taken."
    )
    template: Template = Field(default_factory=Template)

    @model_validator(mode="after")
    def _named_as_it_is(self) -> CompositeWanted:
        if self.name.startswith(("composite.", "single-")):
            raise ValueError("composite.* and single-* are the recording's own")
        if self.name.endswith(".mp4") != self.template.video:
            raise ValueError("a composite with pictures is named .mp4, one without .m4a")
        return self


Reason = Annotated[Text, StringConstraints(min_length=1, max_length=500)]
Operator = Annotated[Text, StringConstraints(max_length=128)]


class RetentionWanted(Request):
    """How long a recording is kept at least, from its end."""

    basis: Annotated[Text, StringConstraints(min_length=1, max_length=64)] = Field(
        description="The rule it rests on; a policy of the settings, unless until is given."
    )
    until: Moment | None = Field(default=None, description="Of all kinds of files.")


class RecordingStart(Request):
    """Starts a recording."""

    business_no: BusinessNo = Field(description="The transaction it proves; unique in the tenant.")
    mode: Mode = "composite"
    template: Template = Field(default_factory=Template)
    composites: list[CompositeWanted] = Field(
        default_factory=list,
        max_length=4,
        description="Further composites beside the one of record, such as the customer alone.",
    )
    metadata: FreeObject = Field(default_factory=dict, description="Free; sealed with the recording.")
    attempt: int | None = Field(
        default=None, ge=1, le=1000, description="Needed for a further recording after the first has ended."
    )
    supersedes: Annotated[str, StringConstraints(pattern=r"^[0-9a-f-]{36}$")] | None = None
    retention: RetentionWanted | None = None

    @model_validator(mode="after")
    def _names_differ(self) -> RecordingStart:
        names = [one.name for one in self.composites]
        if len(set(names)) < len(names):
            raise ValueError("two composites have the same name")
        return self


class AutoRecording(RecordingStart):
    """A recording that starts by itself."""

    auto: Literal[True] = True
    roles: list[Role] = Field(
        default_factory=list,
        max_length=8,
        description="Starts when all of these roles are present. Empty: with the first participant.",
    )


class RoomCreate(Request):
    """Opens a room."""

    name: RoomName
    codecs: list[Mime] | None = Field(default=None, min_length=1, max_length=8, description="Best first.")
    recording: AutoRecording | None = None


class TokenCreate(Request):
    """Mints a client token."""

    identity: Identity
    role: Role
    name: DisplayName = ""
    ttl_s: int | None = Field(default=None, ge=10)
    grants: Grants | None = None


class ParticipantPatch(Request):
    """Changes a participant; so far: mutes it for all."""

    muted: bool
    kind: Literal["audio", "video"] | None = None
    source: Literal["camera", "microphone", "screen", "document"] | None = None


class RecordingPatch(Request):
    """Changes the picture of a running recording within a second; goes into its journal."""

    layout: LayoutField | None = None
    overlays: OverlayList | None = None

    @model_validator(mode="after")
    def _something(self) -> RecordingPatch:
        if self.layout is None and self.overlays is None:
            raise ValueError("give layout or overlays")
        return self


class StopRequest(Request):
    """Ends a recording."""

    reason: Annotated[Text, StringConstraints(max_length=128)] = "requested"


class Step(Request):
    """A step of the business flow."""

    code: Annotated[Text, StringConstraints(min_length=1, max_length=64)]
    name: DisplayName = ""


class Marker(Request):
    """The start or the end of a step."""

    step: Step
    action: Literal["start", "end"]
    result: Annotated[Text, StringConstraints(max_length=64)] | None = None
    data: FreeObject = Field(default_factory=dict)


class OnRecord(Request):
    """Why something is done to a recording; sealed in its statement."""

    reason: Reason
    operator: Operator = Field(default="", description="Whom the caller acts for; put on record.")


class Approval(Request):
    """Approves what another API key proposed."""

    proposal: int = Field(ge=1, description="Number of the statement that proposes it: of what was read.")
    operator: Operator = ""


class HoldRelease(OnRecord):
    """Releases a hold that another API key placed."""

    hold: int | None = Field(default=None, ge=1, description="Which; needed if there are several.")


class RetentionPatch(OnRecord):
    """Keeps kinds of files until a time. A shorter one is only proposed."""

    basis: Annotated[Text, StringConstraints(min_length=1, max_length=64)]
    until: dict[Literal["original", "archive", "derived"], Moment] = Field(min_length=1)


class ReviewRequest(Request):
    """The outcome of a manual review."""

    state: Literal["compliant", "to_rectify", "rectified_pending", "confirmed"]
    reviewer: Identity = Field(description="Must not have taken part as an agent.")
    comment: Annotated[Text, StringConstraints(max_length=2000)] = ""


class ClipRequest(OnRecord):
    """Cuts a stretch out of the archive composite."""

    from_ms: int = Field(ge=0)
    to_ms: int = Field(ge=1)
    viewer: Operator = Field(default="", description="Put this name over every picture too.")

    @model_validator(mode="after")
    def _forwards(self) -> ClipRequest:
        if self.to_ms <= self.from_ms:
            raise ValueError("to_ms lies after from_ms")
        return self


class CopyRequest(OnRecord):
    """Copies the archive composite for one viewer."""

    viewer: Annotated[Text, StringConstraints(min_length=1, max_length=128)] = Field(
        description="Tiled over every picture, with the day."
    )


class ExportRequest(OnRecord):
    """Takes a package for the court out of the house."""

    files: list[Text] | None = Field(
        default=None, min_length=1, max_length=100, description="Of these names only. Default: all."
    )
    sealed: Literal["archive", "all", "none"] = Field(
        default="archive", description="Which sealed files go in too, to be opened with OpenSSL alone."
    )
    report: bool = Field(default=True, description="With the verification report (HTML and PDF).")


class DestructionProposal(OnRecord):
    """Proposes to destroy files whose retention is over."""

    kinds: list[Literal["original", "archive", "derived"]] = Field(
        default=["original", "archive", "derived"], min_length=1, max_length=3
    )


class InviteCreate(Request):
    """Makes a one-time code that lets a browser in."""

    room: RoomName
    role: Role
    identity: Identity | None = None
    name: DisplayName = ""
    ttl_s: int | None = Field(default=None, ge=10, le=86400)
    grants: Grants | None = None


class SessionCreate(Request):
    """Exchanges a one-time code for a session cookie and a client token."""

    code: Annotated[str, StringConstraints(min_length=1, max_length=64)]


class Answer(BaseModel):
    """A body that the server sends."""

    model_config = ConfigDict(extra="forbid")


class Track(Answer):
    id: str
    kind: str
    source: str
    mime: str
    muted: bool


class Participant(Answer):
    identity: str
    role: str
    seat: str
    name: str
    connected: bool
    tracks: list[Track]


class Participants(Answer):
    participants: list[Participant]


class Room(Answer):
    name: str
    codecs: list[str]
    created_at: str
    participants: int
    recordings: list[str] = Field(description="Ids of the recordings that run.")


class Token(Answer):
    token: str
    identity: str
    seat: str
    expires_at: str


class File(Answer):
    name: str
    kind: Literal["original", "archive", "derived"]
    media_type: str
    bytes: int
    plain_bytes: int
    sm3: str
    plain_sm3: str
    duration_ms: int | None


class Gap(Answer):
    from_ms: int
    to_ms: int
    reason: str
    track: int | None = None


class Composing(Answer):
    state: Literal["waiting", "running", "done", "failed", "none"]
    progress: float | None = Field(description="0–1")
    lag_s: float | None = Field(
        default=None, description="How far a composite that follows its call is behind it."
    )
    detail: str | None = None


class Recording(Answer):
    id: str
    tenant: str
    room: str
    business_no: str
    attempt: int
    supersedes: str | None
    state: Literal["arming", "recording", "paused", "stopping", "sealed", "recovered", "failed", "destroyed"]
    failure: str | None
    mode: Mode
    created_at: str
    armed_at: str | None
    stopped_at: str | None
    duration_ms: int | None
    parts: int
    gaps: list[Gap]
    files: list[File]
    composing: Composing
    assurance: str
    template: dict[str, Any]
    metadata: dict[str, Any]
    participants: list[dict[str, Any]]


class Hold(Answer):
    hold: int
    at: str


class Proposal(Answer):
    statement: int
    kind: str
    at: str
    body: dict[str, Any]


class Custody(Answer):
    basis: str
    until: dict[str, str] = Field(description="Kind of files to time. A kind that is missing is kept.")
    holds: list[Hold]
    proposals: list[Proposal] = Field(description="Wait for a second person.")
    review: str
    destroyed: list[str]
    key_destroyed: bool


class CopyBegun(Answer):
    recording: str
    file: str = Field(description="Fetch it: 202 with progress until it is made.")
    state: str


class Destruction(Answer):
    custody: Custody
    certificate: dict[str, Any] = Field(description="Signed; keep it: nobody can make it again.")


class Recordings(Answer):
    recordings: list[Recording]
    next: str | None


class Event(Answer):
    id: str
    seq: int
    type: str
    time: str
    tenant: str
    room: str | None
    recording: str | None
    actor: str
    data: dict[str, Any]


class Events(Answer):
    events: list[Event]
    next: int


class AuditEntry(Event):
    address: str = Field(description="From where it was asked; empty for what the server did by itself.")
    purpose: str


class AuditEntries(Answer):
    entries: list[AuditEntry]
    next: int


class RoomQuality(Answer):
    reports: list[dict[str, Any]] = Field(
        description="The last of each participant, as docs/signal.md has it."
    )


class Invite(Answer):
    code: str
    url: str
    expires_at: str


class Session(Answer):
    identity: str
    role: str
    seat: str
    room: str
    name: str
    grants: dict[str, bool]
    token: str
    expires_at: str


class Health(Answer):
    status: Literal["ok", "draining", "unready"]
    checks: dict[str, bool] = Field(default_factory=dict)
