"""A signing key across a network, asked by somebody whom others wait for."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

from recorder.journal.commit import SIGN_PATIENCE_S
from recorder.signed import Signer


class PatientSigner:
    """Asks a signer in a thread of its own, and waits ``SIGN_PATIENCE_S`` at most.

    Once it was too slow nobody waits for it until an answer came in time. For one caller at a time.
    """

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="audit-sign")
        self._late: Future[tuple[bytes, float]] | None = None

    @property
    def certificate_pem(self) -> str:
        """Certificate of the signing key."""
        return self._signer.certificate_pem

    def sign(self, message: bytes) -> bytes:
        """Return the DER signature over ``message``. Raises TimeoutError, and whatever the signer raises."""
        if self._late is not None:
            if not self._late.done():
                raise TimeoutError("the signature before this one is still awaited")
            if not _came_in_time(self._late):
                self._late = self._pool.submit(self._timed, message)
                raise TimeoutError("the signature before this one came too late, or never")
            self._late = None
        asked = self._pool.submit(self._timed, message)
        try:
            return asked.result(SIGN_PATIENCE_S)[0]
        except TimeoutError:
            self._late = asked
            raise TimeoutError(f"no signature within {SIGN_PATIENCE_S:g} s") from None

    def close(self) -> None:
        """Ask no more. What is asked just now is left alone."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _timed(self, message: bytes) -> tuple[bytes, float]:
        began = time.monotonic()
        signature = self._signer.sign(message)
        return signature, time.monotonic() - began


def _came_in_time(asked: Future[tuple[bytes, float]]) -> bool:
    return asked.exception() is None and asked.result()[1] < SIGN_PATIENCE_S
