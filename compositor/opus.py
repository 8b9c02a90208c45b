"""Opus by libopus itself: FFmpeg's decoders have no word for in-band FEC (RFC 6716 section 2.1.7).

The library is the one in PyAV's wheel, else the system's.
"""

from __future__ import annotations

import ctypes.util
from functools import cache
from pathlib import Path
from typing import Any, Final

import av
import cffi
import numpy as np

from compositor.canvas import Floats

SAMPLE_RATE: Final = 48_000
CHANNELS: Final = 2
LONGEST: Final = 5760
"""Samples of the longest packet, 120 ms."""

_ffi: Final[Any] = cffi.FFI()
_ffi.cdef(
    """
    typedef struct OpusDecoder OpusDecoder;
    OpusDecoder *opus_decoder_create(int32_t rate, int channels, int *error);
    void opus_decoder_destroy(OpusDecoder *decoder);
    int opus_decode_float(OpusDecoder *decoder, const unsigned char *data, int32_t size, float *pcm,
                          int frame_size, int decode_fec);
    """
)


class OpusError(ValueError):
    """A packet that libopus does not decode."""


@cache
def library() -> Any:
    """Load libopus. Raises RuntimeError with what to install."""
    wheel = sorted(Path(av.__file__).parent.with_name("av.libs").glob("libopus-*.so*"))
    name = str(wheel[0]) if wheel else ctypes.util.find_library("opus")
    if name is None:
        raise RuntimeError("libopus is neither in PyAV's wheel nor on this system: apt-get install libopus0")
    return _ffi.dlopen(name)


class OpusDecoder:
    """Decode one stream's packets in order, to stereo at 48 kHz. Raises RuntimeError without libopus."""

    def __init__(self) -> None:
        error = _ffi.new("int *")
        made = library().opus_decoder_create(SAMPLE_RATE, CHANNELS, error)
        if error[0]:
            raise MemoryError("libopus gave no decoder")
        self._decoder = _ffi.gc(made, library().opus_decoder_destroy)
        self._samples = np.empty((LONGEST, CHANNELS), np.float32)
        self._at = _ffi.from_buffer("float[]", self._samples)

    def decode(self, packet: bytes) -> Floats:
        """Return a packet's samples, (2, n) of −1 … 1. Raises OpusError."""
        return self._decode(packet, LONGEST, 0)

    def decode_fec(self, packet: bytes, samples: int) -> Floats:
        """Return what ``packet``, which comes next, repeats of the lost one before it, (2, ``samples``).

        Raises OpusError.
        """
        return self._decode(packet, samples, 1)

    def _decode(self, packet: bytes, most: int, fec: int) -> Floats:
        count = library().opus_decode_float(self._decoder, packet, len(packet), self._at, most, fec)
        if count < 0:
            raise OpusError(f"libopus refuses a packet of {len(packet)} bytes: {count}")
        return self._samples[:count].T.copy()
