"""Read WebRTC offers (RFC 8866, RFC 8829, RFC 8843) line by line, bounded in size, time and depth.

Own parser, because aiortc's can be stalled for minutes by a hostile offer. Linear in the input; every list is
limited; what is not understood is skipped; what is understood but wrong raises ``SdpError``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mediaserver.media.layer_choice import MAX_LAYERS

MAX_BYTES = 256 * 1024
"""A Chromium offer needs about 4 KiB per m-line."""
MAX_LINES = 12_000
MAX_LINE = 4_096
MAX_MEDIA = 64
MAX_EXTENSIONS = 64
MAX_SSRCS = 32
MAX_SETTINGS = 1_024
MAX_FEEDBACK = 16

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]{1,64}")
_ICE = re.compile(r"[A-Za-z0-9+/=_-]{4,256}")  # RFC 8839 has no "=", "_", "-", some senders do
_FINGERPRINT = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){15,63}")
_NUMBER = re.compile(r"\d{1,10}")
DIRECTIONS = ("sendrecv", "sendonly", "recvonly", "inactive")
_STATIC = {0: ("PCMU", 8000), 8: ("PCMA", 8000), 9: ("G722", 8000), 13: ("CN", 8000)}


class SdpError(ValueError):
    """The client's SDP cannot be used; the text says which line and why (never quotes credentials)."""


@dataclass(slots=True)
class Codec:
    """One payload type of an m-line."""

    payload_type: int
    name: str
    clock_rate: int
    channels: int = 1
    fmtp: dict[str, str] = field(default_factory=dict)
    feedback: list[str] = field(default_factory=list)
    rtx: int | None = None
    """Payload type of its retransmissions (RFC 4588)."""
    red: int | None = None
    """Payload type of packets that carry several of its frames (RFC 2198); sound only."""


@dataclass(slots=True)
class MediaOffer:
    """One m-line."""

    index: int
    kind: str
    port: int
    protocol: str
    formats: list[str]
    mid: str = ""
    direction: str = "sendrecv"
    rtcp_mux: bool = False
    codecs: dict[int, Codec] = field(default_factory=dict)
    extensions: dict[str, int] = field(default_factory=dict)
    """Header extension URI to the id the client proposes."""
    stream_id: str = ""
    track_id: str = ""
    ssrcs: list[int] = field(default_factory=list)
    cname: str = ""
    repairs: dict[int, int] = field(default_factory=dict)
    """SSRC to the SSRC of its retransmissions (``ssrc-group:FID``)."""
    rids: list[str] = field(default_factory=list)
    """Simulcast layers the client can send, its order."""
    ufrag: str = ""
    password: str = field(default="", repr=False)
    fingerprints: list[tuple[str, str]] = field(default_factory=list)
    setup: str = ""
    simulcast: str = ""
    settings: list[tuple[str, str]] = field(default_factory=list)
    """``fmtp`` lines as (payload type, text); applied at the end, because Firefox writes them before
    ``rtpmap``."""
    feedback: list[tuple[str, str]] = field(default_factory=list)
    """``rtcp-fb`` lines, likewise."""

    @property
    def simulcast_rids(self) -> list[str]:
        """Return the layers to take, as offered: of ``a=simulcast`` the first alternative of each (RFC 8853
        section 5.1), those that begin paused too. Without that line one of the rids."""
        words = self.simulcast.split()
        listed = words[words.index("send") + 1] if "send" in words[:-1] else ""
        first = [stream.split(",")[0].lstrip("~") for stream in listed.split(";")]
        layers = [rid for rid in dict.fromkeys(first) if rid in self.rids]
        return layers[:MAX_LAYERS] or self.rids[-1:]

    @property
    def is_media(self) -> bool:
        """Tell whether this is RTP over DTLS as browsers offer it."""
        return self.kind in ("audio", "video") and self.protocol.endswith("RTP/SAVPF")


@dataclass(slots=True)
class Offer:
    """A whole offer; transport attributes are already spread from the session level to the m-lines."""

    media: list[MediaOffer] = field(default_factory=list)
    bundle: list[str] = field(default_factory=list)
    mixed_extensions: bool = False

    @property
    def transport(self) -> MediaOffer:
        """Return the m-line whose transport attributes count: the first of the bundle."""
        return next(
            (media for media in self.media if self.bundle and media.mid == self.bundle[0]), self.media[0]
        )


@dataclass(frozen=True, slots=True)
class IceFragment:
    """What a trickle or restart PATCH says (RFC 8840): the client's name and password, if any."""

    ufrag: str
    password: str = field(repr=False)


def _lines(text: str) -> list[str]:
    if len(text) > MAX_BYTES:
        raise SdpError(f"larger than {MAX_BYTES} bytes")
    lines = text.replace("\r\n", "\n").split("\n")
    if len(lines) > MAX_LINES:
        raise SdpError(f"more than {MAX_LINES} lines")
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE:
            raise SdpError(f"line {number} is longer than {MAX_LINE} characters")
    while lines and not lines[-1]:
        lines.pop()
    return lines


