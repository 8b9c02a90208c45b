"""What the holder of a data key does with keys, signed pages and the files they name."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from recorder.canonical import canonical
from recorder.journal.encoding import encode
from recorder.keys import read_sidecar, write_sidecar
from recorder.manifest import read_manifest
from recorder.records import RtpRecord
from recorder.sealed import RecordType, SealedError, SealedReader, SealedWriter, scan
from recorder.signed import sign_page
from tests.recorder.attacks_on_segments import Attack, Target
from tests.recorder.forging import Piece

# --- keys


class TwoKeys(Attack):
    """A file whose header commits to the recording's key while its chunks open under another."""

    def forge(self, target: Target) -> str:
        name = target.segment()
        made = target.opened(name)
        forged = made.to_bytes(target.data_key, chunk_key=target.other_key)
        target.put(name, forged)
        for key, code in ((target.data_key, "changed"), (target.other_key, "wrong_key")):
            with pytest.raises(SealedError) as refused, SealedReader(target.path / name, key) as reader:
                list(reader.chunks())
            assert refused.value.code == code
        return name


class AnotherKeysFile(Attack):
    """A file sealed, commitment and all, under a second key, though it names the recording's."""

    def forge(self, target: Target) -> str:
        name = target.segment()
        return target.put(name, target.opened(name).to_bytes(target.other_key))


class WrapOfAnotherKey(Attack):
    """keys.json holds a wrap of a key of the attacker's choice; the page cannot be signed again."""

    def forge(self, target: Target) -> str:
        page = json.loads((target.path / "keys.json").read_bytes())
        theirs = json.loads((target.other / "keys.json").read_bytes())
        page["wraps"] = theirs["wraps"]
        if target.source.random() < 0.5:
            page["key_id"] = theirs["key_id"]
        return target.put("keys.json", canonical(page))


class SidecarOfAnotherRecording(Attack):
    """keys.json of another recording, signed as it is."""

    def forge(self, target: Target) -> str:
        return target.put("keys.json", (target.other / "keys.json").read_bytes())


class SidecarBySomebodyElse(Attack):
    """keys.json with another wrap, signed with the attacker's own certificate."""

    def forge(self, target: Target) -> str:
        sidecar, theirs = read_sidecar(target.path), read_sidecar(target.other)
        wraps = theirs["wraps"]
        assert isinstance(wraps, list)
        write_sidecar(
            target.path,
            str(sidecar["recording"]),
            str(sidecar["key_id"]),
            [dict(wrap) for wrap in wraps if isinstance(wrap, dict)],
            target.stranger.signer(),
            revision=2,
        )
        return "keys.json"


# --- manifest, statements, files


class ManifestOfAnEarlierAttempt(Attack):
    """The recorder once signed this very recording when it had fewer segments; that manifest is put back."""

    states = ("ended",)

    def forge(self, target: Target) -> str:
        return target.put("manifest.json", target.earlier)


class ManifestOfAnotherAttempt(Attack):
    """The signed manifest of another attempt at the same business, under this recording's id."""

    states = ("ended", "recovered")

    def forge(self, target: Target) -> str:
        return target.put("manifest.json", (target.other / "manifest.json").read_bytes())


class ManifestEdited(Attack):
    """One member of the manifest is changed, digests of a forged segment among them."""

    states = ("ended", "recovered")

    def forge(self, target: Target) -> str:
        page = json.loads((target.path / "manifest.json").read_bytes())
        edits: list[Callable[[], None]] = [
            lambda: page["facts"].update(room="another"),
            lambda: page["parts"][0]["segments"].pop(),
            lambda: page.update(written_at="2020-01-01T00:00:00.000Z"),
            lambda: page["provider"].update(assurance="operator"),
            lambda: page.update(template_sm3=None),
        ]
        target.source.choice(edits)()
        return target.put("manifest.json", canonical(page))


