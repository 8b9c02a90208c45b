"""The native forwarder by itself: vectors, sanitizers, fuzzing, the build, and agreement with its Python
twin."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from mediaserver.forwarder import (
    AUDIO_LEVEL,
    MID,
    TRANSPORT_CC,
    VIDEO_ORIENTATION,
    ForwarderError,
    Profile,
    build,
    open_forwarder,
)
from mediaserver.forwarder.crypto import crypto_table
from mediaserver.forwarder.native import ffi, load
from tests.forwarder.ends import Seen, World, rtp, vp8
from tests.forwarder.fuzzing import run_fuzzer, sanitized_library
from tests.forwarder.test_resending import nack

ROOT = Path(__file__).resolve().parents[2]

# libsrtp's own test vectors (test/srtp_driver.c, srtp_validate and srtp_validate_gcm): the master keys as
# DTLS would give them.
PLAIN = bytes.fromhex("800f1234decafbadcafebabe") + b"\xab" * 16
PROTECTED = {
    Profile.AES_CM_128_HMAC_SHA1_80: (
        bytes.fromhex("e1f97a0d3e018be0d64fa32c06de4139"),
        bytes.fromhex("0ec675ad498afeebb6960b3aabe6"),
        bytes.fromhex("800f1234decafbadcafebabe4e55dc4ce79978d88ca4d215949d2402b78d6acc99ea179b8dbb"),
    ),
    Profile.AEAD_AES_128_GCM: (
        bytes(range(16)),
        bytes(range(0xA0, 0xAC)),
        bytes.fromhex(
            "800f1234decafbadcafebabec5002ede04cfdd2eb91159e0880aa06ed2976826f796b201df3131a127e8a392"
        ),
    ),
}


@pytest.mark.parametrize("profile", list(Profile))
def test_srtp_vectors_both_ways(world: World, profile: Profile) -> None:
    key, salt, protected = PROTECTED[profile]
    end, other = world.end(ready=False), world.end(ready=False)
    for peer in (end, other):
        world.forwarder.bind(peer.peer, peer.address)
        world.forwarder.set_keys(peer.peer, profile, key, salt, key, salt)
    stream = world.stream(end, 0xCAFEBABE, payload_type=15, track=1)
    world.route(stream, other, 0xCAFEBABE, payload_type=15, first_sequence=0x1234)
    end.send_bytes(protected)
    assert other.receive_bytes() == [protected]
    ((_, _, packet, _),) = world.forwarder.take_tapped()
    assert packet == PLAIN


@pytest.mark.parametrize("decrypt", [0, 1])
def test_the_gcm_vector_of_rfc_7714(decrypt: int) -> None:
    """Section 16.1.1: session keys given, roll-over counter 0."""
    plain = bytes.fromhex("8040f17b8041f8d35501a0b2") + b"Gallia est omnis divisa in partes tres"
    sealed = bytes.fromhex(
        "8040f17b8041f8d35501a0b2f24de3a3fb34de6cacba861c9d7e4bcabe633bd50d294e6f42a5f47a"
        "51c7d19b36de3adf8833899d7f27beb16a9152cf765ee4390cce"
    )
    table, _alive, crypto = crypto_table(ffi)
    assert crypto == "evp"
    buffer = ffi.new("uint8_t[]", 200)
    data, wanted = (sealed, plain) if decrypt else (plain, sealed)
    ffi.memmove(buffer, data, len(data))
    length = ffi.new("int32_t *", len(data))
    salt = bytes.fromhex("517569642070726f2071756f")
    library = load()
    assert library.fwd_gcm_for_test(table, 0, bytes(range(16)), salt, 0xF17B, decrypt, buffer, length) == 0
    assert bytes(ffi.buffer(buffer, length[0])) == wanted
    if decrypt:
        ffi.memmove(buffer, data[:-1] + b"\0", len(data))
        length[0] = len(data)
        assert library.fwd_gcm_for_test(table, 0, bytes(range(16)), salt, 0xF17B, 1, buffer, length) != 0


def conversation(kind: str, seed: int) -> tuple[list[bytes], object, object, object]:
    """Hold a seeded conversation with a forwarder; return everything that came of it."""
    rng = random.Random(seed)
    world = World(kind)
    try:
        publisher, subscriber = world.end(), world.end()
        extensions = {MID: 1, TRANSPORT_CC: 5, AUDIO_LEVEL: 3, VIDEO_ORIENTATION: rng.choice((4, 40))}
        streams = [
            world.stream(publisher, ssrc, mime="video/VP8", clock_rate=90000, rtx_ssrc=ssrc + 50)
            for ssrc in (1, 2)
        ]
        route = world.route(
            streams[0],
            subscriber,
            extensions=extensions,
            mid="m",
            allow_mixed=seed % 2 == 0,
            first_sequence=32760,
        )
        received: list[bytes] = []
        for step in range(40):
            packets = []
            for i in range(8):
                number = step * 8 + i + 65300
                two_byte = rng.random() < 0.3
                elements = [(e, rng.randbytes(rng.randrange(1, 17))) for e in rng.sample(range(1, 9), 3)]
                if two_byte and rng.random() < 0.5:
                    elements.append((5, bytes(rng.choice((0, 20)))))
                payload = rng.choice((vp8, lambda k, p, t: vp8(k, None, None)))(
                    rng.random() < 0.15, number & 0x7FFF, number & 255
                )
                packets.append(
                    rtp(
                        number,
                        ssrc=rng.choice((1, 2)),
                        timestamp=number * 3000,
                        payload=payload[: rng.choice((3, 5, 1000))],
                        marker=rng.random() < 0.3,
                        elements=elements,
                        two_byte=two_byte,
                        csrcs=[7] * rng.choice((0, 0, 2)),
                        padding=rng.choice((0, 0, 4)),
                    )
                )
            if rng.random() < 0.3:
                packets.pop(rng.randrange(8))
            publisher.send(*packets)
            received += [packet.data for packet in subscriber.receive()]
            if rng.random() < 0.2:
                world.forwarder.switch(route, rng.choice(streams))
            if rng.random() < 0.1:
                world.forwarder.pause(route, True)
                world.forwarder.pause(route, False)
        events = [
            (type(e).__name__, *(getattr(e, f) for f in e.__slots__ if f not in ("arrival_ns", "at_ns")))
            for e in world.take(object)  # type: ignore[arg-type]
        ]
        stats = world.forwarder.route_stats(route)
        facts = (stats.packets, stats.bytes, stats.last_sequence, stats.sequence_offset, stats.pending_stream)
        missing = [world.forwarder.missing(stream) for stream in streams]
        return received, events, facts, missing
    finally:
        world.close()


@pytest.mark.parametrize("seed", range(4))
def test_both_forwarders_say_the_same(seed: int) -> None:
    """Byte by byte, but for what follows the arrival times: time stamps after a switch."""
    ours, theirs = conversation("python", seed), conversation("native", seed)
    assert len(ours[0]) > 20

    def timeless(data: bytes) -> bytes:
        return data[:4] + data[8:]

    assert [timeless(data) for data in ours[0]] == [timeless(data) for data in theirs[0]]
    assert ours[1:] == theirs[1:]
    assert len({Seen(data).sequence for data in ours[0]}) == len(ours[0])


def sanitizer_libraries() -> str:
    """Return the run-time libraries that a sanitized library wants to be loaded first."""
    found = []
    for name in ("libasan.so", "libubsan.so"):
        done = subprocess.run(
            [*build.compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True
        )
        path = done.stdout.strip()
        assert os.path.isabs(path), f"the compiler brings no {name}: install its sanitizer package"
        found.append(path)
    return " ".join(found)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a library with AddressSanitizer and UndefinedBehaviorSanitizer."""
    return sanitized_library(tmp_path_factory.mktemp("sanitized"))


