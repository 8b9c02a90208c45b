"""What the holder of a data key does to segments and checkpoints: everything but signing."""

from __future__ import annotations

import itertools
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from recorder.checkpoint import Checkpoint, merkle_tree
from recorder.journal.encoding import decode, encode
from recorder.keys import FileProvider
from recorder.records import ClockRecord, RtpRecord
from recorder.sealed import DataKey, RecordType, scan
from recorder.sealed.format import Flag, Index
from tests.recorder.forging import Forgery, Piece

STATES = ("ended", "recovered", "crashed")


@dataclass
class Target:
    """A copy that is attacked, and what the attacker has."""

    path: Path
    data_key: DataKey
    other: Path
    """Another recording of the same recorder, and its data key."""
    other_key: DataKey
    earlier: bytes
    stranger: FileProvider
    """The attacker's own certificate and key."""
    source: random.Random

    def segment(self) -> str:
        """Draw a segment that another of its part follows: a crash leaves open the last one's tail."""
        segments = sorted((self.path / "segments").iterdir())
        inner = [one for one, after in itertools.pairwise(segments) if one.name[:5] == after.name[:5]]
        return f"segments/{self.source.choice(inner).name}"

    def opened(self, name: str) -> Forgery:
        return Forgery.take_apart(self.path / name, self.data_key)

    def put(self, name: str, data: bytes) -> str:
        assert (self.path / name).read_bytes() != data
        (self.path / name).write_bytes(data)
        return name

    def composite(self) -> str:
        (found,) = (self.path / "files").iterdir()
        return f"files/{found.name}"


class Attack(ABC):
    """``forge`` changes the target and returns the file that verification must name."""

    states: ClassVar[tuple[str, ...]] = STATES

    @abstractmethod
    def forge(self, target: Target) -> str: ...


def with_packets(made: Forgery) -> list[Piece]:
    """Return the chunks that hold RTP packets."""
    return [one for one in made.chunks if any(isinstance(record, RtpRecord) for record in decode(one.body))]


# --- segments, sealed anew


class ClockPairsRewritten(Attack):
    """The call took place an hour later: every clock pair of a segment is changed, the checkpoints stay."""

    states = ("recovered", "crashed")

    def forge(self, target: Target) -> str:
        name = target.segment()
        made = target.opened(name)
        changed = 0
        for piece in made.chunks:
            records = list(decode(piece.body))
            for at, record in enumerate(records):
                if isinstance(record, ClockRecord):
                    records[at] = replace(record, utc_ns=record.utc_ns + 3600 * 10**9)
                    changed += 1
            piece.body = encode(records)
        assert changed
        return target.put(name, made.to_bytes(target.data_key))


class ClockPairsRewrittenWithoutCheckpoints(ClockPairsRewritten):
    """The same, and the checkpoints that would tell are left out."""

    def forge(self, target: Target) -> str:
        name = super().forge(target)
        made = target.opened(name)
        made.pieces = made.chunks
        return target.put(name, made.to_bytes(target.data_key))


class PacketsRemoved(Attack):
    """A sentence is taken out: packets of one chunk."""

    def forge(self, target: Target) -> str:
        name = target.segment()
        made = target.opened(name)
        piece = target.source.choice(with_packets(made))
        records = list(decode(piece.body))
        packets = [at for at, one in enumerate(records) if isinstance(one, RtpRecord)]
        del records[target.source.choice(packets)]
        piece.body = encode(records)
        return target.put(name, made.to_bytes(target.data_key))


class PacketForged(Attack):
    """A packet says something else."""

    def forge(self, target: Target) -> str:
        name = target.segment()
        made = target.opened(name)
        piece = target.source.choice(
            [one for one in made.chunks if any(isinstance(r, RtpRecord) for r in decode(one.body))]
        )
        records = list(decode(piece.body))
        at = target.source.choice([at for at, one in enumerate(records) if isinstance(one, RtpRecord)])
        packet = records[at]
        assert isinstance(packet, RtpRecord)
        records[at] = replace(
            packet, packet=packet.packet[:12] + target.source.randbytes(len(packet.packet) - 12)
        )
        piece.body = encode(records)
        return target.put(name, made.to_bytes(target.data_key))


class ChunksExchanged(Attack):
    """Two chunks change places, each sealed anew under its new number."""

    def forge(self, target: Target) -> str:
        name = target.segment()
        made = target.opened(name)
        one, two = target.source.sample(made.chunks, 2)
        one.body, two.body = two.body, one.body
        return target.put(name, made.to_bytes(target.data_key))


class ChunkRemoved(Attack):
    """A chunk is left out, the others numbered anew."""

    def forge(self, target: Target) -> str:
        name = target.segment()
        made = target.opened(name)
        made.pieces.remove(target.source.choice(made.chunks[1:]))
        return target.put(name, made.to_bytes(target.data_key))


class SealedAnewUnderAFreshId(Attack):
    """A whole segment is written again, as an honest writer would, with one packet changed."""

    def forge(self, target: Target) -> str:
        name = PacketForged().forge(target)
        made = target.opened(name)
        made.fresh()
        made.pieces = made.chunks
        return target.put(name, made.to_bytes(target.data_key))


