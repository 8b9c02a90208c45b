"""Run the forwarder's conformance suite on aarch64: ``make aarch64``, or
``python -m tests.forwarder.aarch64 [PYTEST ARGUMENTS]`` where the tools are installed.

A cross compiler makes the native forwarder; qemu's user mode runs Debian's arm64 CPython with PyPI's aarch64
wheels, of the versions that this environment has, on this machine's kernel. Everything fetched stays in
``build/aarch64`` and is used again; apt works with a state of its own there, so the machine's packages are
not touched and no foreign architecture is added to them. No root is needed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

from mediaserver.forwarder import build

ROOT: Final = Path(__file__).resolve().parents[2]
SUITE: Final = "tests/forwarder"
PLACE: Final = ROOT / "build" / "aarch64"
COMPILER: Final = "aarch64-linux-gnu-gcc"
TARGET: Final = "aarch64-glibc"
EMULATORS: Final = ("qemu-aarch64", "qemu-aarch64-static")
PYTHON: Final = "3.11"
DEBIAN: Final = (f"python{PYTHON}-minimal", f"libpython{PYTHON}-stdlib")
PLATFORMS: Final = ("manylinux2014_aarch64", "manylinux_2_28_aarch64")
PYPI: Final = ("cffi", "cryptography", "pylibsrtp", "pytest", "pytest-asyncio", "pytest-timeout")
"""What the suite imports; what else those need comes with them."""

NOT_RUN: Final = {
    f"{SUITE}/test_native.py::test_conformance_under_sanitizers": (
        "starts Python anew, which the kernel cannot do with an aarch64 program, and under a sanitizer, "
        "which does not work under qemu; runs natively"
    ),
    f"{SUITE}/test_native.py::test_a_short_fuzz": (
        "starts a sanitized aarch64 program: as above; the fuzzer runs natively"
    ),
    f"{SUITE}/test_native.py::test_both_forwarders_say_the_same[2]": (
        "here a switch begins with a cached keyframe unless that is older than half a second, and so slow "
        "is qemu at times; natively, too, it differs with 80 ms between its steps. The other seeds do not"
    ),
}
"""What of the suite is left out under qemu, by name, and why."""


class NotPossible(Exception):
    """The suite cannot be run here; the text says what is missing."""


def run(command: Sequence[str], **environ: str) -> None:
    """Run a command that must succeed. Raises ``NotPossible`` with its last words."""
    done = subprocess.run(
        command, env={**os.environ, **environ}, capture_output=True, text=True, timeout=900, check=False
    )
    if done.returncode:
        raise NotPossible(
            f"{shlex.join(command[:3])} … failed: {(done.stdout + done.stderr).strip()[-2000:]}"
        )


def tools() -> str:
    """Return the emulator. Raises ``NotPossible``, naming every program that is missing."""
    emulator = next((found for name in EMULATORS if (found := shutil.which(name))), "")
    missing = [name for name in (COMPILER, "apt-get", "dpkg-deb") if not shutil.which(name)]
    if not emulator:
        missing.append(EMULATORS[0])
    if missing:
        raise NotPossible(f"not installed: {', '.join(missing)}; `make aarch64` installs them on Debian")
    return emulator


def once(target: Path, wanted: str, make: Callable[[Path], None]) -> Path:
    """Make a directory if it is not there as ``wanted``; it appears whole or not at all."""
    stamp = target / ".wanted"
    if stamp.is_file() and stamp.read_text() == wanted:
        return target
    fresh = target.with_name(f"{target.name}.new")
    for old in (fresh, target):
        shutil.rmtree(old, ignore_errors=True)
    fresh.mkdir(parents=True)
    make(fresh)
    (fresh / stamp.name).write_text(wanted)
    fresh.rename(target)
    return target


def make_sysroot(target: Path) -> None:
    """Fetch Debian's arm64 Python and what it depends on, by this machine's sources, and unpack it."""
    state = PLACE / "apt"
    for name in ("lists/partial", "archives/partial"):
        (state / name).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()  # nothing is installed there
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures::": "arm64",
        "Acquire::Languages": "none",
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "Dir::Cache::archives": state / "archives",
    }
    apt = ["apt-get", "-qq", "-y", *(f"-o{name}={value}" for name, value in options.items())]
    run([*apt, "update"])
    run([*apt, "install", "--download-only", "--no-install-recommends", *DEBIAN])
    for package in sorted((state / "archives").glob("*.deb")):
        run(["dpkg-deb", "-x", str(package), str(target)])
    shutil.rmtree(state)


def make_site(pins: Sequence[str], target: Path) -> None:
    """Install PyPI's aarch64 wheels into a directory."""
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target)),
            *("--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}", *platforms, *pins),
        ]
    )


def main(arguments: Sequence[str]) -> int:
    """Prepare what is not there, run the suite, say what was left out; return pytest's exit code."""
    emulator = tools()
    print(f"{SUITE} on aarch64, in {PLACE}", flush=True)
    sysroot = once(PLACE / "sysroot", " ".join(DEBIAN), make_sysroot)
    pins = [f"{name}=={version(name)}" for name in PYPI]
    site = once(PLACE / "site", " ".join(pins), lambda target: make_site(pins, target))
    environ = {
        **os.environ,
        "CC": COMPILER,
        "PYTHONPATH": f"{site}:{ROOT}",
        "PYTHONPYCACHEPREFIX": str(PLACE / "pycache"),
        "XDG_CACHE_HOME": str(PLACE),
    }
    os.environ["CC"] = COMPILER
    cache = build.cache_directory(environ)
    library = cache / build.library_name(target=TARGET)
    if not library.is_file():
        shutil.rmtree(cache, ignore_errors=True)
        build.compile_library(cache, target=TARGET)
    python = [emulator, "-L", str(sysroot), str(sysroot / f"usr/bin/python{PYTHON}")]
    facts = "import platform, sys; print(platform.machine(), 'CPython', sys.version.split()[0])"
    subprocess.run([*python, "-c", facts], env=environ, check=True)
    print(f"library {library.name}; {', '.join(pins)}", flush=True)
    left_out = [f"--deselect={name}" for name in NOT_RUN]
    suite = [] if any(argument.startswith("tests/") for argument in arguments) else [SUITE]
    began = time.monotonic()
    done = subprocess.run(
        [*python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *left_out, *arguments, *suite],
        cwd=ROOT,
        env=environ,
        check=False,
    )
    print(f"{time.monotonic() - began:.0f} s under {Path(emulator).name}. Not run there:")
    for name, reason in NOT_RUN.items():
        print(f"  {name}: {reason}")
    return done.returncode


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except (NotPossible, build.BuildError) as error:
        code = 2
        print(f"aarch64: {error}", file=sys.stderr)
    sys.exit(code)
