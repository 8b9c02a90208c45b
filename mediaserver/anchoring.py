"""Anchors of the audit log on their way to whoever keeps them outside: each a file until it is taken."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from pathlib import Path

import aiohttp

from mediaserver.recordings.jobs import Jobs
from mediaserver.secrets import SecretsError
from mediaserver.settings import Settings
from mediaserver.tokens import MIN_SECRET_BYTES
from mediaserver.webhooks import signature
from recorder.atomic import create_file

_log = logging.getLogger(__name__)
TASK = "audit-anchor"
TIMEOUT_S = 20.0
_NAME = re.compile(r"^[0-9a-f]{64}$")


class Outbox:
    """Posts signed anchor pages to one URL, at least once, until it takes them."""

    def __init__(self, directory: Path, url: str, secret: str | None, jobs: Jobs) -> None:
        """``secret`` signs deliveries as Standard Webhooks do; None: only the page's own signature does."""
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._url = url
        self._secret = secret
        self._jobs = jobs
        jobs.handle(TASK, self.deliver)

    async def start(self) -> None:
        """Take up what an earlier process could not deliver. Call it when the jobs run."""
        for path in sorted(self._directory.glob("*.json")):
            await self._jobs.task(TASK, path.stem)

    async def post(self, digest: str, page: bytes) -> None:
        """Hand a page over; returns when it is on disk. If the server closes, the next start delivers it."""
        with contextlib.suppress(FileExistsError):
            await asyncio.to_thread(create_file, self._directory / f"{digest}.json", page)
        try:
            await self._jobs.task(TASK, digest)
        except RuntimeError as error:
            _log.info("anchor %s is posted by the next start: %s", digest[:16], error)

    async def deliver(self, digest: str) -> None:
        """Try to deliver a page. Raises whatever kept it from being taken."""
        path = self._directory / f"{digest}.json"
        if not _NAME.match(digest) or not path.exists():
            return
        page = await asyncio.to_thread(path.read_bytes)
        now = int(time.time())
        headers = {"Content-Type": "application/json", "webhook-id": digest, "webhook-timestamp": str(now)}
        if self._secret is not None:
            headers["webhook-signature"] = signature(self._secret, digest, now, page)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(self._url, data=page, headers=headers, allow_redirects=False) as answer,
        ):
            if not 200 <= answer.status < 300:
                raise RuntimeError(f"the keeper of anchors answered {answer.status}")
        await asyncio.to_thread(path.unlink, True)


def read_anchor_secret(settings: Settings) -> str | None:
    """Read the secret that signs deliveries; raise SecretsError naming the file that is missing or empty."""
    path = settings.audit.anchor_secret_file
    if path is None:
        return None
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SecretsError(f"audit.anchor_secret_file: {error}") from error
    if len(secret.encode()) < MIN_SECRET_BYTES:
        raise SecretsError(f"audit.anchor_secret_file: {path} is shorter than {MIN_SECRET_BYTES} bytes")
    return secret
