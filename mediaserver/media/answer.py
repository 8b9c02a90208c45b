"""Choose codecs and write answers (RFC 8829): one bundled, lite, passive transport with all our
candidates."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mediaserver.forwarder.interface import DEPENDENCY
from mediaserver.media.ice import Credentials
from mediaserver.media.sdp import Codec, MediaOffer, Offer

MID = "urn:ietf:params:rtp-hdrext:sdes:mid"
RID = "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id"
REPAIRED_RID = "urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id"
TRANSPORT_CC = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01"
ABS_SEND_TIME = "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time"
AUDIO_LEVEL = "urn:ietf:params:rtp-hdrext:ssrc-audio-level"
ORIENTATION = "urn:3gpp:video-orientation"

PUBLISH_EXTENSIONS = (
    MID,
    TRANSPORT_CC,
    ABS_SEND_TIME,
    AUDIO_LEVEL,
    ORIENTATION,
    DEPENDENCY,
    RID,
    REPAIRED_RID,
)
SUBSCRIBE_EXTENSIONS = (MID, TRANSPORT_CC, ABS_SEND_TIME, AUDIO_LEVEL, ORIENTATION, DEPENDENCY)
SCALABLE = ("video/VP9", "video/AV1")
"""Codecs whose layers the forwarder can tell in one stream."""
_FEEDBACK = ("nack", "nack pli", "ccm fir", "transport-cc", "goog-remb")
START_KBPS = 1_200
"""Where libwebrtc's estimator begins, kbit/s. With its own 300 Chromium 156 begins 720p
at 480x270 and is still there after 6 s, whatever the estimate; with 1,200 it begins at 960x540."""
LEAST_KBPS = 120
"""What the estimator does not fall below, kbit/s. From 15 % loss on it falls as far as it may, whatever the
line bears, and libwebrtc sends no faster than 1.1 times it, sound included: Chromium's own least, 84, is used
up by sound and picture, what is to be resent comes on top, and all pictures wait for up to 2 s."""
DEFAULT_CODECS = ("VP8", "H264", "opus")
KINDS = {
    "vp8": "video",
    "vp9": "video",
    "h264": "video",
    "av1": "video",
    "opus": "audio",
    "pcma": "audio",
    "pcmu": "audio",
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One address a client is told to try."""

    address: str
    port: int
    tcp: bool = False
    """ICE-TCP, passive (RFC 6544): the client connects."""


@dataclass(slots=True)
class MediaAnswer:
    """The answer to one m-line; without codecs it is a refusal."""

    offer: MediaOffer
    codecs: list[Codec] = field(default_factory=list)
    direction: str = "inactive"
    extensions: dict[str, int] = field(default_factory=dict)
    ssrc: int | None = None
    rtx_ssrc: int | None = None
    cname: str = ""
    stream_id: str = ""
    track_id: str = ""
    receive_rids: list[str] = field(default_factory=list)
    """The simulcast layers we take."""


@dataclass(frozen=True, slots=True)
class Local:
    """Our side of the transport, as the answer states it."""

    credentials: Credentials
    fingerprint: str
    candidates: Sequence[Candidate]
    setup: str = "passive"
    """Our DTLS role; ``active`` for a client that is passive itself (RFC 5763 section 5)."""


def mime(codec: Codec, kind: str) -> str:
    """Return the media type of a codec as the recorder spells it (``video/VP8``, ``audio/opus``)."""
    name = codec.name.lower() if codec.name.lower() == "opus" else codec.name.upper()
    return f"{kind}/{name}"


def _h264_rank(codec: Codec) -> int | None:
    """Order H.264 offers: constrained baseline only, packetization-mode 1 before 0; None is not usable."""
    profile = codec.fmtp.get("profile-level-id", "42001f").lower()
    # RFC 6184 table 5, reduced: 42xx with or without constraint flags; senders of plain 42001f in WebRTC
    # (Chromium, aiortc) keep to the constrained tools.
    if len(profile) != 6 or not profile.startswith("42"):
        return None
    constrained = profile[2:4] in ("e0", "c0")
    mode = codec.fmtp.get("packetization-mode", "0")
    if mode not in ("0", "1"):
        return None
    return (0 if mode == "1" else 2) + (0 if constrained else 1)


def usable(codec: Codec, name: str) -> bool:
    """Tell whether an offered codec is what a room's list calls ``name``."""
    if codec.name.lower() != name.lower():
        return False
    match name.lower():
        case "h264":
            return codec.clock_rate == 90_000 and _h264_rank(codec) is not None
        case "vp9":
            return codec.clock_rate == 90_000 and codec.fmtp.get("profile-id", "0") == "0"
        case "av1":
            return codec.clock_rate == 90_000 and codec.fmtp.get("profile", "0") == "0"
        case "vp8":
            return codec.clock_rate == 90_000
        case "opus":
            return codec.clock_rate == 48_000
        case _:
            return codec.clock_rate == 8_000


