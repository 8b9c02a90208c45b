"""Look into a stage's recordings from the outside: where they lie, their keys, their records, their
nonces.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from recorder.journal import JournalReader
from recorder.keys import FileProvider, read_sidecar
from recorder.records import Record, RtpRecord
from recorder.sealed import DataKey
from recorder.sealed.format import RecordType
from recorder.sealed.scan import scan
from tests.e2e.stage import Stage

SEALED_RECORDS = (RecordType.CHUNK, RecordType.INDEX)
"""The records of a sealed file whose text is encrypted, each under the nonce made of its number."""


def directory_of(stage: Stage, recording: str) -> Path:
    """Return a recording's directory."""
    (found,) = (stage.data / "recordings").glob(f"*/*/*/*/{recording}")
    return found


async def data_key_of(stage: Stage, recording: str) -> DataKey:
    """Open a recording's data key with the stage's own provider."""
    provider = FileProvider.open(stage.data / "secrets" / "crypto")
    sidecar = read_sidecar(directory_of(stage, recording))
    return await provider.unwrap(sidecar, recording_id=recording, purpose="test", actor="test")


async def records_of(stage: Stage, recording: str) -> list[Record]:
    """Return all records of a recording's journal, all parts."""
    return list(JournalReader(directory_of(stage, recording), await data_key_of(stage, recording)).records())


def arrivals_ns(records: list[Record]) -> list[int]:
    """Return the arrival times of all media packets in order."""
    return sorted(record.arrival_ns for record in records if isinstance(record, RtpRecord))


class NonceLedger:
    """Every sealed file that was ever seen, and whether any (key, nonce) was used twice.

    A file's key is derived from the data key and its random file id, its nonces are its record numbers: the
    same pair comes up again if two files share an id, if a number occurs twice in a file, or if a file that
    its writer left is written on.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen: dict[tuple[str, str], tuple[int, int]] = {}
        """(key id, file id) → (inode, device) of the file that has it."""
        self._left: dict[Path, tuple[int, bytes]] = {}
        self.nonces = 0

    def look(self, *, workers_are_dead: bool = False) -> None:
        """Take in all sealed files there are now. Of dead workers unfinished segments stay as they are."""
        for path in sorted(self._root.rglob("*")):
            if path.suffix not in (".seg", ".sealed") or not path.is_file():
                continue
            found = scan(path)
            if found.header is None:
                continue
            status = path.stat()
            key = (found.header.key_id, found.header.file_id)
            known = self._seen.setdefault(key, (status.st_ino, status.st_dev))
            assert known == (status.st_ino, status.st_dev), f"{path} has the id of another file"
            numbers = Counter(record.number for record in found.records if record.type in SEALED_RECORDS)
            assert max(numbers.values(), default=0) <= 1, f"{path}: a nonce occurs twice"
            self.nonces += len(numbers)
            if workers_are_dead and path.suffix == ".seg" and not found.finished:
                self._left[path] = (found.size, found.digest)

    def check_left(self) -> int:
        """Check that no file that a dead writer left was written on; returns how many there were."""
        for path, (size, digest) in self._left.items():
            if not path.exists():
                continue
            now = scan(path)
            assert (now.size, now.digest) == (size, digest), f"{path} was written on after its writer's death"
        return len(self._left)
