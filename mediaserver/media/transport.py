"""The thin shell around the cores: moves datagrams and events between forwarder, ICE, DTLS and sessions.

Everything runs in the event loop's thread; the forwarder's own thread moves the media. One function,
``_drain``, takes everything the forwarder has to say, each time its event descriptor becomes readable.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import structlog

from mediaserver.forwarder.interface import (
    FeedbackTrouble,
    Forwarder,
    ForwarderError,
    Gap,
    Keyframe,
    NewSsrc,
    Profile,
    RawDatagram,
    Rtcp,
    Switched,
    TakeBatches,
    TapDropped,
    TapMoved,
)
from mediaserver.media.answer import Candidate, Local
from mediaserver.media.dtls import SHA1, DtlsEndpoint, DtlsIdentity, DtlsState
from mediaserver.media.ice import SECOND_NS, Address, CheckResult, IceAgent, IceState
from mediaserver.media.link import Link, LinkOwner, LinkState, RouteOwner, StreamOwner, TimerOwner
from mediaserver.media.sdp import IceFragment, MediaOffer

TICK_S = 0.02
"""Between two looks at what is missing. Without that the timer comes when a handshake or a keyframe request
is due to be repeated, at least once a second."""
FEEDBACK_MS = 100
"""Between two transport-cc feedback packets; libwebrtc's receivers use 50-250 ms."""

FOLLOW_NS = 200_000_000
"""So long nothing must have come on a client's path before its media from elsewhere moves it: one that sends
by two ways at a time stays where it is."""

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class TransportCounters:
    """Totals since the start; those of live peers and routes are added when the counters are read."""

    dtls_unbound: int = 0
    unknown_datagrams: int = 0
    internal_errors: int = 0
    paths_changed: int = 0
    """Clients in a call that came by another address: NAT, Wi-Fi to mobile, UDP to TCP."""
    rtcp_malformed: int = 0
    nacks_sent: int = 0
    keyframe_requests: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    packets_resent: int = 0
    layer_switches: int = 0


