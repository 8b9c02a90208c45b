"""The Merkle tree of checkpoints against RFC 6962's own definition."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorder.checkpoint import Checkpoint, leaf_hash, merkle_tree
from recorder.clock import SystemClock
from recorder.gm.sm3 import sm3
from recorder.journal import GroupCommit, JournalReader, JournalTrouble
from recorder.records import EndRecord, RtpRecord, SessionRecord
from tests.recorder.journal_tools import KEY, packets

HEADS = st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=40)


def definition(heads: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, as written there."""
    if len(heads) == 1:
        return sm3(b"\x00" + heads[0])
    split = 1 << (len(heads) - 1).bit_length() - 1
    return sm3(b"\x01" + definition(heads[:split]) + definition(heads[split:]))


@given(HEADS)
def test_root_and_paths(heads: list[bytes]) -> None:
    root, paths = merkle_tree(heads)
    assert root == definition(heads)
    for index, (head, path) in enumerate(zip(heads, paths, strict=True)):
        share = Checkpoint(index, len(heads), 1, 2, root, path, b"signature")
        assert share.proves(head)
        assert not share.proves(sm3(head))
        assert Checkpoint.from_bytes(share.to_bytes()) == share
        if len(heads) > 1:
            assert not Checkpoint(index, len(heads), 1, 2, root, path[:-1]).proves(head)
            assert not Checkpoint(index, len(heads), 1, 2, root, (*path, root)).proves(head)
        assert not Checkpoint(len(heads), len(heads), 1, 2, root, path).proves(head)


def test_a_single_leaf_is_the_root() -> None:
    assert merkle_tree([bytes(32)]) == (leaf_hash(bytes(32)), [()])
    with pytest.raises(ValueError, match="at least one"):
        merkle_tree([])


def test_the_signature_covers_times_and_size() -> None:
    one = Checkpoint(0, 1, 1, 2, bytes(32), ())
    for other in (Checkpoint(0, 2, 1, 2, bytes(32), ()), Checkpoint(0, 1, 3, 2, bytes(32), ())):
        assert one.signed_message() != other.signed_message()
    assert one.signed_message() == Checkpoint(0, 1, 1, 2, bytes(32), (bytes(32),), b"x").signed_message()


def test_frames_cut_at_every_length_are_refused() -> None:
    payload = Checkpoint(0, 2, 1, 2, bytes(32), (bytes(32),), b"signature").to_bytes()
    for size in range(len(payload)):
        with pytest.raises(ValueError, match="checkpoint"):
            Checkpoint.from_bytes(payload[:size])
    with pytest.raises(ValueError, match="version 2"):
        Checkpoint.from_bytes(b"\x02" + payload[1:])


def test_a_slow_signer_stops_no_writing(tmp_path: Path) -> None:
    """A KMS that hangs: the signature is given up, chunks go on, and it signs again when it is back."""
    clock = SystemClock()
    hanging, asked = threading.Event(), threading.Event()
    troubles: list[JournalTrouble] = []

    class Slow:
        signed = 0

        def sign(self, message: bytes) -> bytes:
            asked.set()
            assert hanging.wait(60)
            self.signed += 1
            return sm3(message)

    signer = Slow()
    commit = GroupCommit(signer, clock, on_trouble=troubles.append)
    try:
        journal = commit.open(tmp_path, KEY, SessionRecord(clock.now_ns(), 1, {}))
        assert asked.wait(30)
        for _ in range(3):
            journal.write(packets(10, clock.now_ns()))
            journal.flushed().result(30)  # on disk, while the signer hangs
        assert signer.signed == 0
        hanging.set()
        deadline = time.monotonic() + 30
        while signer.signed < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        journal.close(EndRecord(clock.now_ns(), True, "x")).result(30)
    finally:
        hanging.set()
        commit.close()
    assert signer.signed >= 2
    assert {trouble.type for trouble in troubles} == {"recording.unsigned"}
    assert len(troubles) == 1  # once a minute, not once a try
    assert sum(isinstance(record, RtpRecord) for record in JournalReader(tmp_path, KEY).records()) == 30
