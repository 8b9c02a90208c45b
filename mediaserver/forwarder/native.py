"""The native forwarder behind the ``Forwarder`` interface: csrc/ through cffi, no call of Python per packet.

A lock of ours keeps ``close`` from freeing the memory under another thread's call, and guards the buffers
that the library hands out. cffi gives the interpreter lock back during every call, so the packets' thread and
Python never wait for each other's work longer than one batch.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from operator import attrgetter
from struct import Struct
from typing import Any, Final, TypeVar

import cffi

from mediaserver.forwarder import build
from mediaserver.forwarder.arguments import check_route, check_stream, layers_wanted
from mediaserver.forwarder.counters import ForwarderStats, PeerStats, RouteStats, SendFeedback, StreamStats
from mediaserver.forwarder.crypto import crypto_table
from mediaserver.forwarder.events import EVENT, read_events
from mediaserver.forwarder.interface import (
    ABS_SEND_TIME,
    AUDIO_LEVEL,
    DEPENDENCY,
    MAX_PACKET_BYTES,
    MID,
    REPAIRED_RID,
    RID,
    TRANSPORT_CC,
    Address,
    Event,
    ForwarderError,
    Profile,
    RouteParameters,
    StreamParameters,
    Tapped,
    Targets,
)
from mediaserver.forwarder.layers import COUNTED, layer_rows
from mediaserver.forwarder.sent import MAX_GROUPS, read_feedback
from mediaserver.forwarder.sockets import pack_address, prepare
from mediaserver.forwarder.srtp import SrtpDirection
from mediaserver.forwarder.wire import CODECS
from recorder.records import PacketBatch, TrackCount

ffi: Final[Any] = cffi.FFI()
ffi.cdef(
    "\n".join(
        line
        for line in (build.SOURCES / "api.h").read_text(encoding="ascii", errors="replace").splitlines()
        if not line.startswith("#")
    )
)

_KNOWN: Final = {
    MID: 1,
    RID: 2,
    REPAIRED_RID: 3,
    TRANSPORT_CC: 4,
    ABS_SEND_TIME: 5,
    AUDIO_LEVEL: 6,
    DEPENDENCY: 7,
}
_MAX_URIS: Final = 1024
_ERRORS: Final = {
    -1: "no such peer",
    -2: "no such stream",
    -3: "no such route",
    -4: "no such socket",
    -5: "the table is full",
    -6: "the SSRC is in use",
    -7: "not possible",
    -8: "out of memory",
}
assert EVENT.size == ffi.sizeof("fwd_event_t")
_TAPPED_HEAD: Final = ffi.sizeof("fwd_tapped_t")
_BATCH_HEAD: Final = ffi.sizeof("fwd_batch_t")
_COUNT: Final = Struct("iII4xqqq")
"""fwd_batch_count_t."""
assert _COUNT.size == ffi.sizeof("fwd_batch_count_t")

_Stats = TypeVar("_Stats", PeerStats, StreamStats, RouteStats)
_READERS: Final[dict[type[Any], tuple[Callable[[Any], tuple[Any, ...]], list[int]]]] = {
    kind: (
        attrgetter(*(field.name for field in fields(kind))),
        [at for at, field in enumerate(fields(kind)) if field.type == "bool"],
    )
    for kind in (PeerStats, StreamStats, RouteStats)
}
"""How counters are read out of C's struct, several times a second for every client."""


def load(path: str | None = None) -> Any:
    """Load the library, compiling it if need be. Raises ``ForwarderError``."""
    try:
        return ffi.dlopen(path or str(build.find_or_compile()))
    except (build.BuildError, OSError) as error:
        raise ForwarderError(f"the native forwarder cannot be loaded: {error}") from error