def choose(media: MediaOffer, room_codecs: Iterable[str]) -> list[Codec]:
    """Return the m-line's usable codecs in the room's order, one payload type for each name (the best)."""
    chosen: list[Codec] = []
    for name in room_codecs:
        if KINDS.get(name.lower()) != media.kind:
            continue
        fitting = [codec for codec in media.codecs.values() if usable(codec, name)]
        if fitting:
            chosen.append(min(fitting, key=_rank))
    return chosen


def redundancy(media: MediaOffer, codec: Codec, wish: str, *, publishing: bool) -> int | None:
    """Return the payload type of RED (RFC 2198) that is agreed for a codec, None for none.

    ``wish``: ``off``; ``accept``: to a publisher if it offers RED before the codec, as one that prefers it
    does; ``prefer``: to every publisher that offers it. Who receives gets it whenever it is offered. None
    with RTX for sound, which would not say of which of both payload types a resent packet is.
    """
    if codec.red is None or codec.rtx is not None or wish == "off":
        return None
    if publishing and wish == "accept":
        order = [int(word) for word in media.formats]
        if order.index(codec.red) > order.index(codec.payload_type):
            return None
    return codec.red


def _rank(codec: Codec) -> int:
    rank = _h264_rank(codec) if codec.name.upper() == "H264" else 0
    return 9 if rank is None else rank


def names(media: MediaOffer) -> list[str]:
    """Return the names of the real codecs of an m-line, for error texts."""
    helpers = {"rtx", "red", "ulpfec", "flexfec-03", "cn", "telephone-event"}
    return list(dict.fromkeys(c.name for c in media.codecs.values() if c.name.lower() not in helpers))[:16]


def feedback(codec: Codec) -> list[str]:
    """Return what we answer to the offered feedback: transport-cc, REMB where there is none."""
    unused = "goog-remb" if "transport-cc" in codec.feedback else ""
    return [item for item in _FEEDBACK if item in codec.feedback and item != unused]


def subscribe_extensions(media: MediaOffer, codecs: Sequence[Codec]) -> dict[str, int]:
    """Return the header extensions of what is sent on an m-line: transport-cc numbers if the client answers
    them with feedback, else the sending time that a client's REMB is made of."""
    numbered = TRANSPORT_CC in media.extensions and any("transport-cc" in c.feedback for c in codecs)
    unused = ABS_SEND_TIME if numbered else TRANSPORT_CC
    return extensions(media.extensions, [uri for uri in SUBSCRIBE_EXTENSIONS if uri != unused])


def publish_extensions(media: MediaOffer, codec: Codec, supported: Sequence[str]) -> dict[str, int]:
    """Return the header extensions of what is received. Chromium leaves the picture ids out of VP8 payloads
    that have dependency descriptors, so those are for the codecs whose layers are in one stream."""
    unused = "" if mime(codec, media.kind) in SCALABLE else DEPENDENCY
    return extensions(media.extensions, [uri for uri in supported if uri != unused])


def extensions(offered: Mapping[str, int], supported: Iterable[str]) -> dict[str, int]:
    """Return those header extensions both sides know, with the client's ids."""
    return {uri: offered[uri] for uri in supported if uri in offered}


def write(offer: Offer, answers: Sequence[MediaAnswer], local: Local) -> str:
    """Write the answer; ``answers`` has one entry per m-line of the offer, in its order."""
    live = [answer for answer in answers if answer.codecs]
    lines = [
        "v=0",
        f"o=- {secrets.randbits(62)} 2 IN IP4 127.0.0.1",
        "s=-",
        "t=0 0",
        "a=ice-lite",
    ]
    if offer.bundle:
        lines.append(" ".join(["a=group:BUNDLE", *(answer.offer.mid for answer in live)]))
    if offer.mixed_extensions:
        lines.append("a=extmap-allow-mixed")
    lines.append("a=msid-semantic: WMS *")
    for answer in answers:
        lines += _section(answer, local) if answer.codecs else _refusal(answer.offer)
    return "\r\n".join(lines) + "\r\n"


def write_offer(sections: Sequence[MediaAnswer], local: Local, origin: str, *, mixed: bool) -> str:
    """Write an offer of ours that renegotiates a connection; ``origin`` is the value of its ``o=`` line.

    A section without codecs is closed: its port is zero, and its place may be recycled (RFC 8829
    section 5.2.2).
    """
    lines = ["v=0", f"o={origin}", "s=-", "t=0 0", "a=ice-lite"]
    lines.append(" ".join(["a=group:BUNDLE", *(one.offer.mid for one in sections if one.codecs)]))
    if mixed:
        lines.append("a=extmap-allow-mixed")
    lines.append("a=msid-semantic: WMS *")
    for one in sections:
        if one.codecs:
            # RFC 8842 section 5.3: who offers anew says actpass, and the roles stay as they are.
            lines += ["a=setup:actpass" if x == "a=setup:passive" else x for x in _section(one, local)]
        else:
            lines += _refusal(one.offer)
    return "\r\n".join(lines) + "\r\n"


