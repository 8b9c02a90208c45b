"""Events to the URLs that API keys name: signed, at least once, tried for days.

Every event of a tenant becomes one durable job per key (``recordings.jobs``); a cursor says how far events
were handed over, so that none is lost when this process dies. The job carries key id and ``seq`` only; what
the event says is read from the log when it is sent. The signature is that of Standard Webhooks: HMAC-SHA-256
with the API key's secret over ``id.timestamp.body``, in ``webhook-signature: v1,base64``. Deliveries may come
twice and out of order; ``id`` and ``seq`` tell.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time

import aiohttp

from mediaserver.events import Envelope, EventLog
from mediaserver.metrics import Metrics
from mediaserver.recordings.jobs import Jobs
from mediaserver.settings import Webhook
from mediaserver.store import Database, Store
from mediaserver.tokens import ApiKey

_log = logging.getLogger(__name__)
PAGE = 200


def signature(secret: str, identifier: str, timestamp: int, body: bytes) -> str:
    """Sign a delivery (Standard Webhooks, version v1)."""
    message = f"{identifier}.{timestamp}.".encode() + body
    digest = hmac.new(secret.encode(), message, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


class Webhooks:
    """Hands events over to delivery jobs, and delivers one when its job asks."""

    def __init__(
        self,
        keys: list[ApiKey],
        settings: Webhook,
        events: EventLog,
        store: Store,
        database: Database,
        metrics: Metrics,
    ) -> None:
        self._keys = {key.id: key for key in keys if key.webhook_url}
        self._settings = settings
        self._events = events
        self._store = store
        self._database = database
        self._metrics = metrics
        self._session: aiohttp.ClientSession | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, jobs: Jobs) -> None:
        """Begin to hand events over."""
        if self._keys:
            timeout = aiohttp.ClientTimeout(total=self._settings.timeout_s)
            self._session = aiohttp.ClientSession(timeout=timeout)
        self._tasks = [asyncio.create_task(self._hand_over(key, jobs)) for key in self._keys.values()]

    async def _hand_over(self, key: ApiKey, jobs: Jobs) -> None:
        done = await self._database.run(self._store.webhook_seq, key.id)
        follower = self._events.follow(lambda event: event["tenant"] == key.tenant)
        try:
            while True:
                for event in await self._events.after(key.tenant, done, limit=PAGE):
                    await jobs.deliver(key.id, event["seq"])
                    done = event["seq"]
                    await self._database.run(self._store.set_webhook_seq, key.id, done)
                newest = await follower.next()
                if newest is None:  # too slow to follow: what is there is read from the log
                    self._events.leave(follower)
                    follower = self._events.follow(lambda event: event["tenant"] == key.tenant)
        finally:
            self._events.leave(follower)

    async def deliver(self, key_id: str, seq: int) -> bool:
        """Send one event once; returns whether it was taken, or there is nobody to take it any more."""
        key = self._keys.get(key_id)
        found = await self._events.after(key.tenant, seq - 1, limit=1) if key is not None else []
        if key is None or not found or found[0]["seq"] != seq or self._session is None:
            return True
        taken = await self._send(self._session, key, found[0])
        self._metrics.webhooks.labels("taken" if taken else "failed").inc()
        return taken

    async def _send(self, session: aiohttp.ClientSession, key: ApiKey, event: Envelope) -> bool:
        body = json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()
        now = int(time.time())
        headers = {
            "Content-Type": "application/json",
            "webhook-id": event["id"],
            "webhook-timestamp": str(now),
            "webhook-signature": signature(key.secret, event["id"], now, body),
        }
        try:
            async with session.post(
                key.webhook_url, data=body, headers=headers, allow_redirects=False
            ) as answer:
                taken = 200 <= answer.status < 300
                if not taken:
                    _log.warning("the webhook of key %s answered %d", key.id, answer.status)
                return taken
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            _log.warning("the webhook of key %s is not reached: %s", key.id, type(error).__name__)
            return False

    async def close(self) -> None:
        """Stop handing over; running jobs go on in the next process."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
