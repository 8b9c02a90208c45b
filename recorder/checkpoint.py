"""Checkpoints: one SM2 signature over the chain heads of all journals a worker has open.

Every two seconds a worker builds a Merkle tree (RFC 6962 section 2.1, with SM3) over the chain heads of its
open segments and signs the root once, however many recordings there are. Each segment keeps root, signature
and its own path as a public frame, so that after a crash it still proves how it stood, alone and without any
key.

Payload of the frame (type ``RecordType.CHECKPOINT``), big-endian::

    version u8 = 1 | index u32 | leaves u32 | monotonic ns u64 | UTC ns u64 | path length u8 | root (32)
    | path × 32 | signature length u16 | signature (DER of r, s)

The head that is proved is that of all bytes before the frame: the trailer of the record before it is SM3 of
the bytes before that trailer, and the leaf is the SM3 of all bytes of the file before the frame
(``SealedWriter.head``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct, error

from recorder.gm.sm3 import sm3

VERSION = 1
CONTEXT = b"shuanglu journal checkpoint v1\n"
_HEAD = Struct(">BIIQQB32s")
_LENGTH = Struct(">H")
_SIGNED = Struct(">IQQ32s")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One journal's share of a signed root."""

    index: int
    """Place of this journal's head among the leaves."""
    leaves: int
    at_ns: int
    """Monotonic."""
    utc_ns: int
    root: bytes
    path: tuple[bytes, ...]
    """Sibling hashes from the leaf up."""
    signature: bytes = b""

    def signed_message(self) -> bytes:
        """Return what the signature is over: context, number of leaves, both times and the root."""
        return CONTEXT + _SIGNED.pack(self.leaves, self.at_ns, self.utc_ns, self.root)

    def proves(self, head: bytes) -> bool:
        """Tell whether ``head`` is the leaf of this path under the root. The signature is checked apart."""
        return root_of_path(leaf_hash(head), self.index, self.leaves, self.path) == self.root

    def to_bytes(self) -> bytes:
        """Return the frame's payload."""
        head = _HEAD.pack(
            VERSION, self.index, self.leaves, self.at_ns, self.utc_ns, len(self.path), self.root
        )
        return head + b"".join(self.path) + _LENGTH.pack(len(self.signature)) + self.signature

    @classmethod
    def from_bytes(cls, payload: bytes) -> Checkpoint:
        """Parse a frame's payload. Raises ValueError for anything else."""
        try:
            version, index, leaves, at_ns, utc_ns, count, root = _HEAD.unpack_from(payload)
            end = _HEAD.size + 32 * count
            (size,) = _LENGTH.unpack_from(payload, end)
        except error as reason:
            raise ValueError(f"checkpoint cut off: {reason}") from None
        if version != VERSION:
            raise ValueError(f"checkpoint version {version}, not {VERSION}")
        if len(payload) != end + _LENGTH.size + size:
            raise ValueError(f"checkpoint of {len(payload)} bytes announces {end + _LENGTH.size + size}")
        path = tuple(payload[at : at + 32] for at in range(_HEAD.size, end, 32))
        return cls(index, leaves, at_ns, utc_ns, root, path, payload[end + _LENGTH.size :])


def leaf_hash(head: bytes) -> bytes:
    """Return the hash of a leaf (RFC 6962: prefix 0)."""
    return sm3(b"\x00" + head)


def merkle_tree(heads: Sequence[bytes]) -> tuple[bytes, list[tuple[bytes, ...]]]:
    """Return the root over at least one head, and the path of each.

    RFC 6962 splits at the largest power of two below the size; pairing neighbours level by level and carrying
    an odd last one up gives the same tree.
    """
    level = [leaf_hash(head) for head in heads]
    if not level:
        raise ValueError("a tree has at least one leaf")
    paths: list[list[bytes]] = [[] for _ in heads]
    places = list(range(len(heads)))
    while len(level) > 1:
        for leaf, place in enumerate(places):
            if place ^ 1 < len(level):
                paths[leaf].append(level[place ^ 1])
            places[leaf] = place >> 1
        joined = [sm3(b"\x01" + level[at] + level[at + 1]) for at in range(0, len(level) - 1, 2)]
        level = joined + level[len(joined) * 2 :]
    return level[0], [tuple(path) for path in paths]


def root_of_path(leaf: bytes, index: int, leaves: int, path: Sequence[bytes]) -> bytes | None:
    """Return the root a path leads to, None if it has the wrong length for its place."""
    if not 0 <= index < leaves:
        return None
    node, last, remaining = leaf, leaves - 1, list(path)
    while last > 0:
        if index ^ 1 <= last:
            if not remaining:
                return None
            sibling = remaining.pop(0)
            node = sm3(b"\x01" + (sibling + node if index & 1 else node + sibling))
        index, last = index >> 1, last >> 1
    return None if remaining else node