def fragment(local: Local, mids: Sequence[str]) -> str:
    """Write the body that answers an ICE restart (RFC 9725 section 4.3.3)."""
    lines = [
        f"a=ice-ufrag:{local.credentials.ufrag}",
        f"a=ice-pwd:{local.credentials.password}",
        "a=ice-lite",
    ]
    if mids:
        lines += ["m=audio 9 UDP/TLS/RTP/SAVPF 0", f"a=mid:{mids[0]}"]
    lines += _candidates(local.candidates)
    return "\r\n".join(lines) + "\r\n"


def _refusal(media: MediaOffer) -> list[str]:
    lines = [f"m={media.kind} 0 {media.protocol} {' '.join(media.formats)}", "c=IN IP4 0.0.0.0", "a=inactive"]
    if media.mid:
        lines.append(f"a=mid:{media.mid}")
    return lines


def _candidates(candidates: Sequence[Candidate]) -> list[str]:
    lines = []
    for order, candidate in enumerate(candidates):
        # RFC 8445 section 5.1.2.1: host type preference 126; the first address is the one we like best.
        # RFC 6544 section 4.2: over TCP a lower one (90), and 4 << 13 for a passive host candidate.
        preference, local = (90, (4 << 13) + 8_191 - order) if candidate.tcp else (126, 65_535 - order)
        priority = (preference << 24) + (local << 8) + 255
        protocol, end = ("tcp", " tcptype passive") if candidate.tcp else ("udp", "")
        lines.append(
            f"a=candidate:{order + 1} 1 {protocol} {priority} {candidate.address} {candidate.port} "
            f"typ host{end}"
        )
    return [*lines, "a=end-of-candidates"]


def _section(answer: MediaAnswer, local: Local) -> list[str]:
    media = answer.offer
    publishing = answer.direction == "recvonly"
    types = [number for codec in answer.codecs for number in _types(codec, publishing=publishing)]
    port = local.candidates[0].port if local.candidates else 9
    address = local.candidates[0].address if local.candidates else "0.0.0.0"  # noqa: S104 - SDP's "none yet"
    family = "IP6" if ":" in address else "IP4"
    lines = [
        f"m={media.kind} {port} {media.protocol} {' '.join(map(str, types))}",
        f"c=IN {family} {address}",
        "a=rtcp:9 IN IP4 0.0.0.0",
        f"a=ice-ufrag:{local.credentials.ufrag}",
        f"a=ice-pwd:{local.credentials.password}",
        f"a=fingerprint:sha-256 {local.fingerprint}",
        f"a=setup:{local.setup}",
        f"a={answer.direction}",
        "a=rtcp-mux",
    ]
    if media.mid:
        lines.insert(7, f"a=mid:{media.mid}")
    lines += [f"a=extmap:{number} {uri}" for uri, number in answer.extensions.items()]
    for codec in answer.codecs:
        lines += _codec(codec, publishing=publishing)
    if answer.receive_rids:
        lines += [f"a=rid:{rid} recv" for rid in answer.receive_rids]
        lines.append(f"a=simulcast:recv {';'.join(answer.receive_rids)}")
    if answer.ssrc is not None:
        lines.append(f"a=msid:{answer.stream_id} {answer.track_id}")
        sources = [answer.ssrc] if answer.rtx_ssrc is None else [answer.ssrc, answer.rtx_ssrc]
        if answer.rtx_ssrc is not None:
            lines.append(f"a=ssrc-group:FID {answer.ssrc} {answer.rtx_ssrc}")
        for ssrc in sources:
            lines.append(f"a=ssrc:{ssrc} cname:{answer.cname}")
            lines.append(f"a=ssrc:{ssrc} msid:{answer.stream_id} {answer.track_id}")
    return lines + _candidates(local.candidates)


def _types(codec: Codec, *, publishing: bool) -> list[int]:
    """Return its payload types; browsers send the first one of an answer."""
    red_first = (codec.red, codec.payload_type) if publishing else (codec.payload_type, codec.red)
    return [number for number in (*red_first, codec.rtx) if number is not None]


def _codec(codec: Codec, *, publishing: bool) -> list[str]:
    number = codec.payload_type
    channels = f"/{codec.channels}" if codec.channels > 1 else ""
    lines = [f"a=rtpmap:{number} {codec.name}/{codec.clock_rate}{channels}"]
    lines += [f"a=rtcp-fb:{number} {item}" for item in feedback(codec)]
    settings = dict(codec.fmtp)
    if codec.name.lower() == "opus":
        settings.setdefault("useinbandfec", "1")
    elif publishing and "transport-cc" in codec.feedback:
        settings["x-google-start-bitrate"] = str(START_KBPS)
        settings["x-google-min-bitrate"] = str(LEAST_KBPS)
    if settings:
        body = ";".join(f"{key}={value}" if value else key for key, value in settings.items())
        lines.append(f"a=fmtp:{number} {body}")
    if codec.rtx is not None:
        lines += [f"a=rtpmap:{codec.rtx} rtx/{codec.clock_rate}", f"a=fmtp:{codec.rtx} apt={number}"]
    if codec.red is not None:
        lines.append(f"a=rtpmap:{codec.red} red/{codec.clock_rate}{channels}")
        lines.append(f"a=fmtp:{codec.red} {number}/{number}")
    return lines
