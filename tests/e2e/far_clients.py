"""What the tests of other people's clients share: certificates, a room for one customer, its recording."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.e2e.api import Api
from tests.media.barcode import Box, read
from tests.media.film import Film, read_film
from tests.media.pictures import Party
from tests.media.sounds import RATE, beep_onsets

WHOLE = Box(0, 0, 1280, 720)
ALONE: dict[str, Any] = {
    "layout": {"name": "single", "slots": [{"role": "customer"}]},
    "static_fps": None,
    "overlays": [],
}
"""The customer fills the canvas."""


def certificate(directory: Path, curve: ec.EllipticCurve) -> tuple[Path, Path]:
    """Write a self-signed certificate and its key on a curve; returns both paths."""
    key = ec.generate_private_key(curve)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "publisher")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .sign(key, hashes.SHA256())
    )
    paths = directory / f"{curve.name}.pem", directory / f"{curve.name}.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return paths


@dataclass
class Recorded:
    """A finished recording and its film; filled when the block of ``recorded`` has ended."""

    shown: dict[str, Any]
    film: Film

    def codes(self, party: Party, tile: Box = WHOLE, fit: str = "contain") -> list[int]:
        """Return the times (ms) in the bar codes of a party's pictures, in order, each once."""
        box = tile.placed(640, 360, fit)
        found: list[int] = []
        for _, luma in self.film.pictures():
            stamp = read(luma, box)
            if stamp and stamp.party == party.number and stamp.time_ms not in found[-1:]:
                found.append(stamp.time_ms)
        return found

    def tone_share(self, tone_hz: float) -> float:
        """Return in what share of the film, by tenths of a second, a tone is heard."""
        at = np.arange(len(self.film.sound)) / RATE
        mixed = self.film.sound * np.exp(-2j * np.pi * tone_hz * at)
        blocks = mixed[: mixed.size // (RATE // 10) * (RATE // 10)].reshape(-1, RATE // 10)
        return float((np.abs(blocks.mean(axis=1)) * 2 > 0.02).mean())

    def beeps(self, party: Party) -> list[float]:
        """Return the times (s) of a party's beeps."""
        return beep_onsets(self.film.sound, party.tone_hz)


@asynccontextmanager
async def recorded(
    api: Api, room: str, template: dict[str, Any] | None = None
) -> AsyncIterator[list[Recorded]]:
    """Record while the block runs; the list has the result afterwards."""
    results: list[Recorded] = []
    recording = await api.record(room, f"{room}-1", "both", template=template or ALONE)
    yield results
    await api.stop(recording["id"])
    shown, _ = await api.composed(recording["id"])
    answer = await api.file(recording["id"], "composite.mp4")
    assert answer.status == 200, answer.body[:300]
    results.append(Recorded(shown, read_film(answer.body)))
