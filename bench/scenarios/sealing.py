"""What ``seal`` measures, in a process of its own: ``python -m bench.scenarios.sealing``, JSON in and out.

A process, because libgcrypt is chosen once, when ``recorder.gm`` is imported (SHUANGLU_NO_LIBGCRYPT). CPU is
that of this process, user and system: writing to and reading from the file system is in it. MB are 10^6
bytes.
"""

from __future__ import annotations

import gc
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recorder.checkpoint import Checkpoint, merkle_tree
from recorder.gm import selftest
from recorder.gm.sm2 import PrivateKey
from recorder.gm.sm3 import Sm3, sm3
from recorder.journal import GroupCommit, recover
from recorder.keys import FileProvider, LocalSigner, write_sidecar
from recorder.manifest import write_manifest
from recorder.records import ClockRecord, EndRecord, RtpRecord, SessionRecord, TrackInfo, TrackRecord
from recorder.sealed import SUITES, DataKey, SealedReader, SealedWriter
from recorder.statements import append_statement
from recorder.storage import files_directory
from recorder.verify import verify

CHUNK = 256 * 1024
RANGE_BYTES = 1000
RANGES = 200
S = 1_000_000_000
ROOMS, INTERVAL_S = 150, 2.0
CALL_BPS, COMPOSITE_BPS = 2_100_000, 900_000
PACKET_BYTES = 1100


def cpu_seconds(work: Callable[[], object], runs: int) -> float:
    """Return the CPU seconds of this process that ``work`` takes, the least of ``runs``."""
    best = float("inf")
    for _ in range(runs):
        gc.collect()
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return best


def rates(directory: Path, suite: int, chunks: int, runs: int) -> dict[str, Any]:
    """Seal and open one file of ``chunks`` times 256 KiB; MB per CPU-second, and ms of CPU for a range."""
    megabytes = CHUNK * chunks / 1e6
    key = DataKey("bench", os.urandom(SUITES[suite].data_key_bytes), suite)
    # More than the caches hold: a recording does not come from them.
    texts = [os.urandom(CHUNK) for _ in range(64)]
    written: list[Path] = []

    def seal(method: str) -> None:
        for old in written:
            old.unlink()
        written[:] = [directory / f"{method}.sealed"]
        with SealedWriter(written[0], key, kind="derived", media_type="application/octet-stream") as writer:
            take = getattr(writer, method)
            for at in range(chunks):
                take(texts[at % len(texts)])

    def unseal() -> None:
        with SealedReader(written[0], key) as reader:
            for _ in reader.chunks():
                pass
            assert reader.finished

    found: dict[str, Any] = {
        "journal_mb_per_cpu_s": round(megabytes / cpu_seconds(lambda: seal("append"), runs), 1),
        "media_mb_per_cpu_s": round(megabytes / cpu_seconds(lambda: seal("write"), runs), 1),
        "open_mb_per_cpu_s": round(megabytes / cpu_seconds(unseal, runs), 1),
    }
    found["range_ms"] = ranges(written[0], key)
    for old in written:
        old.unlink()
    return found


def ranges(path: Path, key: DataKey) -> dict[str, Any]:
    """Read 1,000 bytes at random places: by a reader opened for it (cold), and by one that is open (warm).

    Of each the median and the greatest of 200. The file lies in the page cache.
    """
    places = random.Random(5)
    found: dict[str, Any] = {}
    with SealedReader(path, key) as open_reader:
        size = open_reader.size

        def cold(offset: int) -> bytes:
            with SealedReader(path, key) as reader:
                return reader.read(offset, RANGE_BYTES)

        def warm(offset: int) -> bytes:
            return open_reader.read(offset, RANGE_BYTES)

        for name, read in (("cold", cold), ("warm", warm)):
            taken = []
            for _ in range(RANGES):
                offset = places.randrange(size - RANGE_BYTES)
                wall, began = time.perf_counter(), time.process_time()
                assert len(read(offset)) == RANGE_BYTES
                taken.append((time.process_time() - began, time.perf_counter() - wall))
            found[name] = {
                "cpu_ms": round(statistics.median(cpu for cpu, _ in taken) * 1e3, 3),
                "wall_ms": round(statistics.median(wall for _, wall in taken) * 1e3, 3),
                "greatest_wall_ms": round(max(wall for _, wall in taken) * 1e3, 3),
            }
    return found


