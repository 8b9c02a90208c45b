"""The reference KMS in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recorder.keys import KmsAddress


class Kms:
    """A reference KMS that can be stopped, started again on the same port, and told to fail."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        self._port = "0"
        self.url = ""

    def start(self) -> None:
        """Start it; returns when it answers."""
        self._process = subprocess.Popen(
            [
                sys.executable,
                *("-m", "recorder.keys.reference_kms", str(self.directory), "--port", self._port),
                *self._options,
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("ready "), line
        self.url = line.split()[1]
        self._port = self.url.rsplit(":", 1)[1]

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def fail(self, **faults: Any) -> None:
        """Let it fail from now on; without arguments, no more."""
        path = self.directory / "faults.json"
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(faults))
        draft.replace(path)

    def address(self, token: str = "server", **changes: Any) -> KmsAddress:
        """Give its address with one of its tokens."""
        return KmsAddress(url=self.url, token_file=self.directory / f"{token}.token", **changes)

    def settings(self, token: str = "server", **changes: Any) -> dict[str, Any]:
        """Give the section ``crypto.kms`` of a server that uses it."""
        return {"url": self.url, "token_file": str(self.directory / f"{token}.token"), **changes}

    def audit(self) -> list[dict[str, Any]]:
        """Give the lines of its audit."""
        path = self.directory / "audit.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@contextmanager
def reference_kms(directory: Path, *options: str) -> Iterator[Kms]:
    """Run a reference KMS."""
    kms = Kms(directory, *options)
    kms.start()
    try:
        yield kms
    finally:
        kms.stop()
