"""Run the compositor for one recording: a child process, started again when it dies.

The child follows the journal (``python -m compositor.job``: JSON lines on standard input and output). Keys
reach it through standard input only. It runs at low priority and abandons its work when its standard input
closes, so it never outlives this process unnoticed; every start writes a new file.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from mediaserver.config import for_children

_log = logging.getLogger(__name__)
COMMAND = (sys.executable, "-m", "compositor.job")
LINE_LIMIT = 16 << 20
KILL_AFTER_S = 5.0
SAYS_EVERY_S = 2.0
"""A child that keeps up says how far it is at least this often."""
HORIZON_MS = 2000.0
"""A composite is made so long after the call: until then what arrives may still change it."""
SILENT_S = 60.0
"""A child that says nothing and uses no CPU for this long hangs."""

OnEvent = Callable[[str, dict[str, Any]], Awaitable[None]]


class ComposingFailed(Exception):
    """The compositor gave up; ``code`` is its own or ``compositor_died``."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class Composition:
    """The composing of one recording, over as many child processes as it needs."""

    def __init__(
        self,
        recording: str,
        request: dict[str, Any],
        *,
        attempts: int,
        on_event: OnEvent,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.recording = recording
        self.progress: float | None = None
        """0–1 of what there is to compose; None until the child says something."""
        self._lag_s: float | None = None
        self._told_s = 0.0
        self.attempt = 0
        self.pid: int | None = None
        self._request = request
        self._command = command
        self._attempts = attempts
        self._on_event = on_event
        self._ended = not request["live"]
        self._input: asyncio.StreamWriter | None = None
        self._task = asyncio.create_task(self._run(), name=f"compose {recording}")

    def __repr__(self) -> str:
        return f"Composition({self.recording}, attempt {self.attempt})"

    @property
    def finished(self) -> bool:
        return self._task.done()

    @property
    def live(self) -> bool:
        """It follows a call that goes on."""
        return not self._ended

    @property
    def lag_s(self) -> float | None:
        """How far it is behind the call; None until the child says something. Silence adds to it."""
        if self._lag_s is None:
            return None
        silent_s = time.monotonic() - self._told_s - SAYS_EVERY_S if self.live else 0.0
        return round(self._lag_s + max(0.0, silent_s), 2)

    def at_end(self, function: Callable[[], None]) -> None:
        """Have a function called when it has ended, however."""
        self._task.add_done_callback(lambda _: function())

    def journal_ended(self) -> None:
        """Tell that nothing more will come into the journal."""
        if not self._ended:
            self._ended = True
            self._tell({"ended": True})

    async def result(self) -> dict[str, Any]:
        """Wait for the ``done`` object; raises ComposingFailed."""
        return await asyncio.shield(self._task)

    async def close(self) -> None:
        """End the child without its work."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> dict[str, Any]:
        while True:
            self.attempt += 1
            try:
                return await self._once()
            except ComposingFailed as error:
                _log.warning(
                    "composing of %s failed, attempt %d of %d: %s",
                    self.recording,
                    self.attempt,
                    self._attempts,
                    error,
                )
                if self.attempt >= self._attempts:
                    raise
            await asyncio.sleep(min(10.0, 0.25 * 2**self.attempt))

    async def _once(self) -> dict[str, Any]:
        child = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_LIMIT,
            env=child_environment(),
        )
        assert child.stdin is not None
        assert child.stdout is not None
        self.pid = child.pid
        self._input = child.stdin
        try:
            self._tell({**self._request, "live": not self._ended})
            outcome = await self._listen(child.stdout, child.pid)
        finally:
            self._input = None
            self.pid = None
            child.stdin.close()
            await _end(child)
        if outcome is None:
            raise ComposingFailed("compositor_died", f"the compositor ended with status {child.returncode}")
        if "failed" in outcome:
            failed = outcome["failed"]
            raise ComposingFailed(str(failed.get("code", "failed")), str(failed.get("detail", "")))
        self.progress = 1.0
        done: dict[str, Any] = outcome["done"]
        return done

    async def _listen(self, output: asyncio.StreamReader, pid: int) -> dict[str, Any] | None:
        """Read the child's lines; returns its last word, None if it died without one.

        Raises ComposingFailed when it hangs.
        """
        outcome: dict[str, Any] | None = None
        ticks = -1
        while True:
            try:
                line = await asyncio.wait_for(output.readline(), SILENT_S)
            except TimeoutError:
                before, ticks = ticks, _cpu_ticks(pid)
                if ticks == before:
                    raise ComposingFailed(
                        "compositor_hung", f"silent and idle for {SILENT_S:.0f} s"
                    ) from None
                continue
            if not line:
                return outcome
            try:
                message = json.loads(line)
            except ValueError:
                _log.warning("the compositor of %s printed a line that is not JSON", self.recording)
                continue
            if "progress" in message:
                of = float(message["progress"].get("of_ms") or 0)
                composed = float(message["progress"].get("composed_ms") or 0)
                self.progress = min(1.0, composed / of) if of > 0 else 0.0
                self._lag_s = max(0.0, of - composed - HORIZON_MS) / 1000
                self._told_s = time.monotonic()
            elif "event" in message:
                await self._on_event(str(message["event"]["type"]), dict(message["event"].get("data", {})))
            elif "done" in message or "failed" in message:
                outcome = message

    def _tell(self, message: dict[str, Any]) -> None:
        if self._input is not None and not self._input.is_closing():
            self._input.write(json.dumps(message).encode() + b"\n")


def child_environment() -> dict[str, str]:
    """Give the child our environment without our settings: secrets may be among them, and it decodes what
    strangers sent.
    """
    return {**for_children(os.environ), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _cpu_ticks(pid: int) -> int:
    """Read how much CPU time a process has used, in clock ticks (proc(5)); -1 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return -1
    return int(fields[11]) + int(fields[12])


async def _end(child: asyncio.subprocess.Process) -> None:
    """Make sure the child is gone: its input is closed, then it is killed."""
    try:
        await asyncio.wait_for(child.wait(), KILL_AFTER_S)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.wait(), KILL_AFTER_S)
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        raise