def sm3_rate(chunks: int, runs: int) -> float:
    """Hash ``chunks`` times 256 KiB as one text; MB per CPU-second."""
    texts = [os.urandom(CHUNK) for _ in range(64)]

    def work() -> None:
        running = Sm3()
        for at in range(chunks):
            running.update(texts[at % len(texts)])
        running.digest()

    return round(CHUNK * chunks / 1e6 / cpu_seconds(work, runs), 1)


class StepClock:
    """Monotonic time that is moved, and UTC that goes with it."""

    def __init__(self) -> None:
        self.now = 5 * S

    def now_ns(self) -> int:
        return self.now

    def utc_ns(self) -> int:
        return self.now + 1_767_225_600 * S

    def pair(self) -> ClockRecord:
        return ClockRecord(self.now, self.utc_ns(), 0, "ntp", 2, "trusted")


def record_call(directory: Path, provider: FileProvider, seconds: int) -> None:
    """Write a stopped recording: journal of a call of 2.1 Mbit/s, signed as ever, and its composite."""
    directory.mkdir()
    key = DataKey("bench", os.urandom(16))
    write_sidecar(directory, "r", key.key_id, [], provider.signer())
    clock = StepClock()
    commit = GroupCommit(provider.signer(), clock, threads=False)
    journal = commit.open(directory, key, SessionRecord(clock.now, 1, {"recording": "r", "tenant": "t"}))
    for number in (1, 2):
        who = (
            f"p{number}",
            f"party#{number}",
            "party",
            "",
            "video",
            "camera",
            "video/VP8",
            90000,
            96,
            number,
        )
        journal.write([TrackRecord(clock.now, TrackInfo(number, *who))])
    source = random.Random(9)
    for _ in range(seconds * 4):
        count = CALL_BPS // 8 // PACKET_BYTES // 4
        journal.write(
            [
                RtpRecord(1 + at % 2, clock.now + at, b"\x80\x60" + source.randbytes(PACKET_BYTES - 2))
                for at in range(count)
            ]
        )
        clock.now += S // 4
        commit.step(clock.now)
    ended = journal.close(EndRecord(clock.now, True, "stopped"))
    commit.step(clock.now)
    ended.result(timeout=10)
    commit.close()
    write_manifest(
        directory,
        "r",
        facts={"tenant": "t", "room": "m"},
        sealed={},
        template={},
        parts=recover(directory, key),
        data_key=key,
        provider=provider.info(),
        signer=provider.signer(),
    )
    files_directory(directory).mkdir()
    path = files_directory(directory) / "composite.mp4.{file_id}.sealed"
    with SealedWriter(path, key, kind="archive", media_type="video/mp4") as writer:
        writer.write(source.randbytes(COMPOSITE_BPS // 8 * seconds))
        summary = writer.close()
    append_statement(directory, "composite", {"files": [summary.to_json()]}, provider.signer())


def verifying(directory: Path, seconds: int, runs: int) -> dict[str, Any]:
    """Verify a recording without its key, beside SM3 alone over the same files, read in 256 KiB."""
    provider = FileProvider.create(directory / "keys")
    recording = directory / "recording"
    record_call(recording, provider, seconds)
    files = sorted(path for path in recording.rglob("*") if path.is_file())

    def hash_all() -> None:
        for path in files:
            running = Sm3()
            with path.open("rb", buffering=0) as file:
                while data := file.read(CHUNK):
                    running.update(data)
            running.digest()

    report = verify(recording)
    assert report.ok, [str(finding) for finding in report.findings]
    # In turn: the machine is never the same twice.
    pairs = [(cpu_seconds(lambda: verify(recording), 1), cpu_seconds(hash_all, 1)) for _ in range(2 * runs)]
    verified, hashed = min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)
    key, signature = PrivateKey.generate(), b""
    signature = key.sign(b"m" * 83)
    one = cpu_seconds(lambda: [key.public.verify(b"m" * 83, signature) for _ in range(50)], runs) / 50
    return {
        "call_s": seconds,
        "bytes": sum(path.stat().st_size for path in files),
        "records": report.records,
        "checkpoints": report.checkpoints,
        "verify_cpu_s": round(verified, 4),
        "sm3_cpu_s": round(hashed, 4),
        "times_sm3": round(verified / hashed, 3),
        "sm2_verify_ms": round(one * 1e3, 3),
    }


def signing(directory: Path, rounds: int) -> dict[str, Any]:
    """Sign a checkpoint over 150 open journals, as the commit thread does every two seconds.

    In it: the Merkle tree over the heads, one SM2 signature, and a chained frame written into each segment.
    Not in it: sealing of media, and fdatasync, which are there without checkpoints too.
    """
    key = PrivateKey.generate()
    signer = LocalSigner("", key)
    clock = StepClock()
    commit = GroupCommit(signer, clock, threads=False)
    data_key = DataKey("bench", os.urandom(16))
    for number in range(ROOMS):
        commit.open(
            directory / str(number), data_key, SessionRecord(clock.now, 1, {"recording": str(number)})
        )
    clock.now += S
    commit.step(clock.now)
    taken = []
    for _ in range(rounds):
        clock.now += 2 * S
        began = time.process_time()
        commit._sign_checkpoint(commit._open_journals(), clock.now)
        taken.append(time.process_time() - began)
    commit.close()
    heads = [sm3(bytes((number,))) for number in range(ROOMS)]
    root, _ = merkle_tree(heads)
    message = Checkpoint(0, ROOMS, 1, 1, root, ()).signed_message()
    median = statistics.median(taken)
    return {
        "rooms": ROOMS,
        "interval_s": INTERVAL_S,
        "cpu_ms": round(median * 1e3, 3),
        "share_of_core": round(median / INTERVAL_S, 5),
        "of_it_sm2_ms": round(cpu_seconds(lambda: key.sign(message), 20) * 1e3, 3),
        "of_it_merkle_ms": round(cpu_seconds(lambda: merkle_tree(heads), 20) * 1e3, 3),
    }


def main() -> None:
    """Measure what the order on standard input names."""
    order = json.load(sys.stdin)
    selftest.require()
    chunks, runs = int(order["chunks"]), int(order["runs"])
    began = time.process_time()
    selftest.run()
    found: dict[str, Any] = {
        "libraries": selftest.describe(),
        "selftest_ms": round((time.process_time() - began) * 1e3, 2),
        "sm3_mb_per_cpu_s": sm3_rate(min(chunks, 512), runs),
        "suites": {},
    }
    for suite in SUITES.values():
        with tempfile.TemporaryDirectory(prefix="bench-seal-", dir=order["directory"]) as scratch:
            size = chunks if suite.number == 1 else max(1, chunks // 8)
            found["suites"][suite.name] = {
                "mebibytes": size * CHUNK >> 20,
                **rates(Path(scratch), suite.number, size, runs),
            }
    with tempfile.TemporaryDirectory(prefix="bench-seal-", dir=order["directory"]) as scratch:
        found["verify"] = verifying(Path(scratch), int(order["call_s"]), runs)
    with tempfile.TemporaryDirectory(prefix="bench-seal-", dir=order["directory"]) as scratch:
        found["signing"] = signing(Path(scratch), 10 * runs)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
