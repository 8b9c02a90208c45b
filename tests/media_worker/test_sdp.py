"""Offers of real clients, whole, cut at every line, and hostile; and the answers to them."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from aiortc.sdp import SessionDescription
from hypothesis import given, settings
from hypothesis import strategies as st

from mediaserver.media import answer
from mediaserver.media.answer import Candidate, Local, MediaAnswer
from mediaserver.media.ice import Credentials
from mediaserver.media.sdp import MAX_BYTES, MAX_LINES, Offer, SdpError, parse_fragment, parse_offer

OFFERS = {path.stem: path.read_bytes().decode() for path in (Path(__file__).parent / "offers").glob("*.sdp")}
LOCAL = Local(
    Credentials("ourname0", "ourpassword0123456789ab"),
    "AA:" * 31 + "AA",
    [Candidate("192.0.2.9", 7882), Candidate("2001:db8::9", 7882)],
)
ROOM = ["VP8", "H264", "opus"]


def reply(offer: Offer, *, publishing: bool) -> list[MediaAnswer]:
    """Answer like a session does."""
    answers = []
    for media in offer.media:
        codecs = answer.choose(media, ROOM) if media.is_media else []
        supported = answer.PUBLISH_EXTENSIONS if publishing else answer.SUBSCRIBE_EXTENSIONS
        answers.append(
            MediaAnswer(
                media,
                codecs[:1] if publishing else codecs,
                "recvonly" if publishing else "sendonly",
                answer.extensions(media.extensions, supported),
                ssrc=None if publishing else 1111 + media.index,
                rtx_ssrc=None if publishing else 2222 + media.index,
                cname="c",
                stream_id="main",
                track_id=f"t{media.index}",
            )
        )
    return answers


def test_there_are_offers_of_three_kinds_of_clients() -> None:
    assert {name.split("_")[0] for name in OFFERS} == {"chromium", "aiortc", "firefox"}


@pytest.mark.parametrize("name", sorted(OFFERS))
def test_offer_is_read_and_answered_so_that_aiortc_reads_it(name: str) -> None:
    offer = parse_offer(OFFERS[name])
    publishing = "subscribe" not in name
    answers = reply(offer, publishing=publishing)
    text = answer.write(offer, answers, LOCAL)
    read = SessionDescription.parse(text)
    assert len(read.media) == len(offer.media)
    for media, ours in zip(read.media, answers, strict=True):
        assert media.kind == ours.offer.kind
        assert media.rtp.muxId == ours.offer.mid
        if not ours.codecs:
            assert media.port == 0
            assert ours.offer.kind == "application"
            continue
        assert media.port == 7882
        assert media.direction == ("recvonly" if publishing else "sendonly")
        assert media.dtls is not None
        assert media.dtls.role == "server"
        assert [c.ip for c in media.ice_candidates] == ["192.0.2.9", "2001:db8::9"]
        assert media.rtcp_mux
        assert {c.payloadType for c in media.rtp.codecs} <= set(ours.offer.codecs)
    assert "a=ice-lite" in text
    bundle = next(line for line in text.split("\r\n") if line.startswith("a=group:BUNDLE"))
    assert bundle.split()[1:] == [a.offer.mid for a in answers if a.codecs]


def test_codecs_follow_the_rooms_order_and_stay_baseline() -> None:
    offer = parse_offer(OFFERS["chromium_publish"])
    video = next(media for media in offer.media if media.kind == "video")
    assert [c.name for c in answer.choose(video, ROOM)] == ["VP8", "H264"]
    h264 = answer.choose(video, ["H264", "VP8"])[0]
    assert h264.fmtp["profile-level-id"] == "42e01f"
    assert h264.fmtp["packetization-mode"] == "1"
    assert h264.rtx is not None
    assert video.codecs[h264.rtx].name == "rtx"
    assert [c.name for c in answer.choose(video, ["AV1", "VP9"])] == ["AV1", "VP9"]
    assert answer.choose(video, ["opus"]) == []


def test_firefox_settings_before_rtpmap_are_kept() -> None:
    offer = parse_offer(OFFERS["firefox_publish"])
    video = next(media for media in offer.media if media.kind == "video")
    assert [c.payload_type for c in answer.choose(video, ["H264"])] == [126]
    vp8 = video.codecs[120]
    assert (vp8.rtx, vp8.fmtp["max-fs"]) == (124, "12288")
    assert "nack pli" in vp8.feedback
    assert video.repairs == {3735928559: 1234567890}


def test_feedback_is_transport_cc_or_else_remb() -> None:
    chromium = parse_offer(OFFERS["chromium_publish"])
    codec = answer.choose(next(m for m in chromium.media if m.kind == "video"), ROOM)[0]
    assert answer.feedback(codec) == ["nack", "nack pli", "ccm fir", "transport-cc"]
    aiortc = parse_offer(OFFERS["aiortc_publish"])
    codec = answer.choose(next(m for m in aiortc.media if m.kind == "video"), ROOM)[0]
    assert answer.feedback(codec) == ["nack", "nack pli", "goog-remb"]


@pytest.mark.parametrize(
    ("theirs", "ours"), [("actpass", "passive"), ("active", "passive"), ("passive", "active")]
)
def test_dtls_roles_are_each_others_opposite(theirs: str, ours: str) -> None:
    """The transport decides; the answer states it on every m-line (RFC 5763 section 5)."""
    offer = parse_offer(BASE.replace("a=setup:actpass", f"a=setup:{theirs}"))
    assert offer.transport.setup == theirs
    local = Local(Credentials("abcd", "0" * 22), "AA:BB", [Candidate("192.0.2.1", 9)], ours)
    written = answer.write(offer, reply(offer, publishing=True), local)
    assert written.count("a=setup:") == written.count(f"a=setup:{ours}\r\n") == len(offer.media)


def test_simulcast_offer_lists_its_layers() -> None:
    offer = parse_offer(OFFERS["chromium_simulcast"])
    assert offer.media[0].rids == ["l", "h"]
    answers = reply(offer, publishing=True)
    answers[0].receive_rids = offer.media[0].simulcast_rids
    text = answer.write(offer, answers, LOCAL)
    assert "a=rid:l recv\r\na=rid:h recv\r\na=simulcast:recv l;h\r\n" in text


@pytest.mark.parametrize(
    ("line", "taken"),
    [
        ("send l;h", ["l", "h"]),
        ("send h;l recv x", ["h", "l"]),
        ("recv x send ~l;h", ["l", "h"]),  # paused at first (RFC 8853)
        ("send l,h;h", ["l", "h"]),  # alternatives: the first
        ("send l;l;nobody;h", ["l", "h"]),
        ("send", ["h"]),
        ("recv l;h", ["h"]),
        ("", ["h"]),
    ],
)
def test_simulcast_lines(line: str, taken: list[str]) -> None:
    text = OFFERS["chromium_simulcast"].replace("a=simulcast:send l;h", f"a=simulcast:{line}")
    assert parse_offer(text).media[0].simulcast_rids == taken


def test_at_most_three_layers_are_taken_and_one_without_a_simulcast_line() -> None:
    five = "".join(f"a=rid:{rid} send\r\n" for rid in "abc")
    text = OFFERS["chromium_simulcast"].replace("a=simulcast:send l;h", five + "a=simulcast:send a;b;c;l;h")
    assert parse_offer(text).media[0].simulcast_rids == ["a", "b", "c"]
    assert parse_offer(text.replace("a=simulcast:send a;b;c;l;h\r\n", "")).media[0].simulcast_rids == ["c"]
    assert parse_offer(OFFERS["chromium_publish"]).media[-1].simulcast_rids == []


@pytest.mark.parametrize("name", sorted(OFFERS))
def test_cut_after_every_line_and_in_the_middle_of_it(name: str) -> None:
    lines = OFFERS[name].split("\r\n")
    for count in range(len(lines)):
        for text in ("\r\n".join(lines[:count]), "\r\n".join(lines[:count])[:-3]):
            try:
                offer = parse_offer(text)
            except SdpError:
                continue
            answer.write(offer, reply(offer, publishing=True), LOCAL)


@pytest.mark.parametrize("name", sorted(OFFERS))
def test_every_line_left_out(name: str) -> None:
    lines = OFFERS[name].split("\r\n")
    for count in range(len(lines)):
        with contextlib.suppress(SdpError):
            parse_offer("\r\n".join(lines[:count] + lines[count + 1 :]))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mangled_offers_raise_only_sdp_errors(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(sorted(OFFERS.values())))
    position = data.draw(st.integers(0, len(text) - 1))
    count = data.draw(st.integers(0, 40))
    text = text[:position] + data.draw(st.text(max_size=20)) + text[position + count :]
    try:
        offer = parse_offer(text)
    except SdpError:
        return
    answer.write(offer, reply(offer, publishing=False), LOCAL)


BASE = OFFERS["chromium_publish"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "v=0"),
        ("hello", "v=0"),
        ("v=0\r\nno line", "line 2"),
        ("v=0\r\no=- 1 1 IN IP4 0\r\n", "no m-line"),
        (BASE + "a=x\r\n" * MAX_LINES, "lines"),
        (BASE + "a=" + "x" * MAX_BYTES, "larger"),
        (BASE + "a=" + "x" * 5000 + "\r\n", "longer"),
        (BASE + "m=video 9 UDP/TLS/RTP/SAVPF 96\r\n" * 100, "m-lines"),
        (BASE.replace("a=setup:actpass", "a=setup:holdconn"), "setup"),
        (BASE.replace("a=fingerprint", "a=nofingerprint"), "fingerprint"),
        (BASE.replace("a=ice-pwd", "a=no-pwd"), "ICE"),
        (BASE.replace("a=rtcp-mux\r\n", ""), "rtcp-mux"),
        (BASE.replace("a=group:BUNDLE", "a=nogroup"), "BUNDLE"),
        (BASE.replace("a=mid:1", "a=mid:0"), "same mid"),
        (BASE.replace("UDP/TLS/RTP/SAVPF", "RTP/AVP"), "DTLS-SRTP"),
        (BASE.replace("a=rtpmap:96 VP8/90000", "a=rtpmap:96 VP8/0"), "clock rate"),
        (BASE.replace("a=rtpmap:96 VP8/90000", "a=rtpmap:999 VP8/90000"), "rtpmap"),
        (BASE.replace("a=fingerprint:sha-256 ", "a=fingerprint:sha-256 ZZ:"), "fingerprint"),
    ],
)
def test_refusals_say_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(SdpError, match=said):
        parse_offer(text)


def test_hostile_offers_take_no_time() -> None:
    many = "".join(
        f"a=rtcp-fb:* {i}\r\na=fmtp:96 {'a=b;' * 100}\r\na=ssrc:{i} cname:x\r\n" for i in range(400)
    )
    started = time.process_time()
    parse_offer(BASE + many)
    # Not a benchmark: the point is that nothing is quadratic (aiortc's parser needs minutes for such input).
    assert time.process_time() - started < 5


@pytest.mark.parametrize("whose", ["*", "5"])
def test_feedback_lines_times_codecs_is_not_the_work(whose: str) -> None:
    """An offer of 188 KB once took 0.4 s, in which its worker answered nobody."""
    types = range(128)
    lines = OFFERS["aiortc_publish"].split("\r\n")
    head = lines[: lines.index(next(m for m in lines if m[:2] == "m="))]
    text = "\r\n".join(
        [line for line in head if "BUNDLE" not in line]
        + ["a=group:BUNDLE 0", "a=setup:actpass", "a=ice-ufrag:abcd", "a=ice-pwd:" + "x" * 24]
        + ["a=fingerprint:sha-256 " + "AA:" * 31 + "AA"]
        + ["m=video 9 UDP/TLS/RTP/SAVPF " + " ".join(map(str, types)), "a=mid:0", "a=rtcp-mux"]
        + [f"a=rtpmap:{number} VP8/90000" for number in types]
        + [f"a=rtcp-fb:{whose} nack"] * 1024
    )
    run = 0

    def count(frame: FrameType, event: str, _: object) -> Any:
        nonlocal run
        run += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        offer = parse_offer(text)
    finally:
        sys.settrace(before)
    codecs = offer.media[0].codecs
    given = [len(codecs[number].feedback) for number in types]
    assert given == [16 if whose in ("*", str(number)) else 0 for number in types]
    assert run < 60 * len(text.split("\r\n")), run


def test_fragment_of_a_patch() -> None:
    text = "a=ice-ufrag:abcd\r\na=ice-pwd:0123456789012345678901\r\nm=audio 9 RTP/AVP 0\r\na=candidate:x\r\n"
    fragment = parse_fragment(text)
    assert (fragment.ufrag, fragment.password) == ("abcd", "0123456789012345678901")
    assert "0123456789" not in repr(fragment)
    assert parse_fragment("a=candidate:1 1 udp 1 192.0.2.1 1 typ host").ufrag == ""
    with pytest.raises(SdpError):
        parse_fragment("a=ice-ufrag:ab cd")


def test_names_for_people_leave_out_helpers() -> None:
    video = next(m for m in parse_offer(BASE).media if m.kind == "video")
    assert answer.names(video) == ["VP8", "H264", "AV1", "VP9"]
