"""The messages of ``/v1/signal``: strict models, unknown keys refused, every size bounded.

``python -m mediaserver.signal.messages`` prints their JSON schema as docs/signal.md has it.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

MAX_MESSAGE = 320 * 1024
"""Bytes of one message; an SDP of 256 KiB fits."""
MAX_SDP = 256 * 1024
Id = Annotated[int, Field(ge=1, lt=1 << 53, description="Rises with every request of a signalling session.")]
Seq = Annotated[int, Field(ge=0, lt=1 << 53)]
Sdp = Annotated[str, Field(min_length=1, max_length=MAX_SDP)]
SessionId = Annotated[str, Field(min_length=1, max_length=64, description="Id of a media session.")]
TrackId = Annotated[str, Field(min_length=1, max_length=64)]
Token = Annotated[str, Field(min_length=1, max_length=4096, description="A client token (docs/tokens.md).")]
Source = Literal["camera", "screen", "document"]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Millis = Annotated[float, Field(ge=0, le=86_400_000, allow_inf_nan=False)]


class Message(BaseModel):
    """What every message keeps to."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Join(Message):
    """First message: enters the room of the token. Answered by `welcome`."""

    type: Literal["join"]
    id: Id
    token: Token


class Resume(Message):
    """First message after a lost socket: goes on where `last_seq` was the last one seen. Answered by
    `welcome`, then by everything missed. `resume_expired` if the server knows the session no more or
    has thrown away what was missed: join anew, media sessions live on.
    """

    type: Literal["resume"]
    id: Id
    token: Token
    resume: Annotated[str, Field(min_length=16, max_length=64, description="From `welcome`; a secret.")]
    last_seq: Seq


class Publish(Message):
    """Offers a camera with its microphone, a screen or a document; what WHIP does. One session for each
    source. Answered by `answered`.
    """

    type: Literal["publish"]
    id: Id
    source: Source = "camera"
    sdp: Sdp


class Subscribe(Message):
    """Begins the one connection for everybody's tracks: `sdp` is an offer with one receiving m-line of
    each kind wanted (answered by `answered`); or takes up the connection `session` made before, after a
    join anew (answered by `done`). Offers of the server follow.
    """

    type: Literal["subscribe"]
    id: Id
    sdp: Sdp | None = None
    session: SessionId | None = None


class AnswerMessage(Message):
    """The client's answer to the server's `offer` of this version. Answered by `done`."""

    type: Literal["answer"]
    id: Id
    session: SessionId
    version: Annotated[int, Field(ge=1, lt=1 << 31)]
    sdp: Sdp


class HangUp(Message):
    """Ends a media session of this participant. Answered by `done`."""

    type: Literal["hangup"]
    id: Id
    session: SessionId


class Mute(Message):
    """Mutes or unmutes tracks for everyone, the recording included; of others with the grant `admin`.
    Answered by `done`.
    """

    type: Literal["mute"]
    id: Id
    muted: bool
    kind: Literal["audio", "video"] | None = None
    source: Literal["camera", "microphone", "screen", "document"] | None = None
    identity: Annotated[str, Field(min_length=1, max_length=128)] | None = None


class Wish(Message):
    """Which layer of a track this client would like."""

    track: TrackId
    preferred: Annotated[int, Field(ge=0, le=7, description="Spatial layer, 0 the smallest.")] | None = None
    maximum: Annotated[int, Field(ge=0, le=7, description="Never a larger one than this.")] | None = None
    temporal: Annotated[int, Field(ge=0, le=7, description="Highest temporal layer.")] | None = None


class Layers(Message):
    """Layer wishes for tracks of the subscribing connection. Answered by `done`."""

    type: Literal["layers"]
    id: Id
    session: SessionId
    wishes: Annotated[list[Wish], Field(min_length=1, max_length=64)]


class Stream(Message):
    """One RTP stream as getStats saw it since the last report."""

    direction: Literal["in", "out"]
    kind: Literal["audio", "video"]
    track: TrackId | None = None
    packets: Count
    lost: Count = 0
    jitter_ms: Millis = 0.0
    freeze_ms: Millis = 0.0
    kbps: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0.0
    fps: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 0.0
    width: Annotated[int, Field(ge=0, le=16384)] = 0
    height: Annotated[int, Field(ge=0, le=16384)] = 0


