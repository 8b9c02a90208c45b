"""Give a package for the court to whoever asks over HTTP: made while it is sent, never on this disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as WaitedTooLong
from typing import Any

from mediaserver.errors import Refused
from mediaserver.recordings.evidence import EvidenceProblem
from mediaserver.recordings.lifecycle import Recordings
from mediaserver.recordings.states import require_ended, require_kept
from recorder.catalog import Entry
from recorder.court.parcel import streamed
from recorder.export import ExportError, Sealed, export_into
from recorder.gm.sm2 import Sm2Error
from recorder.manifest import ManifestError
from recorder.sealed import SealedError
from recorder.statements import StatementError

AT_ONCE = 2
"""Exports at a time; each keeps a thread busy as long as its receiver reads."""
STALLED_S = 60.0
"""A receiver that takes nothing for so long is left."""
BLOCK = 256 * 1024

Send = Callable[[bytes], Coroutine[Any, Any, None]]


class ReceiverGone(Exception):
    """Whoever asked reads no more; the statement that records the export stands."""


class Exporting:
    """Exports of this process."""

    def __init__(self, recordings: Recordings) -> None:
        self._recordings = recordings
        self._turn = asyncio.Semaphore(AT_ONCE)

    async def export(
        self,
        entry: Entry,
        send: Send,
        *,
        actor: str,
        operator: str,
        reason: str,
        names: list[str] | None,
        sealed: Sealed,
        report: bool,
    ) -> None:
        """Send a recording's package as a zip.

        What refuses the export is raised before anything is sent: Refused, EvidenceProblem, KeyProblem,
        SealedOnly, SiteError. Later: EvidenceProblem where a file is not what was signed, ReceiverGone.
        """
        require_ended(entry)
        require_kept(entry)
        recordings = self._recordings
        have = {file.name for file in entry.files}
        if names is not None and (unknown := sorted(set(names) - have)):
            raise Refused(
                "file_not_found", f"no file {', '.join(unknown)}; there is: {', '.join(sorted(have))}"
            )
        async with self._turn, recordings.uploads.freeing.using(entry):
            key = await recordings.data_key(entry, purpose=f"export: {reason}", actor=actor)
            await recordings.uploads.freeing.restore(entry)
            directory, signer = recordings.directory(entry), recordings.provider.signer()
            loop = asyncio.get_running_loop()

            def put(data: bytes) -> None:
                sending = asyncio.run_coroutine_threadsafe(send(data), loop)
                try:
                    sending.result(STALLED_S)
                except (ConnectionError, WaitedTooLong, CancelledError) as error:
                    sending.cancel()
                    raise ReceiverGone(f"{type(error).__name__} {error}".strip()) from error

            def make() -> None:
                buffered = _Buffered(put)
                with streamed(buffered.put, entry.id) as package:
                    export_into(
                        package,
                        directory,
                        data_key=key,
                        signer=signer,
                        operator=operator or actor,
                        reason=reason,
                        to=f"{actor}, over HTTP",
                        names=names,
                        sealed=sealed,
                        report=report,
                    )
                buffered.flush()

            try:
                await asyncio.to_thread(make)
            except (ExportError, StatementError, ManifestError, SealedError, Sm2Error, OSError) as error:
                raise EvidenceProblem(str(error)) from error
            finally:
                await recordings.uploads.changed(entry)


class _Buffered:
    """Gathers what a zip writes in small pieces; one hand-over to the event loop costs some 0.1 ms."""

    def __init__(self, put: Callable[[bytes], None]) -> None:
        self._put = put
        self._held = bytearray()
        self._over = False

    def put(self, data: bytes) -> None:
        self._held += data
        if len(self._held) >= BLOCK:
            self.flush()

    def flush(self) -> None:
        data, self._held = bytes(self._held), bytearray()
        if not data or self._over:
            return
        self._over = True  # unless it goes well: a zip that is given up still writes an entry's end
        self._put(data)
        self._over = False
