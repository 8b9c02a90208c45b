"""Batches of datagrams: recvmmsg with kernel time stamps, sendmmsg with UDP segmentation offload (GSO), by
cffi.

Linux only, as the media server is. The layouts are those of the 64-bit kernel interface (x86-64, aarch64).
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from typing import Any, Final

import cffi

from mediaserver.forwarder.interface import MAX_PACKET_BYTES, Address, ForwarderError

ffi: Final[Any] = cffi.FFI()
ffi.cdef(
    """
    struct iovec { void *iov_base; size_t iov_len; };
    struct msghdr { void *msg_name; unsigned int msg_namelen; struct iovec *msg_iov; size_t msg_iovlen;
                    void *msg_control; size_t msg_controllen; int msg_flags; };
    struct mmsghdr { struct msghdr msg_hdr; unsigned int msg_len; };
    int recvmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags, void *timeout);
    int sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags);
    """
)
libc: Final[Any] = ffi.dlopen(None)

SLOT_BYTES: Final = 2048
BATCH: Final = 64
SEND_SLOTS: Final = 512
MAX_SEGMENTS: Final = 60
"""Segments in one message; the kernel takes 64 (UDP_MAX_SEGMENTS)."""
MAX_MESSAGE_BYTES: Final = 60_000
RECEIVE_BUFFER_BYTES: Final = 4 << 20
"""mediasoup loses 2.4 % at 40 rooms on the kernel's default of 208 KiB and nothing with 4 MiB (measured)."""

_CONTROL_BYTES: Final = 64
_SO_TIMESTAMPNS: Final = 35
_SO_RXQ_OVFL: Final = 40
_SO_RCVBUFFORCE: Final = 33
_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
_MSG_TRUNC: Final = 0x20
_MESSAGE: Final = struct.Struct("=QI4xQQQQi4xI4x")
"""``struct mmsghdr``: name, its length, vectors, their count, control, its length, flags, bytes received.
Packing it as bytes is quicker than setting one field after the other through cffi."""
_VECTOR: Final = struct.Struct("=QQ")
_CMSG: Final = struct.Struct("=QiiQQ")
_SEGMENT: Final = struct.Struct("=QiiH6x")
_CMSG_HEADER: Final = struct.Struct("=Qii")


def prepare(sock: socket.socket) -> int:
    """Make a UDP socket ready for a forwarder and return its receive buffer as the kernel counts it.

    A kernel that cannot stamp arrivals or count what it dropped (qemu's user mode, some sandboxes) serves
    too: then packets have their batch's time, and ``kernel_dropped`` stays 0.
    """
    if sock.type != socket.SOCK_DGRAM or sock.family not in (socket.AF_INET, socket.AF_INET6):
        raise ForwarderError("a forwarder needs UDP sockets, IPv4 or IPv6")
    sock.setblocking(False)
    for option in (_SO_RCVBUFFORCE, socket.SO_RCVBUF):
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, RECEIVE_BUFFER_BYTES)
        except PermissionError:
            continue  # only root may force; the plain option is limited by net.core.rmem_max
        break
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, RECEIVE_BUFFER_BYTES)
    for option in (_SO_TIMESTAMPNS, _SO_RXQ_OVFL):
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


def pack_address(address: Address, family: int) -> bytes:
    """Make a ``sockaddr_in`` or ``sockaddr_in6``; IPv4 on an IPv6 socket is mapped. Raises
    ``ForwarderError``."""
    host, port = address
    host, _, zone = host.partition("%")
    if not 0 < port < 65536:
        raise ForwarderError(f"no such port: {port}")
    try:
        if family == socket.AF_INET:
            return struct.pack("=H", family) + struct.pack("!H4s8x", port, socket.inet_aton(host))
        if ":" not in host:
            host = f"::ffff:{host}"
        scope = (int(zone) if zone.isdigit() else socket.if_nametoindex(zone)) if zone else 0
        packed = struct.pack("!HI16s", port, 0, socket.inet_pton(socket.AF_INET6, host))
        return struct.pack("=H", family) + packed + struct.pack("=I", scope)
    except OSError as error:
        raise ForwarderError(f"no such address on this socket: {address[0]}") from error


def unpack_address(name: bytes) -> Address:
    """Read a ``sockaddr_in`` or ``sockaddr_in6``; mapped IPv4 is shown as IPv4."""
    port = int.from_bytes(name[2:4], "big")
    (family,) = struct.unpack_from("=H", name)
    if family == socket.AF_INET:
        return socket.inet_ntoa(name[4:8]), port
    raw = name[8:24]
    if raw[:12] == b"\0" * 10 + b"\xff\xff":
        return socket.inet_ntoa(raw[12:]), port
    host = socket.inet_ntop(socket.AF_INET6, raw)
    (scope,) = struct.unpack_from("=I", name, 24)
    return (f"{host}%{scope}" if scope else host), port


