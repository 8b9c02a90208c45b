"""The packets' path of a media worker. ``interface`` says what a forwarder is; ``open_forwarder`` starts
one."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Sequence

from mediaserver.forwarder.counters import (
    ForwarderStats,
    PeerStats,
    RouteStats,
    SendFeedback,
    SendGroup,
    StreamStats,
)
from mediaserver.forwarder.interface import (
    ABS_SEND_TIME,
    AUDIO_LEVEL,
    DEPENDENCY,
    MID,
    REPAIRED_RID,
    RID,
    TRANSPORT_CC,
    VIDEO_ORIENTATION,
    Address,
    Event,
    FeedbackTrouble,
    Forwarder,
    ForwarderError,
    Gap,
    Keyframe,
    NewSsrc,
    Profile,
    RawDatagram,
    RouteParameters,
    Rtcp,
    StreamParameters,
    Switched,
    TapDropped,
    TapMoved,
    Tapped,
)

__all__ = [
    "ABS_SEND_TIME",
    "AUDIO_LEVEL",
    "DEPENDENCY",
    "MID",
    "REPAIRED_RID",
    "RID",
    "TRANSPORT_CC",
    "VIDEO_ORIENTATION",
    "Address",
    "Event",
    "FeedbackTrouble",
    "Forwarder",
    "ForwarderError",
    "ForwarderStats",
    "Gap",
    "Keyframe",
    "NewSsrc",
    "PeerStats",
    "Profile",
    "RawDatagram",
    "RouteParameters",
    "RouteStats",
    "Rtcp",
    "SendFeedback",
    "SendGroup",
    "StreamParameters",
    "StreamStats",
    "Switched",
    "TapDropped",
    "TapMoved",
    "Tapped",
    "open_forwarder",
]


def open_forwarder(sockets: Sequence[socket.socket], *, kind: str = "auto") -> Forwarder:
    """Start a forwarder on bound UDP sockets (IPv4 or IPv6), each with a receive buffer of 4 MiB if the
    system lets it.

    ``kind`` is ``native``, ``python`` or ``auto``: native, and where it cannot be loaded Python with a
    warning. The sockets become non-blocking and belong to the forwarder's thread until ``close``. Raises
    ``ForwarderError``.
    """
    from mediaserver.forwarder.batch import BatchForwarder

    if kind not in ("auto", "native", "python"):
        raise ForwarderError(f"no such kind of forwarder: {kind}")
    if kind != "python":
        from mediaserver.forwarder.native import NativeForwarder

        try:
            return NativeForwarder(sockets)
        except ForwarderError as error:
            if kind == "native":
                raise
            warnings.warn(f"{error}; the Python forwarder serves instead", RuntimeWarning, stacklevel=2)
    return BatchForwarder(sockets)