def parse_fragment(text: str) -> IceFragment:
    """Read the body of a PATCH (``application/trickle-ice-sdpfrag``); candidates in it are of no use to a
    lite agent."""
    ufrag = password = ""
    for number, line in enumerate(_lines(text), 1):
        if line.startswith("a=ice-ufrag:"):
            ufrag = _matching(_ICE, line[12:], "ice-ufrag", number)
        elif line.startswith("a=ice-pwd:"):
            password = _matching(_ICE, line[10:], "ice-pwd", number)
    return IceFragment(ufrag, password)


def parse_offer(text: str) -> Offer:
    """Read an offer; raises ``SdpError`` if it is no usable WebRTC offer."""
    offer, session = _read(text)
    _finish(offer, session)
    return offer


def parse_answer(text: str) -> Offer:
    """Read the answer to an offer of ours; raises ``SdpError``.

    Of an answer only mids, ports and directions are asked: transport and codecs are those of the first offer.
    """
    answer, session = _read(text)
    for media in answer.media:
        if session.direction != "sendrecv" and media.direction == "sendrecv":
            media.direction = session.direction
    return answer


def _read(text: str) -> tuple[Offer, MediaOffer]:
    offer = Offer()
    session = MediaOffer(-1, "session", 0, "", [])
    current = session
    lines = _lines(text)
    if not lines or lines[0] != "v=0":
        raise SdpError("does not begin with v=0")
    for number, line in enumerate(lines, 1):
        if len(line) < 2 or line[1] != "=":
            raise SdpError(f"line {number} is not of the form x=…")
        if line[0] == "m":
            if len(offer.media) >= MAX_MEDIA:
                raise SdpError(f"more than {MAX_MEDIA} m-lines")
            current = _media_line(line[2:], len(offer.media), number)
            offer.media.append(current)
        elif line[0] == "a":
            name, _, value = line[2:].partition(":")
            if current is session and name == "group":
                words = value.split()
                if words and words[0] == "BUNDLE":
                    offer.bundle = words[1 : MAX_MEDIA + 1]
            elif current is session and name == "extmap-allow-mixed":
                offer.mixed_extensions = True
            else:
                _attribute(current, name, value.strip(), number)
    return offer, session


def _matching(pattern: re.Pattern[str], value: str, what: str, number: int) -> str:
    value = value.strip()
    if not pattern.fullmatch(value):
        raise SdpError(f"line {number}: bad {what}")
    return value


def _integer(word: str, low: int, high: int, what: str, number: int) -> int:
    if not _NUMBER.fullmatch(word) or not low <= int(word) <= high:
        raise SdpError(f"line {number}: bad {what}")
    return int(word)


def _media_line(value: str, index: int, number: int) -> MediaOffer:
    words = value.split()
    if len(words) < 4:
        raise SdpError(f"line {number}: m-line needs kind, port, protocol and formats")
    port = _integer(words[1].partition("/")[0], 0, 65535, "port", number)
    media = MediaOffer(index, words[0], port, words[2], words[3 : 3 + 128])
    if media.is_media:
        for word in media.formats:
            payload_type = _integer(word, 0, 127, "payload type", number)
            if payload_type in _STATIC:
                media.codecs[payload_type] = Codec(payload_type, *_STATIC[payload_type])
    return media


def _attribute(media: MediaOffer, name: str, value: str, number: int) -> None:
    if name == "ice-ufrag":
        media.ufrag = _matching(_ICE, value, name, number)
    elif name == "ice-pwd":
        media.password = _matching(_ICE, value, name, number)
    elif name == "fingerprint":
        algorithm, _, digest = value.partition(" ")
        if len(media.fingerprints) < 8:
            _matching(_TOKEN, algorithm, "fingerprint", number)
            media.fingerprints.append((algorithm, _matching(_FINGERPRINT, digest, "fingerprint", number)))
    elif name == "setup":
        media.setup = value
    elif name in DIRECTIONS:
        media.direction = name
    elif name == "mid":
        media.mid = _matching(_TOKEN, value, name, number)
    elif name == "rtcp-mux":
        media.rtcp_mux = True
    elif name == "extmap":
        _extension(media, value, number)
    elif name == "msid":
        media.stream_id, _, media.track_id = value[:256].partition(" ")
    elif media.index >= 0 and media.is_media:
        _media_attribute(media, name, value, number)


def _extension(media: MediaOffer, value: str, number: int) -> None:
    words = value.split()
    if len(words) < 2:
        raise SdpError(f"line {number}: bad extmap")
    identifier = _integer(words[0].partition("/")[0], 1, 4095, "extmap id", number)
    if identifier <= 255 and len(media.extensions) < MAX_EXTENSIONS:
        media.extensions.setdefault(words[1], identifier)