def _address_of(memory: Any) -> int:
    return int(ffi.cast("uintptr_t", memory))


class Receiver:
    """Receives batches of up to ``BATCH`` datagrams of one socket into slots that stay valid until the next
    batch."""

    def __init__(self, sock: socket.socket, index: int) -> None:
        self.index = index
        self.family = int(sock.family)
        self.kernel_dropped = 0
        self.truncated = 0
        self.received = 0
        self._fd = sock.fileno()
        self._memory = ffi.new("uint8_t[]", BATCH * SLOT_BYTES)
        self._names = ffi.new("uint8_t[]", BATCH * 28)
        self._controls = ffi.new("uint8_t[]", BATCH * _CONTROL_BYTES)
        self._iovecs = ffi.new("struct iovec[]", BATCH)
        self._messages = ffi.new("struct mmsghdr[]", BATCH)
        self.buffer = ffi.buffer(self._memory)
        self._names_buffer = ffi.buffer(self._names)
        self._controls_buffer = ffi.buffer(self._controls)
        self.pointers = [self._memory + i * SLOT_BYTES for i in range(BATCH)]
        for i in range(BATCH):
            self._iovecs[i].iov_base = self.pointers[i]
            self._iovecs[i].iov_len = SLOT_BYTES
            header = self._messages[i].msg_hdr
            header.msg_name = self._names + i * 28
            header.msg_iov = self._iovecs + i
            header.msg_iovlen = 1
            header.msg_control = self._controls + i * _CONTROL_BYTES
        self._messages_buffer = ffi.buffer(self._messages)
        self._fresh = b""
        for i in range(BATCH):
            self._messages[i].msg_hdr.msg_namelen = 28
            self._messages[i].msg_hdr.msg_controllen = _CONTROL_BYTES
        self._fresh = self._messages_buffer[:]
        self._used = 0

    def receive(self) -> list[tuple[int, int, bytes, int]]:
        """Return ``(slot, length, socket address, arrival_ns)`` of what is there, too long datagrams left
        out."""
        messages = self._messages
        if self._used:
            used = self._used * _MESSAGE.size
            self._messages_buffer[:used] = self._fresh[:used]
        count = libc.recvmmsg(self._fd, messages, BATCH, 0x40, ffi.NULL)
        if count <= 0:
            # Nothing there, or an ICMP error of an earlier send (ECONNREFUSED): either way nothing was
            # received.
            self._used = 0
            return []
        self._used = count
        self.received += count
        now_ns = time.monotonic_ns()
        # Right after the other clock: what lies between the two is the stamps' error.
        offset = time.clock_gettime_ns(time.CLOCK_REALTIME) - now_ns
        found = []
        for i in range(count):
            _, name_length, _, _, _, control, flags, length = _MESSAGE.unpack_from(
                self._messages_buffer, i * _MESSAGE.size
            )
            arrival = self._arrival(i, control, now_ns, offset) if control else now_ns
            if length > MAX_PACKET_BYTES or flags & _MSG_TRUNC:
                self.truncated += 1
                continue
            found.append((i, length, self._names_buffer[i * 28 : i * 28 + name_length], arrival))
        return found

    def _arrival(self, slot: int, length: int, now_ns: int, offset: int) -> int:
        at = slot * _CONTROL_BYTES
        end = at + length
        arrival = now_ns
        while at + 16 <= end:
            size, level, kind = _CMSG_HEADER.unpack_from(self._controls_buffer, at)
            if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
                _, _, _, seconds, nanoseconds = _CMSG.unpack_from(self._controls_buffer, at)
                stamped = seconds * 1_000_000_000 + nanoseconds - offset
                # A step of the wallclock between receiving and now would show here: then the batch's time is
                # better.
                if now_ns - 1_000_000_000 < stamped <= now_ns:
                    arrival = stamped
            elif level == socket.SOL_SOCKET and kind == _SO_RXQ_OVFL:
                (self.kernel_dropped,) = struct.unpack_from("=I", self._controls_buffer, at + 16)
            at += (size + 7) & ~7 if size >= 16 else 64
        return arrival


class Destination:
    """Where a peer's packets go: a socket and an address, and whether segmentation offload works there."""

    __slots__ = ("gso", "name", "name_at", "queued", "socket")

    def __init__(self, socket_index: int, name: bytes) -> None:
        self.socket = socket_index
        self.name: Any = ffi.new(f"uint8_t[{len(name)}]", name)  # else cffi appends a zero
        self.name_at = _address_of(self.name)
        self.gso = True
        self.queued: list[tuple[int, int]] = []