class Transport:
    """All links of a worker on its sockets."""

    def __init__(
        self,
        forwarder: Forwarder,
        *,
        candidates: Sequence[Candidate],
        consent_ns: int,
        worker: int = 0,
        tapped: Callable[[TakeBatches], None],
        tap_dropped: Callable[[TapDropped], None],
    ) -> None:
        self.forwarder = forwarder
        self.ice = IceAgent(consent_ns, worker)
        self.identity = DtlsIdentity()
        self.counters = TransportCounters()
        self.candidates = list(candidates)
        self.links: dict[str, Link] = {}
        self._by_peer: dict[int, Link] = {}
        self._streams: dict[int, StreamOwner] = {}
        self._routes: dict[int, RouteOwner] = {}
        self._timers: dict[int, TimerOwner] = {}
        """By peer; the forwarder gives no number to both a peer and a stream."""
        self._shaking: set[str] = set()
        self._busy: dict[int, int] = {}
        """Streams and peers whose owner has something to do, and when to let it do so (monotonic ns)."""
        self._tapped = tapped
        self._tap_dropped = tap_dropped
        self._second_ns = 0
        self._each_second: list[Callable[[int], None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # --- life

    def start(self, each_second: Iterable[Callable[[int], None]] = ()) -> None:
        """Begin to listen in the running loop; ``each_second`` is called with ``now`` once a second."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.forwarder.event_fd, self._drain)
        self._each_second = list(each_second)
        self._tick()

    def close(self) -> None:
        """Stop and free the forwarder; links are told nothing any more."""
        if self._loop is not None:
            self._loop.remove_reader(self.forwarder.event_fd)
        if self._timer is not None:
            self._timer.cancel()
        self.forwarder.close()

    # --- links

    def open(self, session: str, media: MediaOffer, extensions: Mapping[str, int], owner: LinkOwner) -> Link:
        """Make a link for a client's offer; raises ``ForwarderError`` when the worker is full."""
        now = time.monotonic_ns()
        peer = self.forwarder.add_peer(extensions)
        credentials = self.ice.add(session, media.ufrag, now)
        dtls = DtlsEndpoint(self.identity, media.fingerprints, now, client=media.setup == "passive")
        link = Link(session, peer, owner, dtls, credentials)
        self.links[session] = self._by_peer[peer] = link
        self._shaking.add(session)
        return link

    def local(self, link: Link) -> Local:
        """Return our side as the answer states it."""
        setup = "active" if link.dtls.client else "passive"
        return Local(link.credentials, self.identity.fingerprint, self.candidates, setup)

    def restart(self, link: Link, fragment: IceFragment) -> None:
        """Give a link new ICE credentials for the client's new ones."""
        link.credentials = self.ice.restart(link.session, fragment.ufrag, time.monotonic_ns())

    def shut(self, link: Link, reason: str) -> None:
        """End a link: say goodbye, free its peer, tell its owner. Does nothing the second time."""
        if link.state is LinkState.CLOSED:
            return
        self._send(link, link.dtls.close())
        link.state = LinkState.CLOSED
        self.ice.remove(link.session)
        self.links.pop(link.session, None)
        self._shaking.discard(link.session)
        link.owner.link_changed(LinkState.CLOSED, reason)
        self._by_peer.pop(link.peer, None)
        self._timers.pop(link.peer, None)
        self._busy.pop(link.peer, None)
        stats = self.forwarder.peer_stats(link.peer)
        self.counters.bytes_received += stats.bytes_received
        self.counters.bytes_sent += stats.bytes_sent
        self.forwarder.remove_peer(link.peer)

    # --- who hears of streams and routes

    def watch_stream(self, stream: int, owner: StreamOwner) -> None:
        """Send a stream's news to ``owner``."""
        self._streams[stream] = owner

    def forget_stream(self, stream: int) -> None:
        """Send no more news of a stream."""
        self._streams.pop(stream, None)
        self._busy.pop(stream, None)

    def watch_route(self, route: int, owner: RouteOwner) -> None:
        """Send a route's news to ``owner``."""
        self._routes[route] = owner

    def forget_route(self, route: int) -> None:
        """Send no more news of a route."""
        self._routes.pop(route, None)

    def watch_timer(self, peer: int, owner: TimerOwner) -> None:
        """Let ``owner`` be woken by a peer's number."""
        self._timers[peer] = owner

    def wake(self, number: int) -> None:
        """Have the owner of a stream, or who watches the timer of a peer, asked for its due work soon."""
        if number in self._streams or number in self._timers:
            self._busy[number] = 0
            loop, timer = self._loop, self._timer
            if loop is not None and timer is not None and timer.when() - loop.time() > TICK_S:
                timer.cancel()
                self._timer = loop.call_later(TICK_S, self._tick)

    def take_tapped(self) -> None:
        """Hand everything tapped so far to the recordings now."""
        self._tapped(self.forwarder.take_batches)

    # --- the pump

    def _drain(self) -> None:
        # What is tapped of another layer is written after it was said that one follows, also where an event
        # before it has everything tapped so far written.
        for event in sorted(self.forwarder.take_events(), key=lambda event: not isinstance(event, TapMoved)):
            try:
                self._dispatch(event)
            except Exception:
                # One session's fault must not stop the others' calls; it is counted and logged with its
                # trace.
                self._failed("event_failed", kind=type(event).__name__)
        try:
            self.take_tapped()
        except Exception:
            self._failed("tap_failed")

    def _dispatch(self, event: object) -> None:
        match event:
            case RawDatagram():
                self._datagram(event)
            case Rtcp():
                if (link := self._by_peer.get(event.peer)) is not None:
                    link.owner.received_rtcp(event)
            case NewSsrc():
                if (link := self._by_peer.get(event.peer)) is not None:
                    link.owner.found_ssrc(event)
            case Keyframe():
                if (owner := self._streams.get(event.stream)) is not None:
                    owner.keyframe_came(event)
            case Gap():
                if (owner := self._streams.get(event.stream)) is not None:
                    owner.gap_seen(event)
                    self.wake(event.stream)
            case Switched():
                if (subscriber := self._routes.get(event.route)) is not None:
                    subscriber.switched(event)
            case FeedbackTrouble():
                if (timed := self._timers.get(event.peer)) is not None:
                    timed.trouble()
            case TapMoved():
                if (owner := self._streams.get(event.stream)) is not None:
                    owner.tap_moved(event)
            case TapDropped():
                self._tap_dropped(event)

    def check(self, data: bytes, address: Address, client: Address | None, socket: int) -> CheckResult:
        """Have a STUN datagram answered, and bind its session's peer where that says so; the caller sends
        the reply. ``client`` as in ``IceAgent.receive``.
        """
        result = self.ice.receive(data, address, time.monotonic_ns(), socket, client)
        link = self.links.get(result.session) if result.session is not None else None
        if link is not None and result.bind:
            self._move(link, address, socket)
        return result

    def _move(self, link: Link, address: Address, socket: int) -> None:
        self.forwarder.bind(link.peer, address, socket)
        if link.state in (LinkState.CONNECTED, LinkState.DISCONNECTED):
            self.counters.paths_changed += 1
            link.owner.path_changed()

    def _follow(self, event: RawDatagram) -> None:
        """Let RTP from an unknown address move the client that provably sent it, if its old path is silent.

        A client whose address changed may check its path only seconds later (Chromium: 2.5 s); its media
        comes at once. Who replays packets has old ones; who holds them back and sends them from elsewhere
        stands in the way already, and the client's next check moves it back.
        """
        ssrc = int.from_bytes(event.data[8:12], "big")
        for link in self.links.values():
            if link.state in (LinkState.CONNECTED, LinkState.DISCONNECTED) and link.owner.sends(ssrc):
                silent_ns = time.monotonic_ns() - self.forwarder.peer_stats(link.peer).last_received_ns
                if silent_ns < FOLLOW_NS or not self.forwarder.authentic(link.peer, event.data):
                    continue
                if self.ice.follow(link.session, event.address, event.socket, time.monotonic_ns()):
                    self._move(link, event.address, event.socket)
                return

    def begin_dtls(self, result: CheckResult) -> None:
        """Begin the handshake where we are its client; after the reply to the check that bound it."""
        link = self.links.get(result.session) if result.session is not None else None
        if link is not None and result.bind:
            self._send(link, link.dtls.begin(time.monotonic_ns()))

    def _datagram(self, event: RawDatagram) -> None:
        first = event.data[0] if event.data else 255
        if first < 4:
            result = self.check(event.data, event.address, None, event.socket)
            if result.reply is not None:
                self.forwarder.send_raw(event.address, result.reply, event.socket)
            self.begin_dtls(result)
        elif 20 <= first <= 63:
            link = self._by_peer.get(event.peer) if event.peer is not None else None
            if link is None:
                self.counters.dtls_unbound += 1
                return
            flight = link.dtls.receive(event.data, time.monotonic_ns())
            if link.dtls.state is DtlsState.CONNECTED:
                # Keys before our last flight: the client's first packet must find them.
                fresh = link.state is LinkState.CONNECTING
                self._after_dtls(link)
                self._send(link, flight)
                if fresh and link.state is LinkState.CONNECTED:
                    link.owner.link_ready()
            else:
                self._send(link, flight)
                self._after_dtls(link)
        elif first >= 128:
            self._follow(event)
        else:
            self.counters.unknown_datagrams += 1

    def _send(self, link: Link, datagrams: Sequence[bytes]) -> None:
        place = self.ice.place(link.session)
        if place is not None:
            for datagram in datagrams:
                self.forwarder.send_raw(place[0], datagram, place[1])

    def _after_dtls(self, link: Link) -> None:
        state = link.dtls.state
        if state is DtlsState.CONNECTED and link.state is LinkState.CONNECTING:
            keys = link.dtls.keys
            assert keys is not None, "a connected endpoint has exported its keys"
            profile = Profile.AES_CM_128_HMAC_SHA1_80 if keys.profile is SHA1 else Profile.AEAD_AES_128_GCM
            self._shaking.discard(link.session)
            self._change(link, LinkState.CONNECTED)  # the owner's streams are there before the first packet
            if link.session in self.links:
                self.forwarder.set_keys(
                    link.peer, profile, keys.rx_key, keys.rx_salt, keys.tx_key, keys.tx_salt
                )
        elif state is DtlsState.FAILED:
            self.shut(link, link.dtls.error)
        elif state is DtlsState.CLOSED:
            self.shut(link, "client_closed")

    def _change(self, link: Link, state: LinkState, reason: str = "") -> None:
        if link.state is not state:
            link.state = state
            link.owner.link_changed(state, reason)

    # --- time

    def _tick(self) -> None:
        assert self._loop is not None
        now = time.monotonic_ns()
        for session in list(self._shaking):
            link = self.links.get(session)
            due = link.dtls.next_timer() if link is not None else None
            if link is not None and due is not None and due <= now:
                with self.contained("dtls_timer_failed"):
                    self._send(link, link.dtls.handle_timer(now))
                    self._after_dtls(link)
        for number, when in list(self._busy.items()):
            if when > now:
                continue
            owner = self._streams.get(number) or self._timers.get(number)
            again = None
            try:
                again = owner.handle_timer(now) if owner is not None else None
            except ForwarderError:
                again = None  # the stream ended between two ticks
            except Exception:
                again = None
                self._failed("timer_failed")
            if again is None:
                self._busy.pop(number, None)
            else:
                self._busy[number] = again
        if now - self._second_ns >= SECOND_NS:
            self._second_ns = now
            self._second(now)
        next_ns = self._second_ns + SECOND_NS
        for when in self._busy.values():
            next_ns = min(next_ns, when)
        for session in self._shaking:
            due = self.links[session].dtls.next_timer()
            next_ns = next_ns if due is None else min(next_ns, due)
        delay = max(TICK_S, (next_ns - time.monotonic_ns()) / SECOND_NS)
        self._timer = self._loop.call_later(delay, self._tick)

    def _second(self, now: int) -> None:
        def heard_ns(session: str) -> int:
            return self.forwarder.peer_stats(self.links[session].peer).last_received_ns

        for session, state in self.ice.handle_timer(now, heard_ns):
            found = self.links.get(session)
            if found is None:
                continue
            with self.contained("consent_failed"):
                if state is IceState.EXPIRED:
                    connecting = found.state is LinkState.CONNECTING
                    self.shut(found, "ice_timeout" if connecting else "consent_expired")
                elif found.state is not LinkState.CONNECTING:
                    connected = state is IceState.CONNECTED
                    self._change(found, LinkState.CONNECTED if connected else LinkState.DISCONNECTED)
        for call in self._each_second:
            with self.contained("second_failed"):
                call(now)

    @contextlib.contextmanager
    def contained(self, event: str) -> Iterator[None]:
        """Count and log a failure of one client's, or of one duty; the others' timers go on."""
        try:
            yield
        except Exception:
            self._failed(event)

    def _failed(self, event: str, **more: str) -> None:
        self.counters.internal_errors += 1
        _log.exception(event, **more)
