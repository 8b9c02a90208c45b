"""The native forwarder before simulated lines with short buffers, over real UDP and in real time: what comes
of keyframes.

With SHUANGLU_LONG=1 a minute of the lines of docs/bandwidth.md, else seconds of one.
"""

from __future__ import annotations

import heapq
import json
import os
import random
import time
from itertools import count

from mediaserver.forwarder import TRANSPORT_CC, FeedbackTrouble
from mediaserver.media.bandwidth import Sending
from recorder import rtcp
from recorder.rtcp_transport import TransportFeedback
from tests.forwarder.ends import SUBSCRIBED, Seen, World, rtp, vp8
from tests.media_worker.narrow_link import MS, Link

LONG = os.environ.get("SHUANGLU_LONG") == "1"
LINES = [(700_000, 300_000, 30_000, 20_000)]
"""Line, layer (bit/s); keyframe, buffer (bytes)."""
if LONG:
    LINES = [
        (500_000, 300_000, 20_000, 12_000),
        (700_000, 500_000, 30_000, 20_000),
        (2_000_000, 1_300_000, 70_000, 20_000),
        (2_000_000, 1_300_000, 70_000, 40_000),
    ]
SECONDS, PICTURES = (60, 90) if LONG else (8, 30)
"""Length of the run, and pictures from one keyframe to the next."""
PICTURE_NS = 33_333_333
DELAY_NS = 25 * MS
FEEDBACK_NS = 100 * MS
CLOCK_NS = 123_456_789_000


class Subscriber:
    """One who watches a layer, with a publisher, a forwarder and a line of its own."""

    def __init__(self, line_bps: int, layer_bps: int, keyframe: int, buffer: int, *, paced: bool) -> None:
        self.world = World("native")
        self.publisher, self.end = self.world.end(), self.world.end()
        stream = self.world.stream(self.publisher, mime="video/VP8", clock_rate=90000)
        self.route = self.world.route(
            stream, self.end, extensions=SUBSCRIBED, rtx_ssrc=0x3333, rtx_payload_type=112
        )
        self.end.socket.setblocking(False)
        self.link = Link(lambda _: line_bps, queue_bytes=buffer, delay_ms=DELAY_NS / MS)
        self.layer_bps, self.keyframe, self.paced = layer_bps, keyframe, paced
        self.sending = Sending(
            self.world.forwarder,
            self.end.peer,
            numbered=True,
            padded=lambda: self.route,
            routes=lambda: [self.route],
            wake=lambda: None,
        )
        self.sending.start()
        self._unpace()
        self.sending.wanted_bps = int(1.25 * layer_bps)
        self.targets: list[int] = []
        self.key_packets = self.key_dropped = 0
        self._rng = random.Random(1)
        self._due_ns = self._report_ns = self._wake_ns = 0
        self._pictures = self._sequence = self._number = self._told = 0
        self._keys: set[int] = set()
        self._flying: list[tuple[int, int]] = []
        self._arrived: list[tuple[int, int]] = []
        self._feedback: list[tuple[int, int, bytes]] = []
        self._order = count()

    def run(self, now: int) -> None:
        """Do what is due."""
        if now >= self._due_ns:
            self._due_ns = max(self._due_ns + PICTURE_NS, now)
            self._publish()
        self._carry(now)
        while self._flying and self._flying[0][0] <= now:
            arrival, number = heapq.heappop(self._flying)
            self._arrived.append((number, arrival + CLOCK_NS))
        if now >= self._report_ns and self._arrived:
            self._report_ns = now + FEEDBACK_NS
            self._report(now)
        while self._feedback and self._feedback[0][0] <= now:
            self.end.send_rtcp(heapq.heappop(self._feedback)[2])
        if any(isinstance(event, FeedbackTrouble) for event in self.world.forwarder.take_events()):
            self.sending.trouble()
            self._wake_ns = now
        if now >= self._wake_ns:
            self._wake_ns = self.sending.handle_timer(now) or now
            self.targets.append(self.sending.target_bps)
            self._unpace()

    def _unpace(self) -> None:
        if not self.paced:
            self.world.forwarder.set_pace(self.end.peer, 0)

    def _publish(self) -> None:
        key = self._pictures % PICTURES == 0
        left = self.keyframe if key else int(self.layer_bps / 30 / 8 * self._rng.uniform(0.8, 1.2))
        packets = []
        for start in range(0, left, 1100):
            payload = vp8(key, self._pictures, self._pictures, start=not start, size=min(left - start, 1100))
            if key:
                self._keys.add(self._sequence)
            packets.append(rtp(self._sequence, timestamp=3000 * self._pictures, payload=payload))
            self._sequence += 1
        self._pictures += 1
        self.publisher.send(*packets)

    def _carry(self, now: int) -> None:
        """Put what the forwarder has sent on the line."""
        while True:
            try:
                data = self.end.socket.recv(2048)
            except BlockingIOError:
                return
            arrival = self.link.carry(len(data), now)
            seen = Seen(self.end.rx.unprotect(data))
            if seen.ssrc == 0x2222 and seen.sequence - 100 in self._keys:
                self.key_packets += 1
                self.key_dropped += arrival is None
            low = int.from_bytes(seen.elements[SUBSCRIBED[TRANSPORT_CC]], "big")
            self._number += ((low - self._number + 0x8000) & 0xFFFF) - 0x8000
            if arrival is not None:
                heapq.heappush(self._flying, (arrival, self._number))

    def _report(self, now: int) -> None:
        numbers, self._arrived = sorted(self._arrived), []
        for made in TransportFeedback.from_arrivals(5, 6, 0, numbers):
            missing = (made.base_sequence - self._told) & 0xFFFF
            deltas = (*[None] * missing, *made.deltas)
            told = TransportFeedback(5, 6, self._told & 0xFFFF, 0, made.reference_time, deltas)
            self._told += len(deltas)
            heapq.heappush(self._feedback, (now + DELAY_NS, next(self._order), rtcp.build([told])))


def test_keyframes_of_paced_subscribers_arrive() -> None:
    pairs = [[Subscriber(*line, paced=paced) for paced in (False, True)] for line in LINES]
    everybody = [one for pair in pairs for one in pair]
    try:
        end_ns = time.monotonic_ns() + SECONDS * 1_000_000_000
        while time.monotonic_ns() < end_ns:
            for one in everybody:
                one.run(time.monotonic_ns())
            time.sleep(0.001)
        for line, (plain, paced) in zip(LINES, pairs, strict=True):
            shares = [one.key_dropped / one.key_packets for one in (plain, paced)]
            counted = paced.world.forwarder.peer_stats(paced.end.peer)
            said = {
                "line, layer, keyframe, buffer": line,
                "dropped": [round(share, 3) for share in shares],
                "mean target": [sum(one.targets) // len(one.targets) for one in (plain, paced)],
                "mean wait, ms": round(counted.paced_ns / max(counted.paced, 1) / MS),
            }
            print(json.dumps(said))
            assert counted.paced > 0
            assert shares[0] > 0.2
            assert shares[1] < 0.6 * shares[0]
    finally:
        for one in everybody:
            one.world.close()