def _media_attribute(media: MediaOffer, name: str, value: str, number: int) -> None:
    if name == "rtpmap":
        word, _, rest = value.partition(" ")
        payload_type = _integer(word, 0, 127, "rtpmap", number)
        parts = rest.strip().split("/")
        if len(parts) < 2:
            raise SdpError(f"line {number}: bad rtpmap")
        if word in media.formats:
            rate = _integer(parts[1], 1, 1_000_000, "clock rate", number)
            channels = _integer(parts[2], 1, 8, "channel count", number) if len(parts) > 2 else 1
            codec_name = _matching(_TOKEN, parts[0], "codec name", number)
            media.codecs[payload_type] = Codec(payload_type, codec_name, rate, channels)
    elif name in ("fmtp", "rtcp-fb"):
        word, _, rest = value.partition(" ")
        if word != "*" or name == "fmtp":
            _integer(word, 0, 127, name, number)
        lines = media.settings if name == "fmtp" else media.feedback
        if len(lines) < MAX_SETTINGS:
            lines.append((word, rest.strip()))
    elif name == "ssrc":
        word, _, rest = value.partition(" ")
        ssrc = _integer(word, 0, 2**32 - 1, "ssrc", number)
        if ssrc not in media.ssrcs and len(media.ssrcs) < MAX_SSRCS:
            media.ssrcs.append(ssrc)
        if rest.startswith("cname:"):
            media.cname = rest[6:][:255]
    elif name == "ssrc-group":
        words = value.split()
        if len(words) == 3 and words[0] == "FID" and len(media.repairs) < MAX_SSRCS:
            first = _integer(words[1], 0, 2**32 - 1, "ssrc", number)
            media.repairs[first] = _integer(words[2], 0, 2**32 - 1, "ssrc", number)
    elif name == "rid":
        words = value.split()
        if len(words) >= 2 and words[1] == "send" and len(media.rids) < 8:
            media.rids.append(_matching(_TOKEN, words[0], "rid", number))
    elif name == "simulcast":
        media.simulcast = value


def _settle_codecs(media: MediaOffer) -> None:
    everybodys = 0  # of the lines for all codecs: their number times 128 is work
    for word, text in media.settings:
        codec = media.codecs.get(int(word))
        if codec is not None:
            for pair in text.split(";")[:32]:
                key, separator, setting = pair.strip().partition("=")
                if key:
                    codec.fmtp[key.lower() if separator else key] = setting
    for word, text in media.feedback:
        if word == "*":
            meant = list(media.codecs.values()) if everybodys < MAX_FEEDBACK else []
            everybodys += 1
        else:
            meant = [media.codecs[int(word)]] if int(word) in media.codecs else []
        for codec in meant:
            if len(codec.feedback) < MAX_FEEDBACK:
                codec.feedback.append(text)
    for codec in media.codecs.values():
        if codec.name.lower() == "rtx":
            apt = codec.fmtp.get("apt", "")
            main = media.codecs.get(int(apt)) if _NUMBER.fullmatch(apt) else None
            if main is not None and main.rtx is None:
                main.rtx = codec.payload_type
        elif codec.name.lower() == "red" and media.kind == "audio":
            main = _repeated(media, codec)
            if main is not None and main.red is None:
                main.red = codec.payload_type


def _repeated(media: MediaOffer, red: Codec) -> Codec | None:
    """Return the codec of whose frames a RED payload type carries several; None: of more than one."""
    numbers = set(next(iter(red.fmtp), "").split("/"))
    word = numbers.pop()
    main = media.codecs.get(int(word)) if not numbers and _NUMBER.fullmatch(word) else None
    if main is None or (main.clock_rate, main.channels) != (red.clock_rate, red.channels):
        return None
    return main if main is not red else None


def _finish(offer: Offer, session: MediaOffer) -> None:
    if not offer.media:
        raise SdpError("has no m-line")
    mids: set[str] = set()
    ssrcs: set[int] = set()
    for media in offer.media:
        media.ufrag = media.ufrag or session.ufrag
        media.password = media.password or session.password
        media.fingerprints = media.fingerprints or session.fingerprints
        media.setup = media.setup or session.setup
        if session.direction != "sendrecv" and media.direction == "sendrecv":
            media.direction = session.direction
        if media.mid in mids and media.mid:
            raise SdpError("two m-lines have the same mid")
        mids.add(media.mid)
        own = {*media.ssrcs, *media.repairs.values()}
        if own & ssrcs:
            raise SdpError("two m-lines have the same ssrc")  # RFC 3550 section 8: unique in a session
        ssrcs |= own
        _settle_codecs(media)
    transport = offer.transport
    if not transport.ufrag or not transport.password:
        raise SdpError("has no ICE credentials")
    if not transport.fingerprints:
        raise SdpError("has no DTLS fingerprint")
    if transport.setup not in ("actpass", "active", "passive"):
        raise SdpError("a=setup must be actpass, active or passive")
    live = [media for media in offer.media if media.is_media]
    if not live:
        raise SdpError("has neither audio nor video over DTLS-SRTP")
    if not offer.bundle:
        if len(live) > 1:
            raise SdpError("needs a=group:BUNDLE for more than one m-line")
    elif any(not media.rtcp_mux for media in live):
        raise SdpError("needs a=rtcp-mux on every m-line")
