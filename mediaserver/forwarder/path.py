"""The way of a packet through the Python forwarder: tables, receiving, forwarding, resending.

Everything here runs under the forwarder's lock (``batch.py``). A packet is copied once out of its receive
slot after it was decrypted there, taken apart once, and written once for each subscriber into a send slot,
where it is encrypted.
"""

from __future__ import annotations

import socket
from math import inf
from typing import Any, Final

from mediaserver.forwarder import red
from mediaserver.forwarder.feedback import nack_sequences, read_feedback
from mediaserver.forwarder.interface import (
    MAX_HELD_PACKETS,
    MAX_PACKET_BYTES,
    REPLAY_NS,
    STRAY_NS,
    FeedbackTrouble,
    Gap,
    Keyframe,
    NewSsrc,
    RawDatagram,
    Rtcp,
    Switched,
    TapMoved,
)
from mediaserver.forwarder.outbox import Outbox
from mediaserver.forwarder.paced import PacedPackets
from mediaserver.forwarder.peer import Peer, Role, Source
from mediaserver.forwarder.receive import CacheBudget, Stream
from mediaserver.forwarder.route import Epoch, Route, Sent
from mediaserver.forwarder.sockets import SLOT_BYTES, Destination, Receiver, Sender, ffi, unpack_address
from mediaserver.forwarder.srtp import OK, REPLAYED, TRAILER_BYTES, lib, srtp_ffi
from mediaserver.forwarder.wire import RtpPacket, element, parse_rtp, rtcp_packets

_SENDER_REPORT: Final = 200
_RECEIVER_REPORT: Final = 201
_DESCRIPTION: Final = 202
_BYE: Final = 203
_TRANSPORT_FEEDBACK: Final = 205
_NACK: Final = 1
_TRANSPORT_CC: Final = 15
MAX_PADDING: Final = 64


