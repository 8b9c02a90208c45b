"""What a forwarder counts per stream, route and peer and as a whole: snapshots that it hands out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class StreamStats:
    """What was received of a stream (RFC 3550 section 6.4.1 and appendix A.8)."""

    ssrc: int
    packets: int
    """Distinct packets, those recovered by RTX included."""
    bytes: int
    """Payload octets, without headers and padding."""
    lost: int
    """Expected minus received; goes down when late packets come."""
    expected: int
    base_sequence: int
    max_sequence: int
    """Extended highest sequence number received: roll-overs in the upper 16 bits."""
    jitter: int
    """Interarrival jitter in time stamp units."""
    last_timestamp: int
    """RTP time stamp of the packet with the highest sequence number, and below when it arrived."""
    last_arrival_ns: int
    first_arrival_ns: int
    last_keyframe_ns: int
    """0: none yet."""
    keyframes: int
    recovered: int
    """Packets that came only by RTX."""
    duplicates: int
    late: int
    """Dropped: older than the window of ``CACHE_PACKETS`` numbers."""
    other_payload: int
    malformed: int
    audio_level: int
    """Last audio level (RFC 6464) in -dBov, 0 (loud) … 127 (silence); 127 when none came."""
    voice: bool
    cached_packets: int
    cached_bytes: int


@dataclass(frozen=True, slots=True)
class RouteStats:
    """What was sent on a route."""

    stream: int
    """The stream that is being sent; 0 when it was removed and none was switched to."""
    peer: int
    ssrc: int
    packets: int
    """Without retransmissions, as a sender report counts."""
    bytes: int
    """Payload octets, as a sender report counts."""
    retransmitted: int
    retransmit_missed: int
    """Asked for but not in the cache any more, asked for again too soon, or beyond the route's budget."""
    last_sequence: int
    """Last sent sequence number, extended; -1: none yet."""
    last_timestamp: int
    last_sent_ns: int
    """When the packet with ``last_timestamp`` arrived at the server; both give a sender report's time
    stamp."""
    sequence_offset: int
    """Sent minus received, modulo 2**16; likewise the time stamp's, modulo 2**32."""
    timestamp_offset: int
    paused: bool
    waiting: bool
    """Waits for a keyframe, of ``pending_stream`` if that is not 0."""
    pending_stream: int
    padding: int
    """Bytes of datagrams sent by ``send_padding``."""
    fraction_lost: int
    """Of 256, as the subscriber's last receiver report says (RFC 3550 section 6.4.1)."""
    report_ns: int
    """When that came; 0: none yet."""
    spatial: int
    """Highest spatial layer that is sent now, and temporal one; 255: all (``Forwarder.set_layers``)."""
    temporal: int


class SendGroup(NamedTuple):
    """Packets sent in one burst that arrived; its arrival times are in the subscriber's clock."""

    first_sent_ns: int
    last_sent_ns: int
    first_arrival_ns: int
    last_arrival_ns: int
    told_ns: int
    """When the feedback came that spoke of its last packet."""
    bytes: int
    """Whole datagrams, without IP and UDP headers."""
    packets: int


@dataclass(frozen=True, slots=True)
class SendFeedback:
    """What a subscriber's transport-cc feedback has told since the last ``take_feedback``."""

    sent: int
    """Packets with numbers since the beginning; likewise ``bytes_sent``, of all datagrams."""
    bytes_sent: int
    told_ns: int
    """When the last feedback came; 0: none yet."""
    packets: int
    """Packets that arrived; their datagrams' bytes are ``bytes``."""
    bytes: int
    lost: int
    """Packets told as lost; negative when more came late than were lost. Likewise ``lost_bytes``."""
    lost_bytes: int
    dropped: int
    """Groups that were not kept because nobody took them: the oldest."""
    shortest_ns: int
    """The shortest way of a packet that arrived (arrival less sending, clocks apart); 0 if none did."""
    groups: list[SendGroup]
    """Oldest first, at most 256."""
    open: SendGroup | None
    """The last burst, which is among the groups once the next has begun."""


@dataclass(frozen=True, slots=True)
class PeerStats:
    """Counters of a peer."""

    packets_received: int
    bytes_received: int
    """Whole datagrams, as are ``bytes_sent``; RTP and RTCP."""
    packets_sent: int
    bytes_sent: int
    last_received_ns: int
    """Last authenticated RTP or RTCP; 0: none."""
    auth_failed: int
    replayed: int
    malformed: int
    ssrc_refused: int
    """Packets of SSRCs beyond ``MAX_SSRCS_PER_PEER``, of ignored SSRCs, and of held SSRCs when the hold was
    full."""
    feedback_sent: int
    """transport-cc feedback packets built for this publisher."""
    transport_cc_sent: int
    """Packets sent to this subscriber with a transport-cc number."""
    transport_cc_reported: int
    """Packets its transport-cc feedback spoke of, and how many of them it had not received."""
    transport_cc_lost: int
    send_failed: int
    paced: int
    """Packets that waited for the pace (``Forwarder.set_pace``) and left, and the sum of their waits."""
    paced_ns: int


@dataclass(frozen=True, slots=True)
class ForwarderStats:
    """Counters of the whole forwarder."""

    kind: str
    crypto: str
    """Who encrypts AES-GCM media: ``libsrtp`` or ``evp``."""
    datagrams_received: int
    datagrams_sent: int
    send_messages: int
    """Messages handed to the kernel; fewer than datagrams when GSO coalesces."""
    receive_batches: int
    unknown_address: int
    """Dropped: neither STUN nor from a bound address."""
    malformed: int
    kernel_dropped: int
    """Datagrams lost because the receive buffer was full."""
    send_failed: int
    events_dropped: int
    tap_dropped: int
    python_calls: int
    """Calls from Python (methods and events taken), to show that they do not grow with the packets."""
    cache_bytes: int
    receive_buffer_bytes: int
    """Smallest SO_RCVBUF of the sockets as the kernel counts it (twice what was asked for)."""
    peers: int
    streams: int
    routes: int
    paced: int
    """As of ``PeerStats``, of all peers that there are and were; likewise ``paced_ns``."""
    paced_ns: int
    paced_bytes: int
    """What waits now."""
    pace_dropped: int
    """Packets that waited while their route ended, or their peer ended, lost its address or got new keys."""
