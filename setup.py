"""Compile the native forwarder into wheels, and in place for editable installs.

Everything else is in pyproject.toml. With a cross compiler in ``CC`` library and wheel are for its machine.
Without a C compiler the package is installed without it, with a warning: the server then compiles at first
use, or runs its Python twin and says so.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

FORWARDER = Path("mediaserver") / "forwarder"

spec = importlib.util.spec_from_file_location("forwarder_build", FORWARDER / "build.py")
assert spec is not None
assert spec.loader is not None
forwarder_build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(forwarder_build)


class BuildNative(build_py):
    """Copy the Python files, then compile."""

    def run(self) -> None:
        """Run the command."""
        super().run()
        try:
            if self.editable_mode:
                forwarder_build.compile_package()
            else:
                forwarder_build.compile_library(
                    Path(self.build_lib) / FORWARDER, target=forwarder_build.compiler_target()
                )
        except forwarder_build.BuildError as error:
            print(f"warning: the native forwarder is not built: {error}", file=sys.stderr)


class PlatformWheel(bdist_wheel):
    """One wheel for all Pythons of a platform: the library needs no Python.h."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the wheel's tag: ``--plat-name``'s, else the machine's that the compiler compiles for."""
        platform = super().get_tag()[2]
        if not self.plat_name_supplied:
            with contextlib.suppress(forwarder_build.BuildError):
                if (target := forwarder_build.compiler_target()) != forwarder_build.this_target():
                    platform = f"linux_{target.partition('-')[0]}"
        return "py3", "none", platform


class NativeDistribution(Distribution):
    """A distribution whose wheels belong to a platform."""

    def has_ext_modules(self) -> bool:
        """Say that there is compiled code."""
        return True


setup(cmdclass={"build_py": BuildNative, "bdist_wheel": PlatformWheel}, distclass=NativeDistribution)