@pytest.mark.timeout(300)
def test_conformance_under_sanitizers(sanitized: Path) -> None:
    """Run the hostile and resending parts of this suite on a sanitized library."""
    environ = {
        **os.environ,
        "FORWARDER_LIBRARY": str(sanitized),
        "LD_PRELOAD": sanitizer_libraries(),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",  # the interpreter itself leaks by ASan's measure
    }
    chosen = "native and not libsrtp and not without_growth and not 2000 and not undrained"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:benchmark"]
        + [
            f"tests/forwarder/test_{part}.py"
            for part in ("hostile", "layers", "pacing", "red", "resending", "rtcp", "switching")
        ]
        + ["-k", chosen],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout


def test_a_short_fuzz(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    assert "packets" in run_fuzzer(tmp_path, 3, seed)


def test_the_library_is_named_after_its_sources() -> None:
    name = build.library_name()
    assert name == build.library_name()
    assert name != build.library_name(("-O0",))
    assert build.find_or_compile().name == name


def test_a_cross_compilers_library_is_named_for_its_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cross = tmp_path / "cc"
    cross.write_text("#!/bin/sh\necho riscv64-linux-gnu\n")
    cross.chmod(0o755)
    monkeypatch.setenv("CC", str(cross))
    assert build.compiler_target() == "riscv64-glibc"
    assert build.library_name(target=build.compiler_target()).startswith("_forwarder-riscv64-glibc-")
    cross.write_text("#!/bin/sh\necho what? >&2\nexit 1\n")
    with pytest.raises(build.BuildError, match=r"what\?"):
        build.compiler_target()


def test_without_a_compiler_the_python_forwarder_serves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(build, "PACKAGE", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(ForwarderError, match="cannot be loaded"):
            open_forwarder([sock], kind="native")
        with pytest.warns(RuntimeWarning, match="Python forwarder serves"):
            forwarder = open_forwarder([sock])
        assert forwarder.stats().kind == "python"
        forwarder.close()
        with pytest.raises(ForwarderError, match="no such kind"):
            open_forwarder([sock], kind="fast")


def test_a_compiler_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bad = tmp_path / "cc"
    bad.write_text("#!/bin/sh\necho the disk is on fire >&2\nexit 1\n")
    bad.chmod(0o755)
    monkeypatch.setenv("CC", str(bad))
    with pytest.raises(build.BuildError, match="on fire"):
        build.compile_library(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.so"))


def test_a_library_that_others_may_write_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(build, "PACKAGE", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache" / "shuanglu").mkdir(parents=True)
    planted = tmp_path / "cache" / "shuanglu" / build.library_name()
    planted.write_bytes(b"not a library")
    planted.chmod(0o666)
    monkeypatch.setenv("CC", "/bin/false")
    with pytest.raises(build.BuildError):
        build.find_or_compile()


def test_auto_is_native_here() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, warnings.catch_warnings():
        warnings.simplefilter("error")
        sock.bind(("127.0.0.1", 0))
        forwarder = open_forwarder([sock])
        assert forwarder.stats().kind == "native"
        forwarder.close()


def test_nacks_reach_far_back_within_an_epoch() -> None:
    """The native ring keeps 32 bits of a received number; the rest comes from its epoch."""
    world = World("native")
    try:
        publisher, subscriber = world.end(), world.end()
        world.route(world.stream(publisher), subscriber, rtx_ssrc=0x3333, rtx_payload_type=112)
        for begin in range(0, 70000, 700):
            publisher.send(*(rtp(begin + i, payload=b"x") for i in range(0, 700, 100)))
            subscriber.receive()
        subscriber.send_rtcp(nack(0x2222, ((100 + 69900) & 0xFFFF, 0), ((100 + 69400) & 0xFFFF, 0)))
        assert len(subscriber.receive()) == 2
    finally:
        world.close()
