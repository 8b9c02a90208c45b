"""Build and run the native forwarder's fuzzer: ``python -m tests.forwarder.fuzzing [SECONDS [SEED]]``."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from pathlib import Path

from mediaserver.forwarder import build
from tests.forwarder.ends import rtp, vp8

SANITIZE = (
    "-g",
    "-O1",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
)
HERE = Path(__file__).resolve().parent


def seeds() -> list[bytes]:
    """Return seed packets: one of each kind that the forwarder reads."""
    from tests.forwarder.test_receiving import KEYFRAMES
    from tests.forwarder.test_resending import nack
    from tests.forwarder.test_rtcp import description, feedback, sender_report

    elements = [(1, b"mid"), (3, b"rid"), (4, b"\0\1"), (5, bytes(3)), (6, b"\5"), (7, b"\1")]
    found = [
        rtp(1, elements=elements, payload=vp8(True, 5, 6), csrcs=(1, 2), padding=4),
        rtp(2, elements=elements, payload=vp8(False, 6, 7), two_byte=True),
        rtp(3, ssrc=0x9991, payload_type=97, payload=b"\0\1" + vp8(False, 6, 7)),
        rtp(4, ssrc=0x7777, elements=elements),
        nack(0x2225, (3, 0xFFFF), (200, 1)),
        nack(0x2224, (3, 0xFFFF)),
        feedback([1] * 9 + [0] * 3 + [1]),
        sender_report(0x1112) + description(0x1112) + feedback([1, 0] * 9),
        b"\0\1" + bytes(18),
        b"\x16\xfe\xfd" + bytes(13),
    ]
    codecs = {"video/vp8": 1, "video/vp9": 2, "video/h264": 3, "video/av1": 4}
    for mime, payload, _ in KEYFRAMES:
        if (codec := codecs.get(mime.lower())) and payload:
            found.append(rtp(5, ssrc=0x1111 + codec, payload=payload))
    return found


def sanitized_library(directory: Path) -> Path:
    """Compile the native forwarder with AddressSanitizer and UndefinedBehaviorSanitizer."""
    return build.compile_library(directory, flags=(*SANITIZE, "-std=gnu11", "-fPIC", "-shared", "-pthread"))


def build_fuzzer(directory: Path, library: Path) -> Path:
    """Compile the fuzzer around a sanitized library."""
    binary = directory / "fuzz"
    subprocess.run(
        [
            *(*build.compiler(), *SANITIZE, "-std=gnu11", "-D_GNU_SOURCE", "-pthread", f"-I{build.SOURCES}"),
            *("-o", str(binary), str(HERE / "fuzz.c"), str(library), f"-Wl,-rpath,{library.parent}"),
        ],
        check=True,
    )
    return binary


def run_fuzzer(directory: Path, library: Path, seconds: int, seed: int) -> str:
    """Run it; return its last words. Raises if it finds anything."""
    paths = []
    for at, data in enumerate(seeds()):
        path = directory / f"seed-{at}"
        path.write_bytes(b"\0" + data)
        paths.append(str(path))
    done = subprocess.run(
        [str(build_fuzzer(directory, library)), str(seconds), str(seed), *paths],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"fuzzing with seed {seed} found:\n{done.stderr[-6000:]}")
    return done.stdout


if __name__ == "__main__":
    duration = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    drawn = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    print(f"seed {drawn}")
    with tempfile.TemporaryDirectory() as scratch:
        print(run_fuzzer(Path(scratch), sanitized_library(Path(scratch)), duration, drawn), end="")
