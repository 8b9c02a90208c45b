"""Write down what a media worker decrypts; `tests.forwarder.capture` starts workers with this inside.

Only the Python forwarder can be listened to like this. Some packets are lost on purpose, so that NACKs,
retransmissions and losses in the feedback are among what comes.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

from mediaserver.forwarder.batch import BatchForwarder
from mediaserver.forwarder.path import PacketPath
from mediaserver.forwarder.peer import Peer
from mediaserver.forwarder.srtp import lib, srtp_ffi

LOSS = 0.04


def listen(directory: Path) -> None:
    """Note streams, routes and packets of this process, one JSON object a line."""
    begun_ns = time.monotonic_ns()
    log = (directory / f"{begun_ns}.jsonl").open("w", buffering=1)
    rng = random.Random(1)

    def note(**what: object) -> None:
        log.write(json.dumps({"at_ms": (time.monotonic_ns() - begun_ns) // 1_000_000, **what}) + "\n")

    unprotect, emit = PacketPath._unprotect, PacketPath._emit
    add_stream, add_route = BatchForwarder.add_stream, BatchForwarder.add_route
    set_rtx_ssrc = BatchForwarder.set_rtx_ssrc

    def noting_unprotect(self: PacketPath, peer: Peer, function: Any, pointer: Any, length: int) -> int:
        if function is lib.srtp_unprotect and rng.random() < LOSS:
            return -1
        size = unprotect(self, peer, function, pointer, length)
        if size > 0:
            note(what="packet", peer=peer.number, data=bytes(srtp_ffi.buffer(pointer, size)).hex())
        return size

    def losing_emit(self: PacketPath, peer: Peer, data: bytes, number: int) -> int:
        return emit(self, peer, data, number) if rng.random() >= LOSS else 0

    def noting_add_stream(self: BatchForwarder, peer: int, ssrc: int, parameters: Any) -> int:
        stream = add_stream(self, peer, ssrc, parameters)
        note(
            what="stream",
            peer=peer,
            stream=stream,
            ssrc=ssrc,
            rtx_ssrc=parameters.rtx_ssrc,
            mime=parameters.mime,
            extensions=dict(parameters.extensions),
        )
        return stream

    def noting_set_rtx_ssrc(self: BatchForwarder, stream: int, ssrc: int) -> None:
        set_rtx_ssrc(self, stream, ssrc)
        note(what="rtx", stream=stream, rtx_ssrc=ssrc)

    def noting_add_route(self: BatchForwarder, stream: int, peer: int, parameters: Any) -> int:
        route = add_route(self, stream, peer, parameters)
        note(what="route", peer=peer, stream=stream, ssrc=parameters.ssrc, rtx_ssrc=parameters.rtx_ssrc)
        return route

    PacketPath._unprotect = noting_unprotect  # type: ignore[method-assign]
    PacketPath._emit = losing_emit  # type: ignore[method-assign]
    BatchForwarder.add_stream = noting_add_stream  # type: ignore[method-assign]
    BatchForwarder.add_route = noting_add_route  # type: ignore[method-assign]
    BatchForwarder.set_rtx_ssrc = noting_set_rtx_ssrc  # type: ignore[method-assign]
