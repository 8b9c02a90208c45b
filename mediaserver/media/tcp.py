"""ICE-TCP (RFC 6544): passive TCP candidates, for clients whose firewall lets no UDP through.

The forwarder keeps to UDP. Every connection has a UDP socket of its own on the loopback interface, from which
its datagrams go to the forwarder and to which the forwarder sends; so a client on TCP is a peer like any
other. STUN does not take that way: checks are answered here, with the client's true address.

All workers listen on one port (SO_REUSEPORT), because a firewall opens one. The kernel gives a connection to
any of them; the first check names its session, the name's first two digits the worker, and the connection is
passed on to that one by its Unix socket. No process stands in the middle, none is missed when it dies.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import os
import resource
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from mediaserver.forwarder.interface import MAX_PACKET_BYTES, Address
from mediaserver.media import stun
from mediaserver.media.framing import Deframer, FrameError, frame
from mediaserver.media.ice import SECOND_NS, CheckResult, worker_of

MAX_CONNECTIONS = 2_048
"""Fewer where the process may open few files: connections, two each, take half of them at most, because
recordings need theirs."""
MAX_UNPROVEN = 256
"""Connections without a valid check. One more costs the oldest its place: who means it proves itself at
once, who holds connections open pushes out its own."""
PER_SESSION = 8
"""Connections of one session: a client moves from one to the next and has few at once. One more costs the one
that was checked longest ago its place, so that nobody fills the door with one token."""
MAX_FAULTS = 32
"""Checks of one connection that prove nothing, since its last good one. One read of a stream may bring
20,000, 10 us each, during which nobody else is served."""
MAX_FRAMES = 2_500
"""Frames a second of one connection: 24 Mbit/s in packets of 1,200 bytes. Who sends more is no camera."""
PROVE_NS = 10 * SECOND_NS
CONSENT_NS = 30 * SECOND_NS
"""RFC 7675 section 5.1: without a valid check for so long nobody is there any more."""
SOFT_BYTES = 128 << 10
"""With more waiting for a slow client its pictures are dropped: half a second of 2 Mbit/s."""
HARD_BYTES = 192 << 10
"""… and with more than this everything."""
SOUND_BYTES = 400
"""Longest packet taken for sound: Opus at 128 kbit/s has 320 bytes in 20 ms, most pictures more."""
UNSENT_BYTES = 64 << 10
"""Bytes the kernel may hold unsent; its own measure is megabytes, seconds of delay."""
_BATCH = 64
_TCP_NOTSENT_LOWAT = 25

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class TcpCounters:
    """What came and what was dropped; plain integers, read by the metrics."""

    accepted: int = 0
    refused: int = 0
    """Beyond ``MAX_CONNECTIONS``, or pushed out before they proved themselves."""
    handed_over: int = 0
    malformed: int = 0
    """Connections closed for a frame too long, or for anything but a check at their beginning."""
    timed_out: int = 0
    proven: int = 0
    dropped: int = 0
    """Packets not sent because the client takes them too slowly."""


Check = Callable[[bytes, Address, Address, int], CheckResult]
"""``(datagram, inner address, client's address, index of the forwarder's inner socket)``."""


def listen(addresses: list[str], port: int) -> list[socket.socket]:
    """Listen on one port of each address, beside other workers; 0 is any free one. Raises OSError."""
    listeners: list[socket.socket] = []
    try:
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((address, port))
            listener.listen(256)
            port = listener.getsockname()[1]
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


class _Connection:
    """One client's connection and its socket towards the forwarder."""

    def __init__(self, door: TcpDoor, sock: socket.socket, client: Address, now: int) -> None:
        self.door = door
        self.sock = sock
        self.client = client
        self.began_ns = self.checked_ns = now
        self.session = ""
        """Whose it is; empty before its first valid check."""
        self.inner: socket.socket | None = None
        self.inner_address: Address = ("", 0)
        self.deframer = Deframer(MAX_PACKET_BYTES)
        self.out = bytearray()
        self.faults = 0
        self.frames = 0
        self.frames_ns = now
        """Frames since then, of one second."""
        self.writing = False
        self.closed = False

    def read(self) -> None:
        """Take what the client sent."""
        try:
            data = self.sock.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.door.drop(self)
            return
        self.take(data)

    def take(self, data: bytes) -> None:
        """Take bytes of the stream."""
        try:
            frames = self.deframer.receive(data)
        except FrameError:
            self.door.counters.malformed += 1
            self.door.drop(self)
            return
        if self._hurries(len(frames)):
            self.door.counters.malformed += 1
            self.door.drop(self)
            return
        for at, datagram in enumerate(frames):
            if datagram[0] < 4:
                if self.inner is None and self.door.hand_over(self, frames[at:]):
                    return
                self._check(datagram)
            elif not self.session:
                self.door.counters.malformed += 1
                self.door.drop(self)
            elif self.inner is not None:
                with contextlib.suppress(OSError):  # full: lost, as UDP may lose
                    self.inner.send(datagram)
            if self.closed:
                return

    def _hurries(self, frames: int) -> bool:
        now = self.door.now()
        if now - self.frames_ns >= SECOND_NS:
            self.frames, self.frames_ns = 0, now
        self.frames += frames
        return self.frames > MAX_FRAMES

    def _check(self, datagram: bytes) -> None:
        try:
            self._open_inner()
        except OSError:
            self.door.counters.refused += 1  # no descriptor left: this client has to come again
            self.door.drop(self)
            return
        result = self.door.check(datagram, self.inner_address, self.client, self.door.forwarder_socket)
        if result.session is None:
            self.faults += 1
            if self.faults > MAX_FAULTS:
                self.door.counters.malformed += 1
                self.door.drop(self)
            return
        self.faults = 0
        self.checked_ns = self.door.now()
        if self.session != result.session:
            self.door.counters.proven += not self.session
            self.session = result.session
            self.door.make_room(self)
        if result.reply is not None:
            self._queue(result.reply)
            self.flush()
        self.door.answered(result)

    def _open_inner(self) -> None:
        if self.inner is None:
            inner = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            try:
                inner.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
                inner.bind(("127.0.0.1", 0))
                inner.connect(self.door.forwarder_address)
            except OSError:
                inner.close()
                raise
            self.inner, self.inner_address = inner, inner.getsockname()
            self.door.loop.add_reader(inner, self.relay)

    def relay(self) -> None:
        """Send on what the forwarder has for the client."""
        assert self.inner is not None, "there is one before it can be read"
        for _ in range(_BATCH):
            try:
                datagram = self.inner.recv(2048)
            except BlockingIOError:
                break
            except OSError:
                continue  # the forwarder is closing its socket: said once, by ICMP
            self._queue(datagram)
        self.flush()

    def _queue(self, datagram: bytes) -> None:
        waiting = len(self.out)
        if waiting > HARD_BYTES or (waiting > SOFT_BYTES and len(datagram) > SOUND_BYTES):
            self.door.counters.dropped += 1
            return
        self.out += frame(datagram)

    def flush(self) -> None:
        """Give the kernel what it takes now."""
        if self.closed:
            return
        try:
            while self.out:
                del self.out[: self.sock.send(self.out)]
        except BlockingIOError:
            pass
        except OSError:
            self.door.drop(self)
            return
        if bool(self.out) is not self.writing:
            self.writing = not self.writing
            if self.writing:
                self.door.loop.add_writer(self.sock, self.flush)
            else:
                self.door.loop.remove_writer(self.sock)