class NativeForwarder:
    """A ``Forwarder`` in C; see ``interface.Forwarder`` for what each method does."""

    kind = "native"

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        *,
        library: str | None = None,
        evp: bool = True,
        crypto: Callable[..., tuple[Any, list[Any], str]] = crypto_table,
    ) -> None:
        if not 1 <= len(sockets) <= 16:
            raise ForwarderError("a forwarder takes 1 to 16 sockets")
        self._lib = load(library)
        self._sockets = list(sockets)
        self._receive_buffer = min(prepare(sock) for sock in self._sockets)
        self._table, self._alive, self._crypto = crypto(ffi, evp=evp)
        self._uris = dict(_KNOWN)
        self._sessions: dict[int, tuple[SrtpDirection, SrtpDirection]] = {}
        self._calls = 0
        self._targets: Targets | None = None
        self._target_array: Any = None
        self._encoded: Any = None
        self._encoded_room = 0
        self._feedback = ffi.new("fwd_feedback_t *"), ffi.new("fwd_group_t[]", MAX_GROUPS)
        self._lock = threading.Lock()
        self._event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._handle: Any = self._lib.fwd_open(
            [sock.fileno() for sock in self._sockets],
            [int(sock.family) for sock in self._sockets],
            len(self._sockets),
            self._event_fd,
            self._table,
            secrets.randbits(64),
        )
        if self._handle == ffi.NULL:
            os.close(self._event_fd)
            raise ForwarderError("no memory or no thread for a forwarder")

    @property
    def event_fd(self) -> int:
        return self._event_fd

    def close(self) -> None:
        with self._lock:
            if self._handle == ffi.NULL:
                return
            self._lib.fwd_close(self._handle)
            self._handle = ffi.NULL
            self._sessions.clear()
        os.close(self._event_fd)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> int:
        with self._lock:
            return self._call_locked(function, *arguments)

    def _call_locked(self, function: Callable[..., Any], *arguments: Any) -> int:
        if self._handle == ffi.NULL:
            raise ForwarderError("the forwarder is closed")
        self._calls += 1
        result = int(function(self._handle, *arguments))
        if result < 0:
            raise ForwarderError(f"{_ERRORS[result]} (in {arguments[:2]})")
        return result

    def _extensions(self, extensions: Mapping[str, int]) -> tuple[Any, int]:
        pairs = []
        for uri, number in list(extensions.items())[:24]:
            if not 1 <= number <= 255:
                raise ForwarderError(f"no such header extension id: {number} ({uri})")
            if uri not in self._uris and len(self._uris) >= _MAX_URIS:
                continue  # an extension that nobody else can have negotiated under so many
            pairs.append((self._uris.setdefault(uri, len(self._uris) + 1), number))
        return ffi.new("fwd_extension_t[]", pairs), len(pairs)

    # --- peers

    def add_peer(self, extensions: Mapping[str, int] | None = None) -> int:
        peer = self._call(self._lib.fwd_add_peer)
        self.set_extensions(peer, extensions or {})
        return peer

    def remove_peer(self, peer: int) -> None:
        with self._lock:
            self._call_locked(self._lib.fwd_remove_peer, peer)
            self._sessions.pop(peer, None)

    def set_extensions(self, peer: int, extensions: Mapping[str, int]) -> None:
        self._call(self._lib.fwd_set_extensions, peer, *self._extensions(extensions))

    def bind(self, peer: int, address: Address, socket: int = 0) -> None:
        name = pack_address(address, self._family(socket))
        self._call(self._lib.fwd_bind, peer, name, len(name), socket)

    def _family(self, index: int) -> int:
        if not 0 <= index < len(self._sockets):
            raise ForwarderError(f"no such socket: {index}")
        return int(self._sockets[index].family)

    def set_keys(
        self, peer: int, profile: Profile, rx_key: bytes, rx_salt: bytes, tx_key: bytes, tx_salt: bytes
    ) -> None:
        rx = SrtpDirection(profile, rx_key, rx_salt, inbound=True)
        tx = SrtpDirection(profile, tx_key, tx_salt, inbound=False)
        gcm = profile is Profile.AEAD_AES_128_GCM
        with self._lock:
            self._call_locked(
                self._lib.fwd_set_keys,
                peer,
                _pointer(rx.session),
                _pointer(tx.session),
                gcm,
                rx_key,
                rx_salt,
                tx_key,
                tx_salt,
            )
            self._sessions[peer] = (rx, tx)

    # --- streams

    def add_stream(self, peer: int, ssrc: int, parameters: StreamParameters) -> int:
        check_stream(parameters)
        extensions, count = self._extensions(parameters.extensions)
        given = ffi.new(
            "fwd_stream_parameters_t *",
            {
                "ssrc": ssrc,
                "rtx_ssrc": parameters.rtx_ssrc or 0,
                "clock_rate": max(parameters.clock_rate, 0),
                "video": parameters.kind == "video",
                "codec": CODECS.get(parameters.mime.lower(), 0),
                "payload_type": parameters.payload_type,
                "rtx_payload_type": _or_none(parameters.rtx_payload_type),
                "red_payload_type": _or_none(parameters.red_payload_type),
                "has_rtx_ssrc": parameters.rtx_ssrc is not None,
                "track": _or_none(parameters.track),
                "keep_ms": parameters.keep_ms,
                "keep_bytes": parameters.keep_bytes,
                "extensions": extensions,
                "extension_count": count,
            },
        )
        return self._call(self._lib.fwd_add_stream, peer, given)

    def remove_stream(self, stream: int) -> None:
        self._call(self._lib.fwd_remove_stream, stream)

    def set_rtx_ssrc(self, stream: int, ssrc: int) -> None:
        self._call(self._lib.fwd_set_rtx_ssrc, stream, ssrc)

    def ignore_ssrc(self, peer: int, ssrc: int) -> None:
        self._call(self._lib.fwd_ignore_ssrc, peer, ssrc)

    def layer_bytes(self, stream: int) -> list[list[int]]:
        counts = ffi.new("int64_t[]", COUNTED * COUNTED)
        self._call(self._lib.fwd_layer_bytes, stream, counts)
        return layer_rows(list(counts))

    def missing(self, stream: int, span: int = 512) -> list[int]:
        found = ffi.new("uint16_t[]", 256)
        return list(found[0 : self._call(self._lib.fwd_missing, stream, span, found, 256)])

    def tap(self, stream: int, track: int | None) -> None:
        self._call(self._lib.fwd_tap, stream, _or_none(track))

    def move_tap(self, stream: int, to: int) -> None:
        self._call(self._lib.fwd_move_tap, stream, to)

    def stay(self, stream: int) -> bool:
        return bool(self._call(self._lib.fwd_stay, stream))

    # --- routes

    def add_route(self, stream: int, peer: int, parameters: RouteParameters) -> int:
        check_route(parameters)
        extensions, count = self._extensions(parameters.extensions)
        mid = ffi.new("uint8_t[]", parameters.mid.encode() or b"\0")
        first = parameters.first_sequence
        given = ffi.new(
            "fwd_route_parameters_t *",
            {
                "ssrc": parameters.ssrc,
                "rtx_ssrc": parameters.rtx_ssrc or 0,
                "payload_type": parameters.payload_type,
                "rtx_payload_type": _or_none(parameters.rtx_payload_type),
                "red_payload_type": _or_none(parameters.red_payload_type),
                "allow_mixed": parameters.allow_mixed,
                "mid_length": len(parameters.mid.encode()),
                "first_sequence": secrets.randbelow(0x8000) if first is None else first,
                "first_rtx_sequence": secrets.randbelow(0x8000),
                "mid": mid,
                "extensions": extensions,
                "extension_count": count,
            },
        )
        return self._call(self._lib.fwd_add_route, stream, peer, given)

    def remove_route(self, route: int) -> None:
        self._call(self._lib.fwd_remove_route, route)

    def switch(
        self, route: int, stream: int, *, payload_type: int | None = None, rtx_payload_type: int | None = None
    ) -> None:
        self._call(self._lib.fwd_switch, route, stream, _or_none(payload_type), _or_none(rtx_payload_type))

    def pause(self, route: int, paused: bool) -> None:
        self._call(self._lib.fwd_pause, route, paused)

    def set_layers(self, route: int, spatial: int | None, temporal: int | None) -> None:
        self._call(self._lib.fwd_set_layers, route, *layers_wanted(spatial, temporal))

    def resend(self, route: int, sequences: Sequence[int]) -> int:
        numbers = ffi.new("uint16_t[]", [sequence & 0xFFFF for sequence in sequences])
        return self._call(self._lib.fwd_resend, route, numbers, len(numbers))

    def send_padding(self, route: int, size: int) -> int:
        return self._call(self._lib.fwd_send_padding, route, min(size, 1 << 20))

    # --- datagrams

    def send_rtcp(self, peer: int, data: bytes) -> bool:
        if not 8 <= len(data) <= MAX_PACKET_BYTES:
            raise ForwarderError(f"not an RTCP packet: {len(data)} bytes")
        return bool(self._call(self._lib.fwd_send_rtcp, peer, data, len(data)))

    def send_raw(self, address: Address, data: bytes, socket: int = 0) -> None:
        if len(data) > MAX_PACKET_BYTES:
            raise ForwarderError(f"too long for a datagram: {len(data)} bytes")
        name = pack_address(address, self._family(socket))
        self._call(self._lib.fwd_send_raw, name, len(name), socket, data, len(data))

    def authentic(self, peer: int, data: bytes) -> bool:
        return bool(self._call(self._lib.fwd_authentic, peer, data, len(data)))

    def set_feedback(self, peer: int, interval_ms: int, sender_ssrc: int = 1) -> None:
        self._call(self._lib.fwd_set_feedback, peer, interval_ms, sender_ssrc)

    def take_arrivals(self, peer: int) -> list[tuple[int, int]]:
        numbers, times = ffi.new("uint16_t[]", 4096), ffi.new("int64_t[]", 4096)
        count = self._call(self._lib.fwd_take_arrivals, peer, numbers, times, 4096)
        return list(zip(numbers[0:count], times[0:count], strict=True))

    def set_measured(self, peer: int, measured: bool) -> None:
        self._call(self._lib.fwd_set_measured, peer, measured)

    def set_pace(self, peer: int, bps: int) -> None:
        self._call(self._lib.fwd_set_pace, peer, bps)

    def watch_feedback(self, peer: int, way_ns: int, lost: int) -> SendFeedback:
        with self._lock:
            totals, groups = self._feedback
            self._call_locked(self._lib.fwd_watch_feedback, peer, way_ns, lost, totals)
            return read_feedback(ffi, totals, groups, 0)

    def take_feedback(self, peer: int) -> SendFeedback:
        with self._lock:
            totals, groups = self._feedback
            count = self._call_locked(self._lib.fwd_take_feedback, peer, totals, groups, MAX_GROUPS)
            return read_feedback(ffi, totals, groups, count)

    # --- results

    def _take(self, function: Callable[..., Any]) -> bytes:
        with self._lock:
            data = ffi.new("const uint8_t **")
            size = self._call_locked(function, data)
            return bytes(ffi.buffer(data[0], size)) if size else b""

    def take_events(self) -> list[Event]:
        return read_events(self._take(self._lib.fwd_take_events))

    def take_tapped(self) -> list[Tapped]:
        data = self._take(self._lib.fwd_take_tapped)
        kept = ffi.from_buffer(data)
        tapped: list[Tapped] = []
        at = 0
        while at < len(data):
            head = ffi.cast("fwd_tapped_t *", kept + at)
            at += _TAPPED_HEAD
            tapped.append((head.track, head.arrival_ns, data[at : at + head.size], head.is_rtcp != 0))
            at += (head.size + 7) & ~7
        return tapped

    def take_batches(self, targets: Targets) -> list[tuple[int, PacketBatch]]:
        with self._lock:
            data = ffi.new("const uint8_t **")
            size = self._call_locked(self._lib.fwd_take_tapped, data)
            if not size or not targets.by_tap:
                return []
            if targets is not self._targets:
                self._targets = targets
                self._target_array = ffi.new(
                    "fwd_target_t[]", [(tap, *to) for tap, to in sorted(targets.by_tap.items())]
                )
            room = self._lib.fwd_encoded_room(data[0], size)
            if room > self._encoded_room:
                self._encoded, self._encoded_room = ffi.new("uint8_t[]", room), room
            made = self._lib.fwd_encode_tapped(
                data[0], size, self._target_array, len(targets.by_tap), targets.groups, self._encoded, room
            )
            if made < 0:
                raise ForwarderError(_ERRORS[made])
            return list(read_batches(self._encoded, made))

    def stats(self) -> ForwarderStats:
        counters = ffi.new("fwd_stats_t *")
        self._call(self._lib.fwd_stats, counters)
        own: dict[str, Any] = {
            "kind": self.kind,
            "crypto": self._crypto,
            "python_calls": self._calls,
            "receive_buffer_bytes": self._receive_buffer,
        }
        for field in fields(ForwarderStats):
            if field.name not in own:
                own[field.name] = getattr(counters, field.name)
        return ForwarderStats(**own)

    def peer_stats(self, peer: int) -> PeerStats:
        return self._counters(PeerStats, "fwd_peer_stats_t *", self._lib.fwd_peer_stats, peer)

    def stream_stats(self, stream: int) -> StreamStats:
        return self._counters(StreamStats, "fwd_stream_stats_t *", self._lib.fwd_stream_stats, stream)

    def received_bytes(self, stream: int) -> int:
        return self._call(self._lib.fwd_received_bytes, stream)

    def route_stats(self, route: int) -> RouteStats:
        return self._counters(RouteStats, "fwd_route_stats_t *", self._lib.fwd_route_stats, route)

    def _counters(self, kind: type[_Stats], name: str, function: Callable[..., Any], number: int) -> _Stats:
        counters = ffi.new(name)
        self._call(function, number, counters)
        read, flags = _READERS[kind]
        values = list(read(counters))
        for at in flags:
            values[at] = values[at] != 0
        return kind(*values)


def _pointer(session: Any) -> Any:
    """Carry a pointer from pylibsrtp's cffi over to ours."""
    from pylibsrtp import _binding

    return ffi.cast("void *", int(_binding.ffi.cast("uintptr_t", session)))


def _or_none(value: int | None) -> int:
    return -1 if value is None else value


def read_batches(data: Any, size: int) -> Iterator[tuple[int, PacketBatch]]:
    """Yield what ``fwd_encode_tapped`` wrote: (group, batch)."""
    at = 0
    while at < size:
        head = ffi.cast("fwd_batch_t *", data + at)
        items = at + _BATCH_HEAD + head.count_count * _COUNT.size
        counts = _COUNT.iter_unpack(ffi.buffer(data + at + _BATCH_HEAD, items - at - _BATCH_HEAD))
        yield (
            head.group,
            PacketBatch(
                bytes(ffi.buffer(data + items, head.size)),
                tuple(map(TrackCount._make, counts)),
                head.latest_ns,
            ),
        )
        at = items
        at += (head.size + 7) & ~7
