"""The load generator's packet path, in C (csrc/) with a thread of its own, through cffi."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cffi
import numpy as np
import numpy.typing as npt

from bench.load.clip import Clip
from mediaserver.forwarder import Profile, build
from mediaserver.forwarder.crypto import crypto_table
from mediaserver.forwarder.srtp import SrtpDirection, srtp_ffi
from mediaserver.media.dtls import GCM, SrtpKeys

HERE: Final = Path(__file__).resolve().parent / "csrc"
LINKED: Final = ("wire.c", "srtp.c", "feedback.c")
CODECS: Final = {"video/VP8": 1, "video/VP9": 2, "video/H264": 3, "video/AV1": 4}

ffi: Final[Any] = cffi.FFI()
for header in (build.SOURCES / "api.h", HERE / "load.h"):
    ffi.cdef("\n".join(line for line in header.read_text().splitlines() if not line.startswith("#")))


@dataclass(frozen=True, slots=True)
class Totals:
    """Counters over all connections since the engine began; differences are what counts."""

    sent_packets: int
    sent_bytes: int
    send_failed: int
    received_packets: int
    received_bytes: int
    expected_packets: int
    """By the sequence numbers: what is missing of them is lost."""
    out_of_order: int
    stamped: int
    verified: int
    """Decrypted, from the right sender, and the payload just what was sent."""
    bad: int
    other_ssrc: int
    auth_failed: int
    keyframe_requests: int
    nacked: int
    feedback_received: int
    late_ticks: int
    skipped_ticks: int
    """ms in which the generator did not send for want of a core: above 0 the run says nothing."""
    connections: int

    def __sub__(self, before: Totals) -> Totals:
        return Totals(*(getattr(self, name) - getattr(before, name) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Sent:
    """How media goes out: payload types, SSRCs, mids and header extension ids (0: not negotiated)."""

    video_pt: int
    audio_pt: int
    video_ssrc: int = 0
    audio_ssrc: int = 0
    mid_id: int = 0
    abs_id: int = 0
    transport_cc_id: int = 0
    video_mid: str = "1"
    audio_mid: str = "0"


class Engine:
    """All connections of a generator. ``close`` it, or use ``with``."""

    def __init__(self, video: Clip, audio: Clip) -> None:
        self._lib = ffi.dlopen(str(_library()))
        table, self._alive, self.crypto = crypto_table(ffi)
        self._handle = self._lib.load_open(table)
        if self._handle == ffi.NULL:
            raise RuntimeError("no memory or no thread for the load generator")
        self._table = table
        self._sessions: dict[int, list[SrtpDirection]] = {}
        self._clips = [self._add_clip(video), self._add_clip(audio)]

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread; sockets stay their owners'."""
        self._lib.load_close(self._handle)
        self._sessions.clear()

    def _add_clip(self, clip: Clip) -> int:
        packets = [packet for frame in clip.frames for packet in frame]
        offsets = np.concatenate([[0], np.cumsum([len(packet) for packet in packets])]).astype(np.uint32)
        frames = np.concatenate([[0], np.cumsum([len(frame) for frame in clip.frames])]).astype(np.uint32)
        data = b"".join(packets)
        kept = [ffi.from_buffer(data), *(ffi.from_buffer("uint32_t[]", one) for one in (offsets, frames))]
        made = ffi.new(
            "load_clip_t *",
            {
                "data": kept[0],
                "offsets": kept[1],
                "frames": kept[2],
                "packet_count": len(packets),
                "frame_count": len(clip.frames),
                "period_ms": clip.period_ms,
                "clock_step": clip.clock_step,
                "codec": CODECS.get(clip.mime, 0),
                "opaque_bytes": clip.opaque_bytes,
                "stamped": clip.stamped,
            },
        )
        return self._checked(self._lib.load_add_clip(self._handle, made))

    @staticmethod
    def _checked(result: int) -> int:
        if result < 0:
            raise RuntimeError(f"the load generator refused: {result}")
        return int(result)

    def add(self, fd: int, keys: SrtpKeys, media: Sent, source: int, *, publishes: bool) -> int:
        """Hand a connected socket over; ``source`` names what is sent, or what is expected."""
        profile = Profile.AEAD_AES_128_GCM if keys.profile is GCM else Profile.AES_CM_128_HMAC_SHA1_80
        directions = [
            SrtpDirection(profile, keys.rx_key, keys.rx_salt, inbound=True),
            SrtpDirection(profile, keys.tx_key, keys.tx_salt, inbound=False),
        ]
        secrets = {
            name: ffi.from_buffer(getattr(keys, name)) for name in ("rx_key", "rx_salt", "tx_key", "tx_salt")
        }
        made = ffi.new(
            "load_connection_t *",
            {
                "fd": fd,
                "rx_session": ffi.cast("void *", int(_pointer(directions[0]))),
                "tx_session": ffi.cast("void *", int(_pointer(directions[1]))),
                "gcm": int(keys.profile is GCM),
                **secrets,
                "video_pt": media.video_pt,
                "audio_pt": media.audio_pt,
                "video_clip": self._clips[0],
                "audio_clip": self._clips[1],
                "video_ssrc": media.video_ssrc,
                "audio_ssrc": media.audio_ssrc,
                "mid_id": media.mid_id,
                "abs_id": media.abs_id,
                "transport_cc_id": media.transport_cc_id,
                "video_mid": ord(media.video_mid[0]),
                "audio_mid": ord(media.audio_mid[0]),
                "source": source,
            },
        )
        add = self._lib.load_add_publisher if publishes else self._lib.load_add_subscriber
        number = self._checked(add(self._handle, made))
        self._sessions[number] = directions
        return number

    def remove(self, number: int) -> None:
        """Let go of a connection; of one that went with the engine there is nothing left."""
        if number in self._sessions:
            self._checked(self._lib.load_remove(self._handle, number))
            del self._sessions[number]

    def pause(self, paused: bool = True) -> None:
        """Stop sending media, or go on; reports are sent all the time."""
        self._lib.load_pause(self._handle, paused)

    def totals(self) -> Totals:
        """Return the counters so far."""
        made = ffi.new("load_totals_t *")
        self._lib.load_totals(self._handle, made)
        return Totals(*(int(getattr(made, name)) for name in Totals.__slots__))

    def first_frame_ns(self, number: int) -> int | None:
        """Return when (UTC ns) a subscriber's first whole keyframe had arrived, None if it has not."""
        made = ffi.new("load_connection_stats_t *")
        self._checked(self._lib.load_connection_stats(self._handle, number, made))
        return int(made.first_frame_ns) or None

    def take_delays(self) -> npt.NDArray[np.uint32]:
        """Return the histogram of one-way delays since the last call, ``(20000,)``, 50 µs each."""
        buckets = np.zeros(self._lib.LOAD_BUCKETS, np.uint32)
        self._lib.load_take_delays(self._handle, ffi.from_buffer("uint32_t[]", buckets))
        return buckets

    def take_raw(self) -> list[tuple[int, bytes]]:
        """Return (connection, datagram) of everything that arrived and is no media: ICE checks, DTLS."""
        found = []
        number, room = ffi.new("int64_t *"), ffi.new("uint8_t[]", 2048)
        while size := self._lib.load_take_raw(self._handle, number, room, 2048):
            found.append((int(number[0]), bytes(ffi.buffer(room, size))))
        return found