class Sender:
    """Collects packets in slots, then sends all in as few messages as it can. Order is kept per
    destination."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        self._fds = [sock.fileno() for sock in sockets]
        self._name_bytes = [16 if sock.family == socket.AF_INET else 28 for sock in sockets]
        self._memory = ffi.new("uint8_t[]", SEND_SLOTS * SLOT_BYTES)
        self.pointers = [self._memory + i * SLOT_BYTES for i in range(SEND_SLOTS)]
        self._iovecs = ffi.new("struct iovec[]", SEND_SLOTS)
        self._messages = ffi.new("struct mmsghdr[]", SEND_SLOTS)
        self._controls = ffi.new("uint8_t[]", SEND_SLOTS * 24)
        self._controls_buffer = ffi.buffer(self._controls)
        self._messages_buffer = ffi.buffer(self._messages)
        self._iovecs_buffer = ffi.buffer(self._iovecs)
        self._memory_at = _address_of(self._memory)
        self._iovecs_at = _address_of(self._iovecs)
        self._controls_at = _address_of(self._controls)
        self._queued: list[Destination] = []
        self.next = 0
        self.datagrams = 0
        self.messages = 0
        self.failed = 0

    def add(self, destination: Destination, length: int) -> None:
        """Queue the packet of ``length`` bytes that stands at ``pointers[next]``."""
        if not destination.queued:
            self._queued.append(destination)
        destination.queued.append((self.next, length))
        self.next += 1
        if self.next == SEND_SLOTS:
            self.flush()

    def flush(self) -> None:
        """Send what is queued. What the kernel does not take at once is counted and forgotten, as UDP may."""
        if not self.next:
            return
        for index in range(len(self._fds)):
            plan: list[tuple[Destination, list[tuple[int, int]]]] = []
            for destination in self._queued:
                if destination.socket == index:
                    for run in _runs(destination):
                        plan.append((destination, run))
            if plan:
                self._send(index, plan)
        for destination in self._queued:
            destination.queued = []
        self._queued = []
        self.next = 0

    def _send(self, index: int, plan: list[tuple[Destination, list[tuple[int, int]]]]) -> None:
        vector = 0
        name_bytes = self._name_bytes[index]
        for at, (destination, run) in enumerate(plan):
            vectors_at = self._iovecs_at + vector * _VECTOR.size
            for slot, length in run:
                _VECTOR.pack_into(
                    self._iovecs_buffer,
                    vector * _VECTOR.size,
                    self._memory_at + slot * SLOT_BYTES,
                    length,
                )
                vector += 1
            control = 0
            if len(run) > 1:
                _SEGMENT.pack_into(self._controls_buffer, at * 24, 18, _SOL_UDP, _UDP_SEGMENT, run[0][1])
                control = self._controls_at + at * 24
            _MESSAGE.pack_into(
                self._messages_buffer,
                at * _MESSAGE.size,
                destination.name_at,
                name_bytes,
                vectors_at,
                len(run),
                control,
                24 if control else 0,
                0,
                0,
            )
        done = 0
        again: list[tuple[Destination, list[tuple[int, int]]]] = []
        while done < len(plan):
            sent = libc.sendmmsg(self._fds[index], self._messages + done, len(plan) - done, 0x40)
            if sent > 0:
                self.messages += sent
                self.datagrams += sum(len(run) for _, run in plan[done : done + sent])
                done += sent
                continue
            destination, run = plan[done]
            if len(run) > 1 and ffi.errno in (errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.EOPNOTSUPP):
                # No segmentation on this path (udp(7)): packet by packet from now on.
                destination.gso = False
                again.extend((destination, [one]) for one in run)
            else:
                self.failed += len(run)
            done += 1
        if again:
            self._send(index, again)


def _runs(destination: Destination) -> list[list[tuple[int, int]]]:
    """Cut a queue into runs that one message can carry: all equally long, the last one possibly shorter."""
    if not destination.gso:
        return [[one] for one in destination.queued]
    runs: list[list[tuple[int, int]]] = []
    run: list[tuple[int, int]] = []
    size = total = 0
    closed = True
    for one in destination.queued:
        length = one[1]
        if closed or length > size or len(run) == MAX_SEGMENTS or total + length > MAX_MESSAGE_BYTES:
            run = []
            runs.append(run)
            size = length
            total = 0
            closed = False
        run.append(one)
        total += length
        closed = length < size
    return runs
