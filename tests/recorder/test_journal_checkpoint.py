"""The Merkle tree of checkpoints against RFC 6962's own definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorder.checkpoint import Checkpoint, leaf_hash, merkle_tree
from recorder.gm.sm3 import sm3

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
