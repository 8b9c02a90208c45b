"""Build and run the native forwarder's fuzzers around one harness, ``fuzz.c``, with the same seeds.

``python -m tests.forwarder.fuzzing [SECONDS [SEED]]`` builds with the C compiler that is there and mutates
blindly: that one serves the test suite. ``python -m tests.forwarder.fuzzing coverage [SECONDS]``, which
``make fuzz`` calls, builds with clang; libFuzzer follows the coverage and goes on from where the last run
ended (``out/fuzz/corpus``). What it finds is in ``out/fuzz`` then, and the same program run on such a file
shows it again.
"""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from mediaserver.forwarder import build
from tests.forwarder.ends import rtp, vp8

SANITIZE: Final = (
    "-g",
    "-O1",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
)
HERE: Final = Path(__file__).resolve().parent
CORPUS: Final = HERE / "corpus"
FOUND: Final = HERE.parents[1] / "out" / "fuzz"
INPUT_BYTES: Final = 1 << 15
"""As in fuzz.c."""
BEGIN, WINDOW = 12, 24
"""A seed is the beginning of a captured call, where its keyframe is, and a window of what came later."""
PUBLISHER, SUBSCRIBER, CALL = 0, 1, 4
SEQUENCES_APART: Final = 997


def step(packet: bytes, side: int = PUBLISHER, pause: int = 1) -> bytes:
    """Put a packet as fuzz.c reads it: from whom, and after ``pause``² ms."""
    return struct.pack("!BH", pause << 3 | side, len(packet)) + packet


def split(conversation: bytes) -> list[bytes]:
    """Take a conversation apart into its steps."""
    found = []
    at = 0
    while at < len(conversation):
        (size,) = struct.unpack_from("!H", conversation, at + 1)
        found.append(conversation[at : at + 3 + size])
        at += 3 + size
    return found


def made() -> bytes:
    """Return a conversation with one packet of each kind that the forwarder reads, calls between them."""
    from tests.forwarder.test_receiving import KEYFRAMES
    from tests.forwarder.test_resending import nack
    from tests.forwarder.test_rtcp import description, feedback, sender_report

    elements = [(1, b"mid"), (3, b"rid"), (4, b"\0\1"), (5, bytes(3)), (6, b"\5"), (7, b"\1")]
    sent = [
        rtp(1, ssrc=0x1112, elements=elements, payload=vp8(True, 5, 6), csrcs=(1, 2), padding=4),
        rtp(2, ssrc=0x1112, elements=elements, payload=vp8(False, 6, 7), two_byte=True),
        rtp(3, ssrc=0x9991, payload_type=97, payload=b"\0\1" + vp8(False, 6, 7)),
        rtp(4, ssrc=0x7777, elements=elements),
        sender_report(0x1112) + description(0x1112) + feedback([1, 0] * 9),
        b"\0\1" + bytes(18),
        b"\x16\xfe\xfd" + bytes(13),
    ]
    codecs = {"video/vp8": 1, "video/vp9": 2, "video/h264": 3, "video/av1": 4}
    for at, (mime, payload, _) in enumerate(KEYFRAMES):
        if (codec := codecs.get(mime.lower())) and payload:
            sent.append(rtp(5 + at, ssrc=0x1111 + codec, payload=payload))
    asked = [
        nack(0x2224, (100, 0xFFFF)),
        nack(0x2226, (3, 0xFFFF), (200, 1)),
        feedback([1] * 9 + [0] * 3 + [1]),
        bytes.fromhex("81c90007 00000007 00002224 40000005") + bytes(16),  # a receiver report of one block
    ]
    calls = [bytes((number, at, at + 1, 5, *range(8))) for number in range(23) for at in (1, 2)]
    plain = [nack(0x2223 + 2 * codec, (100, 0xFFFF)) for codec in range(5)]
    return b"".join(
        [*(step(packet) for packet in sent), *(step(packet, SUBSCRIBER, 4) for packet in asked)]
        + [step(packet, 2, 4) for packet in plain]
        + [step(rtp(30000 + at * SEQUENCES_APART, ssrc=0x1112, payload=vp8(True))) for at in range(80)]
        + [step(call, CALL) for call in calls]
        + [step(packet, 2) for packet in (rtp(1, ssrc=0x5111, payload=vp8(True)), nack(0x2223, (100, 7)))]
    )


def scalable() -> bytes:
    """Return a conversation in spatial and temporal layers, with wishes and packets that come late."""
    from tests.forwarder.scalable import ScalableStream
    from tests.forwarder.test_resending import nack

    steps = []
    for codec, number in (("VP9", 2), ("AV1", 4)):
        source = ScalableStream(codec, ssrc=0x1111 + number, dependency_id=7)
        for turn, (spatial, temporal) in enumerate(((1, 1), (0, 0), (2, 1), (4, 4))):
            steps += [step(bytes((21, route, spatial, temporal)), CALL) for route in (number, number + 5)]
            packets = [one.data for one in source.next(key=turn == 2) + source.pictures(3)]
            late = packets[2:20:5]
            steps += [step(packet) for packet in packets if packet not in late]
            steps += [step(packet) for packet in late]
        steps.append(step(nack(0x2222 + 2 * number, (100, 0xFFFF), (117, 0xFFFF)), SUBSCRIBER, 4))
        steps.append(step(nack(0x2223 + 2 * number, (100, 0xFFFF), (117, 0xFFFF)), 2, 4))
    return b"".join(steps)