class PacketPath:
    """Tables of a forwarder and what happens to its packets."""

    def __init__(self, sockets: list[socket.socket], outbox: Outbox) -> None:
        self.outbox = outbox
        self.receivers = [Receiver(sock, index) for index, sock in enumerate(sockets)]
        self.sender = Sender(sockets)
        self.budget = CacheBudget()
        self.peers: dict[int, Peer] = {}
        self.streams: dict[int, Stream] = {}
        self.routes: dict[int, Route] = {}
        self.bound: list[dict[bytes, Peer]] = [{} for _ in sockets]
        self.batches = self.unknown = self.malformed = self.stray_ns = 0
        self.paced = PacedPackets(self._leave)
        self.now_ns = 0
        self._seconds = 0
        self._length: Any = srtp_ffi.new("int *")

    def tick(self, now_ns: int) -> None:
        """Set the time for what follows."""
        self.now_ns = now_ns
        # abs-send-time: 24 bits of seconds in 6.18 fixed point.
        self._seconds = (now_ns << 18) // 1_000_000_000 & 0xFFFFFF

    # --- receiving

    def receive(self, receiver: Receiver) -> int:
        """Take one batch of a socket; return how many datagrams it had."""
        batch = receiver.receive()
        if not batch:
            return 0
        self.batches += 1
        bound = self.bound[receiver.index]
        buffer = receiver.buffer
        for slot, length, name, arrival_ns in batch:
            if length < 2:
                self.malformed += 1
                continue
            at = slot * SLOT_BYTES
            first = buffer[at][0]
            peer = bound.get(name)
            if 128 <= first <= 191:
                rtcp = 192 <= buffer[at + 1][0] <= 223  # RFC 5761 section 4
                if peer is None:
                    self.unknown += 1
                    if not rtcp and arrival_ns - self.stray_ns >= STRAY_NS:
                        # Perhaps a client whose address has changed.
                        self.stray_ns = arrival_ns
                        data = buffer[at : at + length]
                        address = unpack_address(name)
                        self.outbox.put(RawDatagram(None, address, receiver.index, data, arrival_ns))
                elif rtcp:
                    self._receive_rtcp(peer, receiver, slot, length, arrival_ns)
                else:
                    self._receive_rtp(peer, receiver, slot, length, arrival_ns)
            elif first <= 3 or (20 <= first <= 63 and peer is not None):  # RFC 7983
                number = peer.number if peer else None
                data = buffer[at : at + length]
                self.outbox.put(RawDatagram(number, unpack_address(name), receiver.index, data, arrival_ns))
            elif 20 <= first <= 63:
                self.unknown += 1
            else:
                self.malformed += 1
        return len(batch)

    def authentic(self, peer: Peer, data: bytes) -> bool:
        """Tell whether a packet from elsewhere is the peer's; see ``Forwarder.authentic``."""
        if not 12 <= len(data) <= MAX_PACKET_BYTES:
            return False
        source = peer.sources.get(int.from_bytes(data[8:12], "big"))
        stream = source.stream if source is not None and source.role is Role.MEDIA else None
        if stream is None or stream.highest < 0:
            return False
        ahead = (int.from_bytes(data[2:4], "big") - stream.highest) & 0xFFFF
        copy = srtp_ffi.new("char[]", data)
        return 0 < ahead < 0x8000 and self._unprotect(peer, lib.srtp_unprotect, copy, len(data)) >= 0

    def _receive_rtp(self, peer: Peer, receiver: Receiver, slot: int, length: int, arrival_ns: int) -> None:
        at = slot * SLOT_BYTES
        if length < 12:
            peer.malformed += 1
            return
        ssrc = int.from_bytes(receiver.buffer[at + 8 : at + 12], "big")
        if not peer.admits(ssrc):
            peer.refused += 1
            return
        size = self._unprotect(peer, lib.srtp_unprotect, receiver.pointers[slot], length)
        if size < 0:
            return
        packet = parse_rtp(receiver.buffer[at : at + size], arrival_ns)
        peer.packets_received += 1
        peer.bytes_received += length
        peer.last_received_ns = arrival_ns
        source = peer.sources.get(ssrc)
        if packet is None:
            peer.malformed += 1
            if source is None:
                peer.sources[ssrc] = Source(Role.IGNORED)  # authenticated rubbish: it has an SRTP stream now
            elif source.stream is not None:
                source.stream.malformed += 1
            return
        if peer.transport_cc_id:
            value = element(packet, peer.transport_cc_id)
            if value is not None and len(value) >= 2:
                peer.log.add(value[0] << 8 | value[1], arrival_ns, ssrc)
        if source is None:
            source = peer.sources[ssrc] = Source(Role.HELD)
            self.outbox.put(
                NewSsrc(
                    peer.number,
                    ssrc,
                    packet.payload_type,
                    peer.described(packet, peer.mid_id),
                    peer.described(packet, peer.rid_id),
                    peer.described(packet, peer.repaired_rid_id),
                    arrival_ns,
                )
            )
        self.dispatch(peer, source, packet)

    def _unprotect(self, peer: Peer, function: Any, pointer: Any, length: int) -> int:
        if peer.rx is None:
            peer.auth_failed += 1
            return -1
        self._length[0] = length
        status = function(peer.rx.session, pointer, self._length)
        if status == OK:
            return int(self._length[0])
        if status in REPLAYED:
            peer.replayed += 1
        else:
            peer.auth_failed += 1
        return -1

    def dispatch(self, peer: Peer, source: Source, packet: RtpPacket) -> None:
        """Give an authenticated packet to its stream, or hold it."""
        stream = source.stream
        if source.role is Role.HELD:
            if len(peer.held) < MAX_HELD_PACKETS:
                peer.held.append(packet)
            else:
                peer.refused += 1
        elif stream is None:
            peer.refused += 1
        elif source.role is Role.MEDIA:
            self._media(stream, packet, recovered=False)
        else:
            self._retransmission(stream, packet)

    def _retransmission(self, stream: Stream, packet: RtpPacket) -> None:
        # RFC 4588 section 4: the payload begins with the original sequence number.
        if stream.rtx_payload_type is not None and packet.payload_type != stream.rtx_payload_type:
            stream.other_payload += 1
            return
        start = packet.payload_start
        if packet.payload_end - start < 2:
            return  # a padding probe
        data = packet.data
        original = (
            bytes((data[0], packet.marker | stream.payload_type))
            + data[start : start + 2]
            + data[4:8]
            + stream.ssrc.to_bytes(4, "big")
            + data[12:start]
            + data[start + 2 :]
        )
        unwrapped = parse_rtp(original, packet.arrival_ns)
        if unwrapped is None:
            stream.malformed += 1
        else:
            self._media(stream, unwrapped, recovered=True)

    def _media(self, stream: Stream, packet: RtpPacket, *, recovered: bool) -> None:
        if packet.payload_type != stream.payload_type and not self._is_red(stream, packet):
            return
        gap = stream.account(packet, recovered=recovered)
        if gap is False:
            return
        if isinstance(gap, tuple):
            self.outbox.put(Gap(stream.number, gap[0], gap[1], packet.arrival_ns))
        moved = stream.tap_from is not None and self._take_tap(stream, stream.tap_from, packet)
        if stream.track is not None:
            self.outbox.tap(stream.track, packet.arrival_ns, packet.data, False)
            # Of a keyframe whose first packet had to be resent all the others came before it.
            for extended in sorted(e for e in stream.cache if e > packet.extended) if moved else ():
                later = stream.cache[extended]
                self.outbox.tap(stream.track, later.arrival_ns, later.data, False)
        stream.keep(packet)
        if packet.keyframe:
            self.outbox.put(Keyframe(stream.number, packet.timestamp, packet.arrival_ns))
        for route in stream.routes:
            self._forward(route, stream, packet)

    def _is_red(self, stream: Stream, packet: RtpPacket) -> bool:
        """Tell whether a packet of another payload type carries frames of the stream's; count it if not."""
        found = red.FOREIGN
        if packet.payload_type == stream.red_payload_type:
            start, end = packet.payload_start, packet.payload_end
            found = red.primary(packet.data, start, end, stream.payload_type)
        stream.other_payload += found == red.FOREIGN
        stream.malformed += found == red.MALFORMED
        return found > 0

    def _take_tap(self, stream: Stream, former: Stream, packet: RtpPacket) -> bool:
        """Take over another stream's tap, if it can be with this packet; tell whether it was."""
        if packet.extended <= stream.tap_floor or (stream.codec and not packet.keyframe):
            return False
        if former.track is not None:
            if not self.outbox.put(TapMoved(former.track, stream.number, packet.arrival_ns)):
                return False  # nobody would know: with the next one
            self.outbox.hold()
            stream.track, former.track = former.track, None
        stream.tap_from = None
        return stream.track is not None

    # --- sending

    def _forward(self, route: Route, stream: Stream, packet: RtpPacket) -> None:
        if route.paused or not route.peer.ready:
            return
        if route.pending is stream or (route.waiting and route.pending is None):
            if stream.codec and not packet.keyframe:
                return
            self._begin(route, stream, packet)
            return
        epoch = route.epoch
        if route.waiting or epoch is None or epoch.stream is not stream or packet.extended < epoch.floor:
            return
        self._first(route, packet, epoch)

    def _first(self, route: Route, packet: RtpPacket, epoch: Epoch) -> None:
        if not route.judge(packet, epoch):
            return
        peer = route.peer
        if epoch.stream.codec and peer.pacer.waits(self.now_ns):
            size = len(route.first(packet, epoch, self._seconds, waits=True))
            self.paced.add(route, packet, size, self.now_ns)
            return
        number = peer.number_sent
        size = self._emit(peer, route.first(packet, epoch, self._seconds), number)
        peer.pacer.spend(size, self.now_ns)

    def _leave(self, route: Route, packet: RtpPacket, sent: Sent) -> int:
        number = route.peer.number_sent
        return self._emit(route.peer, route.released(packet, sent, self._seconds), number)

    def _begin(self, route: Route, stream: Stream, packet: RtpPacket) -> None:
        """Begin with ``packet``, then send what came before its time and what came since it."""
        if route.stream is not None and route.stream is not stream:
            route.stream.routes.remove(route)
        route.begin(stream, packet)
        self.outbox.put(Switched(route.number, stream.number, self.now_ns))
        epoch = route.epoch
        assert epoch is not None
        self._first(route, packet, epoch)
        for extended in sorted(e for e in stream.cache if e > packet.extended):
            self._first(route, stream.cache[extended], epoch)

    def replay(self, route: Route) -> None:
        """Begin a waiting route with the last keyframe, if the cache still holds it and it is fresh."""
        stream = route.pending or route.stream
        if stream is None or not route.waiting or route.paused or not route.peer.ready:
            return
        packet = stream.cache.get(stream.keyframe_extended)
        if packet is not None and self.now_ns - packet.arrival_ns <= REPLAY_NS:
            self._begin(route, stream, packet)

    def _emit(self, peer: Peer, data: bytes, number: int) -> int:
        """Encrypt and queue; return the length. ``number``: the peer's next before ``data`` was made."""
        destination, tx = peer.destination, peer.tx
        sender = self.sender
        if destination is None or tx is None or len(data) > SLOT_BYTES - TRAILER_BYTES:
            peer.send_failed += 1
            return 0
        pointer = sender.pointers[sender.next]
        ffi.memmove(pointer, data, len(data))
        length = self._length
        length[0] = len(data)
        if lib.srtp_protect(tx.session, pointer, length) != OK:
            peer.send_failed += 1
            return 0
        peer.packets_sent += 1
        peer.bytes_sent += length[0]
        if peer.number_sent != number and peer.sent_log.note(number, self.now_ns, length[0]):
            self.outbox.put(FeedbackTrouble(peer.number, self.now_ns))
        sender.add(destination, length[0])
        return int(length[0])

    def resend(self, route: Route, sequences: list[int]) -> int:
        """Answer a NACK; return how many packets were sent."""
        if route.paused or not route.peer.ready:
            return 0
        count = 0
        for sequence in sequences:
            number = route.peer.number_sent
            data = route.again(sequence & 0xFFFF, self.now_ns, self._seconds)
            if data is not None:
                route.peer.pacer.spend(self._emit(route.peer, data, number), self.now_ns)
                count += 1
        return count

    def pad(self, route: Route, size: int) -> int:
        """Fill the line; return the bytes sent."""
        if route.paused or route.waiting or route.last < 0 or not route.peer.ready:
            return 0
        at, sent = route.last, 0
        for _ in range(MAX_PADDING):
            if sent >= size:
                break
            number = route.peer.number_sent
            data, at = route.filler(at, self._seconds)
            length = self._emit(route.peer, data, number) if data else 0
            if not length:
                break
            sent += length
        route.padding += sent
        return sent

    def send_rtcp(self, peer: Peer, data: bytes) -> bool:
        """Encrypt and queue a compound."""
        if peer.tx is None or peer.destination is None:
            return False
        sender = self.sender
        pointer = sender.pointers[sender.next]
        ffi.memmove(pointer, data, len(data))
        self._length[0] = len(data)
        if lib.srtp_protect_rtcp(peer.tx.session, pointer, self._length) != OK:
            peer.send_failed += 1
            return False
        peer.packets_sent += 1
        peer.bytes_sent += self._length[0]
        sender.add(peer.destination, self._length[0])
        return True

    def send_raw(self, destination: Destination, data: bytes) -> None:
        """Queue a datagram as it is."""
        sender = self.sender
        ffi.memmove(sender.pointers[sender.next], data, len(data))
        sender.add(destination, len(data))

    # --- RTCP

    def _receive_rtcp(self, peer: Peer, receiver: Receiver, slot: int, length: int, arrival_ns: int) -> None:
        at = slot * SLOT_BYTES
        if length < 8:
            peer.malformed += 1
            return
        ssrc = int.from_bytes(receiver.buffer[at + 4 : at + 8], "big")
        if not peer.admits_rtcp(ssrc):
            peer.refused += 1
            return
        size = self._unprotect(peer, lib.srtp_unprotect_rtcp, receiver.pointers[slot], length)
        if size < 0:
            return
        peer.rtcp_ssrcs.add(ssrc)
        peer.packets_received += 1
        peer.bytes_received += length
        peer.last_received_ns = arrival_ns
        data = receiver.buffer[at : at + size]
        packets = rtcp_packets(data)
        if packets is None:
            peer.malformed += 1
            return
        tracks: list[int] = []
        deliver = False
        for kind, count, start, size in packets:
            if kind == _TRANSPORT_FEEDBACK and count == _NACK and size >= 16:
                media = int.from_bytes(data[start + 8 : start + 12], "big")
                route = peer.routes.get(media)
                if route is None or route.ssrc != media:
                    deliver = True
                else:
                    self.resend(route, nack_sequences(data, start, size))
            elif kind == _TRANSPORT_FEEDBACK and count == _TRANSPORT_CC:
                reported, lost = read_feedback(data, start, size)
                peer.reported += reported
                peer.reported_lost += lost
                if peer.sent_log.told(data, start, size, peer.number_sent, arrival_ns):
                    self.outbox.put(FeedbackTrouble(peer.number, arrival_ns))
            elif kind == _RECEIVER_REPORT:
                self._note_reports(peer, data, start, count, size, arrival_ns)
            elif kind != _DESCRIPTION:
                deliver = True
                if kind in (_SENDER_REPORT, _BYE):
                    source = peer.sources.get(int.from_bytes(data[start + 4 : start + 8], "big"))
                    stream = source.stream if source is not None and source.role is Role.MEDIA else None
                    if stream is not None and stream.track is not None and stream.track not in tracks:
                        tracks.append(stream.track)
        for track in tracks:
            self.outbox.tap(track, arrival_ns, data, True)
        if deliver:
            self.outbox.put(Rtcp(peer.number, data, arrival_ns))

    def _note_reports(
        self, peer: Peer, data: bytes, start: int, count: int, size: int, arrival_ns: int
    ) -> None:
        for at in range(start + 8, min(start + 8 + 24 * count, start + size - 23), 24):
            ssrc = int.from_bytes(data[at : at + 4], "big")
            route = peer.routes.get(ssrc)
            if route is not None and route.ssrc == ssrc:
                route.fraction_lost, route.report_ns = data[at + 4], arrival_ns

    def feedback(self) -> float:
        """Send the transport-cc feedback that is due; return when the next is (ns), infinity if never."""
        due = inf
        for peer in self.peers.values():
            log = peer.log
            if not log.interval_ns:
                continue
            if self.now_ns >= log.due_ns:
                log.due_ns = self.now_ns + log.interval_ns
                if peer.ready:
                    for compound in log.build():
                        if self.send_rtcp(peer, compound):
                            peer.feedback_sent += 1
            due = min(due, log.due_ns)
        return due