class Quality(Message):
    """What the client measured; at most one every 2 s. Answered by `done`."""

    type: Literal["quality"]
    id: Id
    rtt_ms: Millis | None = None
    streams: Annotated[list[Stream], Field(max_length=64)]


class Ping(Message):
    """Says that the client lives; `last_seq` lets the server forget what has arrived. Answered by `pong`."""

    type: Literal["ping"]
    id: Id
    last_seq: Seq


class Leave(Message):
    """Ends this participant's media sessions of this signalling session, and itself. The server closes."""

    type: Literal["leave"]
    id: Id


Request = (
    Join | Resume | Publish | Subscribe | AnswerMessage | HangUp | Mute | Layers | Quality | Ping | Leave
)
Discriminated = Annotated[Request, Field(discriminator="type")]
REQUEST: TypeAdapter[Request] = TypeAdapter(Discriminated)


class ServerMessage(BaseModel):
    """What every message of the server has."""

    model_config = ConfigDict(extra="forbid")
    seq: Annotated[int, Field(description="Rises by one; messages missed come again after a resume.")]


class Welcome(ServerMessage):
    """Who is there. `last_id` is the last request the server took: send later ones again after a resume.
    Has no place in the order: its `seq` is that of the last message before it.
    """

    type: Literal["welcome"] = "welcome"
    re: int
    resumed: bool
    resume: str
    grace_s: float
    last_id: int
    room: str
    identity: str
    seat: str
    participants: list[dict[str, Any]]
    recordings: list[str]


class Answered(ServerMessage):
    """The server's SDP answer to `publish` or `subscribe`. `ice_servers` are STUN and TURN servers, as
    RTCPeerConnection takes them. PATCH `/v1/sessions/{session}` restarts ICE, `etag` is for its If-Match.
    """

    type: Literal["answered"] = "answered"
    re: int
    session: str
    sdp: str
    etag: str
    ice_servers: list[dict[str, str]]


class Done(ServerMessage):
    """The request was carried out."""

    type: Literal["done"] = "done"
    re: int


class Pong(ServerMessage):
    """Answers `ping`, outside the order like `welcome`."""

    type: Literal["pong"] = "pong"
    re: int
    time: str


class Failed(ServerMessage):
    """A request was refused, with the problem HTTP would answer; `re` is 0 when it was not readable."""

    type: Literal["error"] = "error"
    re: int
    problem: dict[str, Any]


class OfferMessage(ServerMessage):
    """Renegotiates the subscribing connection: apply `sdp` and send `answer`. Empty `sdp`: nothing to
    negotiate, only `tracks` and `skipped` to be told. `tracks` says which mid carries whose track,
    `skipped` which tracks this client cannot take and why.
    """

    type: Literal["offer"] = "offer"
    session: str
    version: int
    sdp: str
    tracks: list[dict[str, Any]]
    skipped: list[dict[str, Any]]


class EventMessage(ServerMessage):
    """An event of the room, in the envelope of `GET /v1/events`."""

    type: Literal["event"] = "event"
    event: dict[str, Any]


ANSWERS: tuple[type[ServerMessage], ...] = (
    Welcome,
    Answered,
    Done,
    Pong,
    Failed,
    OfferMessage,
    EventMessage,
)


def documentation() -> str:
    """Give the messages in Markdown, each with its JSON schema, as docs/signal.md has them."""
    parts = ["## From the client\n"]
    requests: tuple[type[BaseModel], ...] = Request.__args__
    for models, heading in ((requests, ""), (ANSWERS, "## From the server\n")):
        parts += [heading] if heading else []
        for model in models:
            schema = model.model_json_schema()
            name = str(model.model_fields["type"].default or schema["properties"]["type"]["const"])
            if name == "PydanticUndefined":
                name = str(schema["properties"]["type"]["const"])
            text = " ".join((model.__doc__ or "").split())
            schema.pop("description", None)
            for inner in schema.get("$defs", {}).values():
                inner.pop("description", None)
            body = json.dumps(schema, ensure_ascii=False)
            parts.append(f"### `{name}`\n\n{text}\n\n```json\n{body}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(documentation(), end="")