class ManifestBySomebodyElse(Attack):
    """The manifest is changed and signed with the attacker's own certificate, the other pages are not."""

    states = ("ended", "recovered")

    def forge(self, target: Target) -> str:
        fields = dict(read_manifest(target.path).page.fields)
        fields["written_at"] = "2020-01-01T00:00:00.000Z"
        target.put("manifest.json", sign_page(fields, target.stranger.signer()))
        return "manifest.json"


class StatementRemoved(Attack):
    """A statement in the middle is taken out; those behind it keep their numbers, or take the free one."""

    states = ("ended",)

    def forge(self, target: Target) -> str:
        folder = target.path / "statements"
        number = target.source.choice((1, 2))
        (folder / f"{number:06d}.json").unlink()
        if target.source.random() < 0.5:
            for later in range(number + 1, 4):
                (folder / f"{later:06d}.json").rename(folder / f"{later - 1:06d}.json")
        return f"statements/{number:06d}.json"


class StatementEdited(Attack):
    """A statement says another verdict, or names another composite's digest."""

    states = ("ended",)

    def forge(self, target: Target) -> str:
        name = f"statements/{target.source.choice((1, 2, 3)):06d}.json"
        page = json.loads((target.path / name).read_bytes())
        page["body"]["verdict"] = "passed!"
        return target.put(name, canonical(page))


class StatementOfAnotherRecording(Attack):
    """A signed statement of another recording is put in a statement's place."""

    states = ("ended",)

    def forge(self, target: Target) -> str:
        name = f"statements/{target.source.choice((1, 2)):06d}.json"
        return target.put(name, (target.other / name).read_bytes())


class CompositeReplaced(Attack):
    """Another film, sealed under the right key, lies where the signed composite lay."""

    states = ("ended",)

    def forge(self, target: Target) -> str:
        name = target.composite()
        made = target.opened(name)
        made.pieces = [Piece(RecordType.CHUNK, target.source.randbytes(5000))]
        if target.source.random() < 0.5:
            made.fresh()
        return target.put(name, made.to_bytes(target.data_key))


class CompositeRetouched(Attack):
    """One byte of the composite's plain text, everything else made to fit, its file id kept."""

    states = ("ended",)

    def forge(self, target: Target) -> str:
        name = target.composite()
        made = target.opened(name)
        piece = target.source.choice(made.chunks)
        body = bytearray(piece.body)
        body[target.source.randrange(len(body))] ^= 1
        piece.body = bytes(body)
        return target.put(name, made.to_bytes(target.data_key))


class SealedPartReplaced(Attack):
    """Other people are named: the sealed half of the manifest, or of a statement, is written anew."""

    states = ("ended", "recovered")

    def forge(self, target: Target) -> str:
        names = [
            "manifest.sealed",
            *(f"statements/{one.name}" for one in target.path.glob("statements/*.sealed")),
        ]
        name = target.source.choice(names)
        made = target.opened(name)
        made.pieces[0].body = made.pieces[0].body.replace("李伟".encode(), "王五".encode()) + b" "
        if target.source.random() < 0.5:
            made.fresh()
        return target.put(name, made.to_bytes(target.data_key))


class SegmentAdded(Attack):
    """A segment behind the last, sealed under the right key, naming the last one's head."""

    states = ("ended", "recovered")

    def forge(self, target: Target) -> str:
        last = sorted((target.path / "segments").iterdir())[-1]
        place = f"{last.name[:6]}{int(last.name[6:12]) + 1:06d}.seg"
        head = scan(last)
        public = {**(head.header.public if head.header else {}), "index": int(place[6:12])}
        writer = SealedWriter(
            last.with_name(place),
            target.data_key,
            kind="original",
            media_type="application/vnd.shuanglu.journal",
            public=public,
            previous=head.head,
        )
        writer.append(encode([RtpRecord(1, 10**12, b"\x80" * 40)]))
        writer.close()
        return f"segments/{place}"
