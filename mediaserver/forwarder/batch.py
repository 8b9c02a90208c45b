"""The Python forwarder: batches of system calls through cffi, libsrtp in place, one thread.

It is the oracle of the native forwarder in tests, and serves where no compiler was there. It takes 7 to 9
times the native one's CPU per packet (docs/forwarder.md), and its thread shares the interpreter lock with
everything else.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf
from typing import Final

from mediaserver.forwarder.arguments import check_route, check_stream, layers_wanted
from mediaserver.forwarder.counters import ForwarderStats, PeerStats, RouteStats, SendFeedback, StreamStats
from mediaserver.forwarder.interface import (
    MAX_ADDRESSES_PER_PEER,
    MAX_PACKET_BYTES,
    MAX_PEERS,
    MAX_ROUTES,
    MAX_STREAMS,
    Address,
    Event,
    ForwarderError,
    Profile,
    RouteParameters,
    StreamParameters,
    Tapped,
    Targets,
)
from mediaserver.forwarder.journal import batches
from mediaserver.forwarder.layers import LayerFilter, layer_rows
from mediaserver.forwarder.outbox import Outbox
from mediaserver.forwarder.path import PacketPath
from mediaserver.forwarder.peer import MAX_SENT_SSRCS, Peer, Role, Source
from mediaserver.forwarder.receive import Stream
from mediaserver.forwarder.route import Route
from mediaserver.forwarder.sockets import Destination, pack_address, prepare
from mediaserver.forwarder.srtp import SrtpDirection
from mediaserver.forwarder.tables import drop_route, drop_stream
from recorder.records import PacketBatch

_IDLE_MS: Final = 200
_BUSY_DATAGRAMS: Final = 8
_NAP_S: Final = 0.0005


class BatchForwarder:
    """A ``Forwarder`` in Python; see ``interface.Forwarder`` for what each method does."""

    kind = "python"

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        if not sockets:
            raise ForwarderError("a forwarder needs a socket")
        self._sockets = list(sockets)
        self._receive_buffer = min(prepare(sock) for sock in self._sockets)
        self._outbox = Outbox()
        self._path = PacketPath(self._sockets, self._outbox)
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closed = False
        self._asleep_until_ns = 0.0
        self._calls = 0
        self._next = 0
        self._thread = threading.Thread(target=self._run, name="forwarder", daemon=True)
        self._thread.start()

    @property
    def event_fd(self) -> int:
        return self._outbox.fd

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)
        self._outbox.close()

    # --- the thread

    def _run(self) -> None:
        path = self._path
        poller = select.poll()
        for sock in self._sockets:
            poller.register(sock, select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        timeout = _IDLE_MS
        while not self._closed:
            if any(fd == self._wake for fd, _ in poller.poll(timeout)):
                os.eventfd_read(self._wake)
            busy = 0
            for receiver in path.receivers:
                with self._lock:
                    path.tick(time.monotonic_ns())
                    busy += path.receive(receiver)
                    path.sender.flush()
                    self._outbox.signal(path.now_ns)
            with self._lock:
                path.tick(time.monotonic_ns())
                due = min(path.feedback(), path.paced.release(path.now_ns))
                path.sender.flush()
                self._outbox.signal(path.now_ns)
                timeout = (
                    _IDLE_MS if due == inf else min(_IDLE_MS, max(int(due - path.now_ns) // 1_000_000, 1))
                )
                if self._outbox.waiting():
                    timeout = min(timeout, 20)
                self._asleep_until_ns = due
            if busy >= _BUSY_DATAGRAMS:
                # Under load a short nap makes the next batch larger: fewer wake-ups, longer runs for GSO.
                time.sleep(_NAP_S)

    @contextmanager
    def _locked(self) -> Iterator[PacketPath]:
        with self._lock:
            if self._closed:
                raise ForwarderError("the forwarder is closed")
            self._calls += 1
            self._path.tick(time.monotonic_ns())
            try:
                yield self._path
            finally:
                self._path.sender.flush()
                self._outbox.signal(self._path.now_ns)
                if self._path.paced.due_ns < self._asleep_until_ns:
                    os.eventfd_write(self._wake, 1)  # a call has let packets wait

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _peer(self, number: int) -> Peer:
        peer = self._path.peers.get(number)
        if peer is None:
            raise ForwarderError(f"no such peer: {number}")
        return peer

    def _stream(self, number: int) -> Stream:
        stream = self._path.streams.get(number)
        if stream is None:
            raise ForwarderError(f"no such stream: {number}")
        return stream

    def _route(self, number: int) -> Route:
        route = self._path.routes.get(number)
        if route is None:
            raise ForwarderError(f"no such route: {number}")
        return route

    # --- peers

    def add_peer(self, extensions: Mapping[str, int] | None = None) -> int:
        with self._locked() as path:
            if len(path.peers) >= MAX_PEERS:
                raise ForwarderError(f"there are {MAX_PEERS} peers already")
            peer = Peer(self._number(), extensions or {})
            path.peers[peer.number] = peer
            return peer.number

    def remove_peer(self, peer: int) -> None:
        with self._locked() as path:
            gone = self._peer(peer)
            for stream in list(gone.streams):
                drop_stream(path, stream)
            for route in set(gone.routes.values()):
                drop_route(path, route)
            for index, name in gone.addresses:
                path.bound[index].pop(name, None)
            del path.peers[peer]

    def set_extensions(self, peer: int, extensions: Mapping[str, int]) -> None:
        with self._locked():
            self._peer(peer).set_extensions(extensions)

    def bind(self, peer: int, address: Address, socket: int = 0) -> None:
        with self._locked() as path:
            bound = self._peer(peer)
            name = pack_address(address, self._family(socket))
            before = path.bound[socket].get(name)
            if before is not None and before is not bound:
                before.addresses.remove((socket, name))
                if before.destination is not None and bytes(before.destination.name) == name:
                    before.destination = None
            if (socket, name) in bound.addresses:
                bound.addresses.remove((socket, name))
            bound.addresses.append((socket, name))
            path.bound[socket][name] = bound
            if len(bound.addresses) > MAX_ADDRESSES_PER_PEER:
                old_index, old = bound.addresses.pop(0)
                del path.bound[old_index][old]
            bound.destination = Destination(socket, name)
            self._replay(bound)

    def _family(self, index: int) -> int:
        if not 0 <= index < len(self._sockets):
            raise ForwarderError(f"no such socket: {index}")
        return int(self._sockets[index].family)

    def set_keys(
        self, peer: int, profile: Profile, rx_key: bytes, rx_salt: bytes, tx_key: bytes, tx_salt: bytes
    ) -> None:
        with self._locked() as path:
            keyed = self._peer(peer)
            path.paced.drop(keyed)
            rx = SrtpDirection(profile, rx_key, rx_salt, inbound=True)
            keyed.tx = SrtpDirection(profile, tx_key, tx_salt, inbound=False)
            keyed.rx = rx
            self._replay(keyed)

    def _replay(self, peer: Peer) -> None:
        for route in set(peer.routes.values()):
            self._path.replay(route)

    # --- streams

    def add_stream(self, peer: int, ssrc: int, parameters: StreamParameters) -> int:
        check_stream(parameters)
        with self._locked() as path:
            if len(path.streams) >= MAX_STREAMS:
                raise ForwarderError(f"there are {MAX_STREAMS} streams already")
            if parameters.clock_rate <= 0:
                raise ForwarderError(f"no such clock rate: {parameters.clock_rate}")
            owner = self._peer(peer)
            stream = Stream(self._number(), owner, ssrc, parameters, path.budget)
            owner.claim(ssrc, Role.MEDIA, stream)
            if parameters.rtx_ssrc is not None:
                try:
                    owner.claim(parameters.rtx_ssrc, Role.RTX, stream)
                except ForwarderError:
                    owner.sources[ssrc] = Source(Role.IGNORED)
                    raise
            owner.streams.add(stream)
            path.streams[stream.number] = stream
            self._release(owner, ssrc)
            if parameters.rtx_ssrc is not None:
                self._release(owner, parameters.rtx_ssrc)
            return stream.number

    def _release(self, peer: Peer, ssrc: int) -> None:
        held = [packet for packet in peer.held if packet.ssrc == ssrc]
        peer.held = [packet for packet in peer.held if packet.ssrc != ssrc]
        for packet in held:
            self._path.dispatch(peer, peer.sources[ssrc], packet)

    def remove_stream(self, stream: int) -> None:
        with self._locked() as path:
            drop_stream(path, self._stream(stream))

    def set_rtx_ssrc(self, stream: int, ssrc: int) -> None:
        with self._locked():
            found = self._stream(stream)
            found.peer.claim(ssrc, Role.RTX, found)
            found.rtx_ssrc = ssrc
            self._release(found.peer, ssrc)

    def ignore_ssrc(self, peer: int, ssrc: int) -> None:
        with self._locked():
            owner = self._peer(peer)
            source = owner.sources.get(ssrc)
            if source is not None and source.stream is not None:
                raise ForwarderError(f"SSRC {ssrc} of peer {peer} has a stream")
            if source is None and not owner.admits(ssrc):
                return
            owner.sources[ssrc] = Source(Role.IGNORED)
            owner.held = [packet for packet in owner.held if packet.ssrc != ssrc]

    def layer_bytes(self, stream: int) -> list[list[int]]:
        with self._locked():
            return layer_rows(self._stream(stream).layers.bytes)

    def missing(self, stream: int, span: int = 512) -> list[int]:
        with self._locked():
            return self._stream(stream).missing(span)

    def tap(self, stream: int, track: int | None) -> None:
        with self._locked():
            tapped = self._stream(stream)
            tapped.track, tapped.tap_from = track, None

    def move_tap(self, stream: int, to: int) -> None:
        with self._locked():
            former, target = self._stream(stream), self._stream(to)
            target.tap_from = None if former is target else former
            target.tap_floor = target.highest

    def stay(self, stream: int) -> bool:
        with self._locked():
            return self._stream(stream).stay()

    # --- routes

    def add_route(self, stream: int, peer: int, parameters: RouteParameters) -> int:
        check_route(parameters)
        with self._locked() as path:
            if len(path.routes) >= MAX_ROUTES:
                raise ForwarderError(f"there are {MAX_ROUTES} routes already")
            source, target = self._stream(stream), self._peer(peer)
            ssrcs = [parameters.ssrc]
            if parameters.rtx_ssrc is not None:
                ssrcs.append(parameters.rtx_ssrc)
            if len(set(ssrcs)) < len(ssrcs) or any(ssrc in target.routes for ssrc in ssrcs):
                raise ForwarderError(f"an SSRC of {ssrcs} is sent to peer {peer} already")
            if len(target.sent_ssrcs) + len(target.routes) + len(ssrcs) > MAX_SENT_SSRCS:
                raise ForwarderError(f"too many SSRCs were sent to peer {peer}")
            first = parameters.first_sequence
            route = Route(self._number(), target, parameters)
            if first is None:
                first = secrets.randbelow(0x8000)
            route.next = target.sent_ssrcs.get(route.ssrc, first)
            if parameters.rtx_ssrc is not None:
                route.next_rtx = target.sent_ssrcs.get(parameters.rtx_ssrc, secrets.randbelow(0x8000))
            route.stream = source
            source.routes.append(route)
            for ssrc in ssrcs:
                target.routes[ssrc] = route
            path.routes[route.number] = route
            path.replay(route)
            return route.number

    def remove_route(self, route: int) -> None:
        with self._locked() as path:
            drop_route(path, self._route(route))

    def switch(
        self, route: int, stream: int, *, payload_type: int | None = None, rtx_payload_type: int | None = None
    ) -> None:
        with self._locked() as path:
            switched, target = self._route(route), self._stream(stream)
            if payload_type is not None:
                switched.payload_type = payload_type
            if rtx_payload_type is not None:
                switched.rtx_payload_type = rtx_payload_type
            pending = switched.pending
            if pending is not None and pending is not switched.stream:
                pending.routes.remove(switched)
            switched.pending = None
            if switched.stream is target:
                return
            if switched.stream is None:
                switched.stream = target
                switched.waiting = True
            else:
                switched.pending = target
            target.routes.append(switched)
            if switched.waiting:
                path.replay(switched)

    def pause(self, route: int, paused: bool) -> None:
        with self._locked():
            found = self._route(route)
            if paused and not found.paused:
                found.waiting = True
            found.paused = paused

    def set_layers(self, route: int, spatial: int | None, temporal: int | None) -> None:
        with self._locked():
            found, wanted = self._route(route), layers_wanted(spatial, temporal)
            if found.filter is None:
                source = found.stream
                begun = (source.highest, source.last_timestamp) if source is not None else (0, None)
                found.filter = LayerFilter(*begun)
            found.filter.wanted = wanted

    def resend(self, route: int, sequences: Sequence[int]) -> int:
        with self._locked() as path:
            return path.resend(self._route(route), list(sequences))

    def send_padding(self, route: int, size: int) -> int:
        with self._locked() as path:
            return path.pad(self._route(route), size)

    # --- datagrams

    def send_rtcp(self, peer: int, data: bytes) -> bool:
        with self._locked() as path:
            if not 8 <= len(data) <= MAX_PACKET_BYTES:
                raise ForwarderError(f"not an RTCP packet: {len(data)} bytes")
            return path.send_rtcp(self._peer(peer), data)

    def send_raw(self, address: Address, data: bytes, socket: int = 0) -> None:
        with self._locked() as path:
            if len(data) > MAX_PACKET_BYTES:
                raise ForwarderError(f"too long for a datagram: {len(data)} bytes")
            path.send_raw(Destination(socket, pack_address(address, self._family(socket))), data)

    def authentic(self, peer: int, data: bytes) -> bool:
        with self._locked() as path:
            return path.authentic(self._peer(peer), data)

    def set_feedback(self, peer: int, interval_ms: int, sender_ssrc: int = 1) -> None:
        with self._locked():
            log = self._peer(peer).log
            log.interval_ns = interval_ms * 1_000_000
            log.sender_ssrc = sender_ssrc
            log.due_ns = self._path.now_ns + log.interval_ns
        os.eventfd_write(self._wake, 1)

    def take_arrivals(self, peer: int) -> list[tuple[int, int]]:
        with self._locked():
            return self._peer(peer).log.take()

    def set_measured(self, peer: int, measured: bool) -> None:
        with self._locked():
            self._peer(peer).measured = measured

    def set_pace(self, peer: int, bps: int) -> None:
        if bps < 0:
            raise ForwarderError(f"no such pace: {bps} bit/s")
        with self._locked() as path:
            path.paced.set(self._peer(peer), bps, path.now_ns)

    def watch_feedback(self, peer: int, way_ns: int, lost: int) -> SendFeedback:
        with self._locked():
            told = self._peer(peer)
            return told.sent_log.take(told.number_sent, told.bytes_sent, (way_ns, lost))

    def take_feedback(self, peer: int) -> SendFeedback:
        with self._locked():
            told = self._peer(peer)
            return told.sent_log.take(told.number_sent, told.bytes_sent)

    # --- results

    def take_events(self) -> list[Event]:
        with self._locked():
            return self._outbox.take_events()

    def take_tapped(self) -> list[Tapped]:
        with self._locked():
            return self._outbox.take_tapped()

    def take_batches(self, targets: Targets) -> list[tuple[int, PacketBatch]]:
        return batches(self.take_tapped(), targets)

    def stats(self) -> ForwarderStats:
        with self._locked() as path:
            return ForwarderStats(
                kind=self.kind,
                crypto="libsrtp",
                datagrams_received=sum(r.received for r in path.receivers),
                datagrams_sent=path.sender.datagrams,
                send_messages=path.sender.messages,
                receive_batches=path.batches,
                unknown_address=path.unknown,
                malformed=path.malformed + sum(r.truncated for r in path.receivers),
                kernel_dropped=sum(r.kernel_dropped for r in path.receivers),
                send_failed=path.sender.failed,
                events_dropped=self._outbox.events_dropped,
                tap_dropped=self._outbox.tap_dropped,
                python_calls=self._calls,
                cache_bytes=path.budget.used,
                receive_buffer_bytes=self._receive_buffer,
                peers=len(path.peers),
                streams=len(path.streams),
                routes=len(path.routes),
                paced=path.paced.packets,
                paced_ns=path.paced.waited_ns,
                paced_bytes=path.paced.bytes,
                pace_dropped=path.paced.dropped,
            )

    def peer_stats(self, peer: int) -> PeerStats:
        with self._locked():
            return self._peer(peer).stats()

    def stream_stats(self, stream: int) -> StreamStats:
        with self._locked():
            return self._stream(stream).stats()

    def received_bytes(self, stream: int) -> int:
        with self._locked():
            return self._stream(stream).bytes

    def route_stats(self, route: int) -> RouteStats:
        with self._locked():
            return self._route(route).stats()