def redundant() -> bytes:
    """Return a conversation of RED (RFC 2198), good and bad, asked for again by both subscribers."""
    from tests.forwarder.test_red import red
    from tests.forwarder.test_resending import nack

    payloads = [red(b"own"), red(b"own", (960, b"copy")), red(b"own", (1920, b"older"), (960, b"copy"))]
    payloads += [red(b"", (960, b"")), red(b"own", (960, b"copy"))[:-6], red(b"own", (1, b"x"), kind=13), b""]
    sent = [
        rtp(at, timestamp=960 * at, payload_type=98, payload=payload, padding=4 * (at % 2))
        for at, payload in enumerate(payloads * 3)
    ]
    asked = [step(nack(0x2222, (100, 0xFFFF)), SUBSCRIBER, 4), step(nack(0x2223, (100, 0xFFFF)), 2, 4)]
    return b"".join([*(step(packet) for packet in [rtp(999), *sent]), *asked])


def seeds() -> Iterator[bytes]:
    """Give all seeds: captured calls in windows, and three conversations that are made up."""
    yield made()
    yield redundant()
    yield scalable()
    for path in sorted(CORPUS.glob("*.bin")):
        steps = split(path.read_bytes())
        for at in range(BEGIN, len(steps), WINDOW):
            yield b"".join(steps[:BEGIN] + steps[at : at + WINDOW])


def write_seeds(directory: Path) -> list[str]:
    """Write each seed as a file; return their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for at, data in enumerate(seeds()):
        path = directory / f"seed-{at:03}"
        path.write_bytes(data[:INPUT_BYTES])
        paths.append(str(path))
    return paths


def sanitized_library(directory: Path) -> Path:
    """Compile the native forwarder with AddressSanitizer and UndefinedBehaviorSanitizer."""
    return build.compile_library(directory, flags=(*SANITIZE, "-std=gnu11", "-fPIC", "-shared", "-pthread"))


def build_fuzzer(directory: Path, compiler: Sequence[str] = (), flags: Sequence[str] = ()) -> Path:
    """Compile the harness with all sources, sanitized; ``fuzz.c`` itself includes ``loop.c``."""
    binary = directory / "fuzz"
    sources = [str(path) for path in build.source_files() if path.suffix == ".c" and path.name != "loop.c"]
    subprocess.run(
        [
            *(*(compiler or build.compiler()), *SANITIZE, *flags, "-std=gnu11", "-D_GNU_SOURCE", "-pthread"),
            *(f"-I{build.SOURCES}", "-Wno-unused-function", "-Wl,--wrap=sendmmsg", "-Wl,--wrap=sendmsg"),
            *("-o", str(binary), str(HERE / "fuzz.c"), *sources),
        ],
        check=True,
    )
    return binary


def run_fuzzer(directory: Path, seconds: int, seed: int) -> str:
    """Run the blind one; return its last words. Raises AssertionError if it finds anything."""
    done = subprocess.run(
        [str(build_fuzzer(directory)), str(seconds), str(seed), *write_seeds(directory / "seeds")],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"fuzzing with seed {seed} found:\n{done.stderr[-6000:]}")
    return done.stdout


def follow_coverage(seconds: int) -> int:
    """Run libFuzzer on what earlier runs kept and the seeds; return its exit code, 0 if it found nothing."""
    kept = FOUND / "corpus"
    kept.mkdir(parents=True, exist_ok=True)
    binary = build_fuzzer(FOUND, ("clang",), ("-DLIBFUZZER", "-fsanitize=fuzzer"))
    write_seeds(FOUND / "seeds")
    return subprocess.run(
        [
            *(str(binary), str(kept), str(FOUND / "seeds"), f"-max_total_time={seconds}"),
            *(f"-max_len={INPUT_BYTES}", "-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"),
            *("-reduce_inputs=0", f"-artifact_prefix={FOUND}/"),
        ],
        check=False,
    ).returncode


def main(arguments: Sequence[str]) -> int:
    """Run the fuzzer that the arguments ask for."""
    if arguments[:1] == ["coverage"]:
        return follow_coverage(int(arguments[1]) if len(arguments) > 1 else 60)
    duration = int(arguments[0]) if arguments else 60
    drawn = int(arguments[1]) if len(arguments) > 1 else random.randrange(1 << 32)
    print(f"seed {drawn}")
    with tempfile.TemporaryDirectory() as scratch:
        print(run_fuzzer(Path(scratch), duration, drawn), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