class TcpDoor:
    """All TCP connections of a worker. Everything runs in the event loop's thread."""

    def __init__(
        self,
        listeners: list[socket.socket],
        *,
        index: int,
        directory: Path,
        forwarder_address: Address,
        forwarder_socket: int,
    ) -> None:
        """Serve ``listeners`` for worker ``index``, whose siblings have their sockets in ``directory``.

        ``forwarder_socket`` is the forwarder's index of the UDP socket bound to ``forwarder_address``.
        """
        self.counters = TcpCounters()
        self.forwarder_address = forwarder_address
        self.forwarder_socket = forwarder_socket
        self.port: int = listeners[0].getsockname()[1]
        self._listeners = listeners
        self._index = index
        self._directory = directory
        self._connections: dict[_Connection, None] = {}
        self._unproven: dict[_Connection, None] = {}
        self._siblings: socket.socket | None = None
        self._resting: list[socket.socket] = []
        """Listeners that are not accepted from: there was no descriptor left."""
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._room = MAX_CONNECTIONS if files < 0 else min(MAX_CONNECTIONS, files // 4)

    def __len__(self) -> int:
        """Return how many connections are open."""
        return len(self._connections)

    def start(
        self,
        check: Check,
        answered: Callable[[CheckResult], None],
        lost: Callable[[Address], None],
        alive: Callable[[str], bool],
        now: Callable[[], int],
    ) -> None:
        """Accept connections in the running loop. ``check`` answers STUN, ``answered`` hears when the
        answer is on its way, ``lost`` of inner addresses that are gone, ``alive`` tells whether a session
        still is.
        """
        self.loop = asyncio.get_running_loop()
        self.check, self.answered = check, answered
        self._lost, self._alive, self.now = lost, alive, now
        for listener in self._listeners:
            self.loop.add_reader(listener, self._accept, listener)
        path = self._path(self._index)
        path.unlink(missing_ok=True)
        self._siblings = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._siblings.bind(str(path))
        self.loop.add_reader(self._siblings, self._adopt)

    def close(self) -> None:
        """Close all connections and listen no more. Idempotent."""
        for listener in self._listeners:
            self.loop.remove_reader(listener)
            listener.close()
        self._listeners = self._resting = []
        if self._siblings is not None:
            self.loop.remove_reader(self._siblings)
            self._siblings.close()
            self._siblings = None
            self._path(self._index).unlink(missing_ok=True)
        for connection in list(self._connections):
            self.drop(connection)

    def sweep(self, now: int) -> None:
        """End the connections that did not prove themselves in time, or whose session or client is gone."""
        while self._resting:
            listener = self._resting.pop()
            self.loop.add_reader(listener, self._accept, listener)
        for connection in list(self._connections):
            if not connection.session:
                late = now - connection.began_ns > PROVE_NS
            else:
                late = now - connection.checked_ns > CONSENT_NS
            if late:
                self.counters.timed_out += 1
            if late or (connection.session and not self._alive(connection.session)):
                self.drop(connection)

    def drop(self, connection: _Connection) -> None:
        """Close a connection and forget it."""
        if self._forget(connection):
            connection.sock.close()

    def make_room(self, connection: _Connection) -> None:
        """End the stalest other connection of a session that has one too many."""
        mine = [one for one in self._connections if one.session == connection.session]
        if len(mine) > PER_SESSION:
            self.counters.refused += 1
            self.drop(min((one for one in mine if one is not connection), key=lambda one: one.checked_ns))

    def hand_over(self, connection: _Connection, frames: list[bytes]) -> bool:
        """Give a connection to the worker its first check is for; False if that is this one, or nobody's."""
        try:
            request = stun.read(frames[0])
        except stun.StunError:
            return False
        worker = worker_of(request.ours) if request is not None else None
        if worker is None or worker == self._index or self._siblings is None:
            return False
        seen = b"".join(frame(datagram) for datagram in frames) + connection.deframer.held
        try:
            # Not socket.send_fds: it forgets the address (CPython 3.11).
            rights = array.array("i", [connection.sock.fileno()])
            self._siblings.sendmsg(
                [seen], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], 0, str(self._path(worker))
            )
        except BlockingIOError:
            return True  # its queue is full; the client repeats its check
        except OSError:
            self.counters.refused += 1  # there is no such worker
        else:
            self.counters.handed_over += 1
        self.drop(connection)
        return True

    def _path(self, worker: int) -> Path:
        return self._directory / f"tcp-{worker}.sock"

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_BATCH):
            try:
                sock, _ = listener.accept()
            except OSError as error:
                # None left, or gone already: the next call tries again. Without a descriptor it would be the
                # next turn of the loop, and every other: the next sweep.
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self.loop.remove_reader(listener)
                    self._resting.append(listener)
                return
            self._admit(sock, b"")

    def _adopt(self) -> None:
        assert self._siblings is not None, "it is read while it is open"
        try:
            seen, descriptors, _, _ = socket.recv_fds(self._siblings, 1 << 17, 1)
        except OSError:
            return
        for descriptor in descriptors:
            try:
                sock = socket.socket(fileno=descriptor)
            except OSError:
                os.close(descriptor)
                continue
            self._admit(sock, seen)

    def _admit(self, sock: socket.socket, seen: bytes) -> None:
        self._unproven = {one: None for one in self._unproven if not one.closed and not one.session}
        full = len(self._connections) >= self._room
        if full and not self._unproven:
            self.counters.refused += 1
            sock.close()
            return
        try:
            client = sock.getpeername()[:2]
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        except OSError:
            sock.close()
            return
        self.counters.accepted += 1
        connection = _Connection(self, sock, client, self.now())
        if full or len(self._unproven) >= MAX_UNPROVEN:
            self.counters.refused += 1
            self.drop(next(iter(self._unproven)))
        self._unproven[connection] = None
        self._connections[connection] = None
        self.loop.add_reader(sock, connection.read)
        if seen:
            connection.take(seen)

    def _forget(self, connection: _Connection) -> bool:
        if connection.closed:
            return False
        connection.closed = True
        self._connections.pop(connection, None)
        self._unproven.pop(connection, None)
        self.loop.remove_reader(connection.sock)
        if connection.writing:
            self.loop.remove_writer(connection.sock)
        if connection.inner is not None:
            self.loop.remove_reader(connection.inner)
            connection.inner.close()
            self._lost(connection.inner_address)
        return True
