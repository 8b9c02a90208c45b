"""RFC 4571 frames: any cut, too long ones, noise; and which worker a name belongs to."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediaserver.media.framing import Deframer, FrameError, frame
from mediaserver.media.ice import worker_of


@given(st.lists(st.binary(max_size=40), max_size=6), st.data())
def test_any_cut_of_the_stream_gives_the_same_datagrams(datagrams: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(map(frame, datagrams))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    deframer, found = Deframer(40), []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += deframer.receive(stream[begin:end])
    assert found == [datagram for datagram in datagrams if datagram]
    assert deframer.held == b""


def test_a_frame_too_long_is_refused_before_its_bytes_come() -> None:
    deframer = Deframer(1600)
    assert deframer.receive(b"\x06\x40") == []
    with pytest.raises(FrameError, match="65535"):
        Deframer(1600).receive(b"\xff\xff")
    with pytest.raises(FrameError, match="1601"):
        Deframer(1600).receive(frame(b"whole") + b"\x06\x41")


@given(st.binary(max_size=400))
def test_noise_never_holds_more_than_a_frame(noise: bytes) -> None:
    deframer = Deframer(50)
    with contextlib.suppress(FrameError):
        for at in range(0, len(noise), 7):
            deframer.receive(noise[at : at + 7])
            assert len(deframer.held) < 52


def test_names_tell_the_worker() -> None:
    assert worker_of("07a1b2c3d4") == 7
    assert worker_of("zza1b2c3d4") is None
    assert worker_of("07") is None
