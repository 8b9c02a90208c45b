"""Compile the native forwarder: plain C without Python.h, so that one library serves every Python.

The library's name carries a digest of its sources, flags and machine: what is found under that name fits, and
a changed source is compiled anew. It is looked for in the package (where a wheel brings it), then in the
user's cache directory, and is compiled at first use where neither has it and a C compiler is there.
``setup.py`` compiles it into wheels.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

SOURCES: Final = Path(__file__).resolve().parent / "csrc"
PACKAGE: Final = Path(__file__).resolve().parent
FLAGS: Final = ("-O2", "-std=gnu11", "-fPIC", "-shared", "-pthread", "-fno-semantic-interposition")
HARDENING: Final = ("-D_FORTIFY_SOURCE=2", "-fstack-protector-strong", "-Wl,-z,relro,-z,now")
_KERNEL_NAMES: Final = {"powerpc64le": "ppc64le"}
"""Machines that compilers and ``uname`` call differently."""


class BuildError(Exception):
    """The native forwarder is not there and could not be compiled; the text says why."""


def source_files() -> list[Path]:
    """Return the C files and headers, in order."""
    return sorted([*SOURCES.glob("*.c"), *SOURCES.glob("*.h")])


def this_target() -> str:
    """Return what this Python can load: the machine and its C library."""
    return f"{platform.machine()}-{platform.libc_ver()[0] or 'libc'}"


def compiler_target() -> str:
    """Return what the compiler compiles for, in the same words: another machine's, if it is a cross
    compiler. Raises ``BuildError``.
    """
    command = [*compiler(), "-dumpmachine"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{command[0]} does not say what it compiles for: {error}") from error
    # zig answers and fails all the same
    machine, dash, system = done.stdout.strip().partition("-")
    if not dash:
        raise BuildError(f"{command[0]} does not say what it compiles for: {done.stderr.strip()[-2000:]}")
    libc = "glibc" if system.rpartition("-")[2].startswith("gnu") else "libc"
    return f"{_KERNEL_NAMES.get(machine, machine)}-{libc}"


def library_name(
    flags: Sequence[str] = (*FLAGS, *HARDENING),
    sources: Sequence[Path] = (),
    name: str = "forwarder",
    target: str = "",
) -> str:
    """Name the library that these sources make with these flags for ``target``, or else for this machine."""
    digest = hashlib.sha256()
    for path in sources or source_files():
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(" ".join(flags).encode())
    return f"_{name}-{target or this_target()}-{digest.hexdigest()[:16]}.so"


def compiler(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the C compiler's command: ``CC`` if set, else the first of cc, gcc, clang. Raises
    ``BuildError``."""
    if environ.get("CC"):
        return shlex.split(environ["CC"])
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    raise BuildError("there is no C compiler (cc, gcc or clang)")


def compile_library(
    directory: Path,
    *,
    flags: Sequence[str] = (*FLAGS, *HARDENING),
    sources: Sequence[Path] = (),
    name: str = "forwarder",
    target: str = "",
) -> Path:
    """Compile into ``directory`` and return the library's path; without ``sources``, the forwarder. Raises
    ``BuildError`` with the compiler's words.

    ``target`` only names: what the compiler compiles for, if that is not this machine.

    The file appears whole or not at all, also when several processes compile at once.
    """
    command = compiler()
    sources = [*(sources or source_files())]
    path = directory / library_name(flags, sources, name, target)
    compiled = [str(source) for source in sources if source.suffix == ".c"]
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".build-") as scratch:
            made = Path(scratch) / path.name
            done = subprocess.run(
                [*command, *flags, "-o", str(made), *compiled],
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            if done.returncode:
                raise BuildError(f"{command[0]} failed: {done.stderr.strip()[-2000:]}")
            os.replace(made, path)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"cannot compile in {directory}: {error}") from error
    return path


def cache_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where the library goes when the package's directory cannot be written."""
    base = environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "shuanglu"


def find_or_compile() -> Path:
    """Return the library's path, compiling it first if need be. Raises ``BuildError``."""
    name = library_name()
    cache = cache_directory()
    packaged, cached = PACKAGE / name, cache / name
    if packaged.is_file():
        return packaged  # as trustworthy as the Python files beside it
    if cached.is_file() and _is_ours(cached):
        return cached
    return compile_package() if os.access(PACKAGE, os.W_OK) else compile_library(cache)


def compile_package() -> Path:
    """Compile into the package, remove what older sources made there for this machine. Raises
    ``BuildError``."""
    made = compile_library(PACKAGE)
    for old in PACKAGE.glob(f"_forwarder-{this_target()}-*.so"):
        if old != made:
            old.unlink(missing_ok=True)
    return made


def _is_ours(path: Path) -> bool:
    """Refuse a library that somebody else could have put there."""
    status = path.stat()
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022