def _library() -> Path:
    """Return the engine's library, compiled at first use. Raises ``BuildError``."""
    flags = (*build.FLAGS, *build.HARDENING, f"-I{build.SOURCES}")
    sources = [*sorted(HERE.iterdir()), *(build.SOURCES / name for name in (*LINKED, "internal.h", "api.h"))]
    found = build.cache_directory() / build.library_name(flags, sources, "load")
    if found.is_file():
        return found
    return build.compile_library(build.cache_directory(), flags=flags, sources=sources, name="load")


def null_crypto(others: Any, *, evp: bool = False) -> tuple[Any, list[Any], str]:
    """Make a crypto table that protects nothing, as `crypto_table`: for the floor of a measurement."""
    library = ffi.dlopen(str(_library()))
    table = others.new("fwd_crypto_t *")
    address = int(ffi.cast("uintptr_t", ffi.addressof(library, "load_null_cipher")))
    for name in ("srtp_protect", "srtp_unprotect", "srtp_protect_rtcp", "srtp_unprotect_rtcp"):
        setattr(table, name, others.cast(others.typeof(getattr(table, name)), address))
    return table, [library], "none"


def _pointer(direction: SrtpDirection) -> int:
    return int(srtp_ffi.cast("uintptr_t", direction.session))


def percentiles_ms(
    buckets: npt.NDArray[np.uint32], wanted: Sequence[float] = (50, 95, 99)
) -> dict[str, float]:
    """Return percentiles of a histogram of 50 µs steps, in ms, each the middle of its step."""
    total = int(buckets.sum())
    if not total:
        return {}
    edges = np.cumsum(buckets)
    return {
        f"p{percent:g}": round((int(np.searchsorted(edges, total * percent / 100)) + 0.5) * 0.05, 3)
        for percent in wanted
    }