class HeaderChanged(Attack):
    """The header's public facts say another recording, part or place, or another predecessor; all fits it."""

    def forge(self, target: Target) -> str:
        name = target.segment()
        made = target.opened(name)
        header = made.header
        made.header = target.source.choice(
            [
                replace(
                    header, public={**header.public, "recording": "019f0000-0000-7000-8000-000000000000"}
                ),
                replace(header, public={**header.public, "note": "nothing"}),
                replace(header, media_type="application/octet-stream"),
                replace(header, kind="derived"),
            ]
        )
        return target.put(name, made.to_bytes(target.data_key))


class OpaqueFlagSet(Attack):
    """A chunk is said to be the parties' own cipher text, so that nobody looks into it."""

    def forge(self, target: Target) -> str:
        name = target.segment()
        made = target.opened(name)
        target.source.choice(made.chunks).flags |= Flag.OPAQUE
        return target.put(name, made.to_bytes(target.data_key))


class FrameAdded(Attack):
    """A public frame of a later version is put in, to be skipped by whoever does not know it."""

    def forge(self, target: Target) -> str:
        name = target.segment()
        made = target.opened(name)
        at = target.source.randrange(len(made.pieces))
        made.pieces.insert(at, Piece(77, target.source.randbytes(20), 0))
        return target.put(name, made.to_bytes(target.data_key))


class IndexRewritten(Attack):
    """INDEX names other places or sizes, END follows it; a reader of byte ranges would be led astray."""

    def forge(self, target: Target) -> str:
        name = target.segment()
        made = target.opened(name)

        def shifted(index: Index) -> Index:
            turned = (*range(1, len(index.offsets)), 0)
            offsets, sizes = ([numbers[at] for at in turned] for numbers in (index.offsets, index.sizes))
            return replace(index, offsets=tuple(offsets), sizes=tuple(sizes))

        return target.put(name, made.to_bytes(target.data_key, index=shifted))


class EndRewritten(Attack):
    """END says other sums than the file has."""

    def forge(self, target: Target) -> str:
        name = target.segment()
        made = target.opened(name)
        more = target.source.randrange(1, 99)
        forged = made.to_bytes(target.data_key, end=lambda end: (end[0], end[1] + more, end[2], end[3]))
        return target.put(name, forged)


class SegmentOfAnotherRecording(Attack):
    """Another call's segment, opened and sealed anew for this place under this key."""

    def forge(self, target: Target) -> str:
        name = target.segment()
        here = target.opened(name)
        theirs = sorted((target.other / "segments").iterdir())[1]
        made = Forgery.take_apart(theirs, target.other_key)
        made.header = here.header
        made.pieces = made.chunks
        return target.put(name, made.to_bytes(target.data_key))


class CutAndEnded(Attack):
    """The last chunks of a segment are cut off, and the file is ended in good order."""

    def forge(self, target: Target) -> str:
        name = target.segment()
        made = target.opened(name)
        made.pieces = made.pieces[: len(made.pieces) // 2]
        return target.put(name, made.to_bytes(target.data_key))


# --- checkpoints


class CheckpointReplayed(Attack):
    """Behind a forged chunk stands a checkpoint that was signed for another place, file or recording."""

    def forge(self, target: Target) -> str:
        name = PacketForged().forge(target)
        made = target.opened(name)
        place = target.source.choice(made.checkpoints)
        segments = [*(target.path / "segments").iterdir(), *(target.other / "segments").iterdir()]
        frames = [
            record.payload
            for path in segments
            for record in scan(path).records
            if record.type == RecordType.CHECKPOINT and record.payload != place.body
        ]
        place.body = target.source.choice(frames)
        return target.put(name, made.to_bytes(target.data_key))


class CheckpointMoved(Attack):
    """A checkpoint is moved before the chunk it was signed for."""

    def forge(self, target: Target) -> str:
        name = target.segment()
        made = target.opened(name)
        at = made.pieces.index(target.source.choice(made.checkpoints))
        piece = made.pieces.pop(at)
        made.pieces.insert(max(0, at - target.source.randrange(1, 3)), piece)
        return target.put(name, made.to_bytes(target.data_key))


class CheckpointBySomebodyElse(Attack):
    """A checkpoint fits the forged bytes, signed with the attacker's own key."""

    def forge(self, target: Target) -> str:
        name = PacketForged().forge(target)
        made = target.opened(name)
        place = target.source.choice(made.checkpoints)
        for frame in made.checkpoints:
            if frame is not place:
                made.pieces.remove(frame)
        raw = made.to_bytes(target.data_key)
        (target.path / name).write_bytes(raw)
        (record,) = [one for one in scan(target.path / name).records if one.type == RecordType.CHECKPOINT]
        old = Checkpoint.from_bytes(record.payload)
        root, (path,) = merkle_tree([record.head_before])
        unsigned = Checkpoint(0, 1, old.at_ns, old.utc_ns, root, path)
        signature = target.stranger.signer().sign(unsigned.signed_message())
        place.body = replace(unsigned, signature=signature).to_bytes()
        return target.put(name, made.to_bytes(target.data_key))
