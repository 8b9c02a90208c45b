"""The control process's own tables, and the one thread that all database work runs in.

What is here is not in the recordings and so cannot be rebuilt from them: the event log, answers kept for
Idempotency-Key, invitations, revoked tokens, rooms and their seats. Columns that may name a person are
sealed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import alembic.command
import alembic.config
import sqlalchemy as sa

from recorder.catalog import durable_sqlite
from recorder.fieldkey import FieldKey

P = ParamSpec("P")
T = TypeVar("T")

metadata = sa.MetaData()

events = sa.Table(
    "events",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("type", sa.String(64), nullable=False),
    sa.Column("room", sa.String(256)),
    sa.Column("recording", sa.String(36)),
    sa.Column("at", sa.String(24)),
    sa.Column("actor_key", sa.String(64)),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    sa.Index("events_by_tenant", "tenant", "seq"),
    sa.Index("events_by_actor", "actor_key", "seq"),
    sa.Index("events_by_recording", "recording", "seq"),
    sqlite_autoincrement=True,
)
answers = sa.Table(
    "answers",
    metadata,
    sa.Column("scope", sa.String(64), primary_key=True),
    sa.Column("request", sa.String(64), nullable=False),
    sa.Column("made_s", sa.BigInteger, nullable=False),
    sa.Column("sealed", sa.LargeBinary),
)
invites = sa.Table(
    "invites",
    metadata,
    sa.Column("selector", sa.String(64), primary_key=True),
    sa.Column("verifier", sa.String(64), nullable=False),
    sa.Column("expires_s", sa.BigInteger, nullable=False),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
)
issued = sa.Table(
    "issued_tokens",
    metadata,
    sa.Column("token_id", sa.String(256), primary_key=True),
    sa.Column("tenant", sa.String(64), primary_key=True),
    sa.Column("participant", sa.String(64), nullable=False),
    sa.Column("expires_s", sa.BigInteger, nullable=False),
    sa.Column("revoked", sa.Boolean, nullable=False),
    sa.Index("issued_by_participant", "tenant", "participant"),
)
rooms = sa.Table(
    "rooms",
    metadata,
    sa.Column("tenant", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(256), primary_key=True),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
)
webhooks = sa.Table(
    "webhooks",
    metadata,
    sa.Column("key_id", sa.String(64), primary_key=True),
    sa.Column("seq", sa.BigInteger, nullable=False),
)

ANSWERS_KEPT_S = 24 * 3600
SWEEP_S = 60
"""Between two looks for expired tokens."""

# Statements of every join, put together once: that costs more than running them.
_KNOWN_TOKEN = sa.select(issued.c.token_id).where(
    issued.c.tenant == sa.bindparam("of"), issued.c.token_id == sa.bindparam("id")
)
_NEW_TOKEN = issued.insert()
_UPDATE_ROOM = (
    rooms.update()
    .where(rooms.c.tenant == sa.bindparam("of"), rooms.c.name == sa.bindparam("called"))
    .values(sealed=sa.bindparam("seal"))
)
_NEW_ROOM = rooms.insert()


class Database:
    """Runs blocking database calls one after another in a single thread, beside the event loop."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="database")

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``call`` in the database thread, after all calls handed over before it."""
        return await asyncio.wrap_future(self._thread.submit(call, *args, **kwargs))

    def close(self) -> None:
        """Finish what was handed over and end the thread."""
        self._thread.shutdown(wait=True)


def migrate(url: str) -> None:
    """Bring the server's tables to this release's schema (Alembic)."""
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["url"] = url
    alembic.command.upgrade(config, "head")


class Store:
    """The server's tables. Calls block: hand them to ``Database.run``."""

    def __init__(self, url: str, key: FieldKey) -> None:
        migrate(url)
        self.key = key
        self._swept_s = 0
        self.engine = sa.create_engine(url)
        if self.engine.dialect.name == "sqlite":
            sa.event.listen(self.engine, "connect", durable_sqlite)

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()

    # Events

    def last_seq(self) -> int:
        """Give the ``seq`` of the newest event; 0 if there is none."""
        with self.engine.connect() as connection:
            return int(connection.scalar(sa.select(sa.func.max(events.c.seq))) or 0)

    def raise_seq(self, seq: int) -> None:
        """Let the next event's ``seq`` be larger than ``seq``, in a database that was lost or set back."""
        with self.engine.begin() as connection:
            if self.engine.dialect.name == "sqlite":
                connection.execute(sa.text("DELETE FROM sqlite_sequence WHERE name = 'events'"))
                statement = "INSERT INTO sqlite_sequence (name, seq) VALUES ('events', :seq)"
            else:
                statement = "SELECT setval(pg_get_serial_sequence('events', 'seq'), :seq)"
            connection.execute(sa.text(statement), {"seq": seq})

    # Answers kept for Idempotency-Key

    def claim_answer(self, scope: str, request: str) -> tuple[str, Any] | None:
        """Claim a key for a request, or give what was stored under it.

        Returns None when the caller is the first, else (digest of the first request, its answer or None while
        the first is still at work).
        """
        now = int(time.time())
        with self.engine.begin() as connection:
            connection.execute(answers.delete().where(answers.c.made_s < now - ANSWERS_KEPT_S))
            row = connection.execute(sa.select(answers).where(answers.c.scope == scope)).mappings().first()
            if row is None:
                connection.execute(answers.insert().values(scope=scope, request=request, made_s=now))
                return None
        kept = None if row["sealed"] is None else self.key.unseal(row["sealed"], "answers.sealed")
        return row["request"], kept

    def keep_answer(self, scope: str, answer: Any) -> None:
        """Store the answer of a claimed key."""
        sealed = self.key.seal(answer, "answers.sealed")
        with self.engine.begin() as connection:
            connection.execute(answers.update().where(answers.c.scope == scope).values(sealed=sealed))

    def drop_answer(self, scope: str) -> None:
        """Give a claimed key free, because its request failed on our side and may be tried again."""
        with self.engine.begin() as connection:
            connection.execute(answers.delete().where(answers.c.scope == scope))

    def drop_unfinished_answers(self) -> None:
        """Give free the keys whose requests died with the last control process."""
        with self.engine.begin() as connection:
            connection.execute(answers.delete().where(answers.c.sealed.is_(None)))

    # Tokens

    def note_token(self, tenant: str, token_id: str, room: str, identity: str, expires_s: int) -> None:
        """Remember that a token was given to, or used by, a participant."""
        row = {
            "token_id": token_id,
            "tenant": tenant,
            "participant": self._participant(room, identity),
            "expires_s": expires_s,
            "revoked": False,
        }
        now = int(time.time())
        with self.engine.begin() as connection:
            if now - self._swept_s >= SWEEP_S:
                self._swept_s = now
                connection.execute(issued.delete().where(issued.c.expires_s < now - 3600))
            if connection.execute(_KNOWN_TOKEN, {"of": tenant, "id": token_id}).first() is None:
                connection.execute(_NEW_TOKEN, row)

    def revoke_participant(self, tenant: str, room: str, identity: str) -> list[str]:
        """Revoke every token a participant is known to have; returns their ids."""
        mine = (issued.c.tenant == tenant, issued.c.participant == self._participant(room, identity))
        with self.engine.begin() as connection:
            connection.execute(issued.update().where(*mine).values(revoked=True))
            return [row.token_id for row in connection.execute(sa.select(issued.c.token_id).where(*mine))]

    def revoked_tokens(self) -> set[tuple[str, str]]:
        """Give (tenant, token id) of every revoked token that has not expired."""
        query = sa.select(issued.c.tenant, issued.c.token_id).where(issued.c.revoked)
        with self.engine.connect() as connection:
            return {(row.tenant, row.token_id) for row in connection.execute(query)}

    def _participant(self, room: str, identity: str) -> str:
        return self.key.digest(f"{room}\0{identity}", "issued_tokens.participant")

    # Webhooks

    def webhook_seq(self, key_id: str) -> int:
        """Give the last event handed over for delivery to an API key's URL; at first, the newest there is."""
        with self.engine.begin() as connection:
            known = connection.scalar(sa.select(webhooks.c.seq).where(webhooks.c.key_id == key_id))
            if known is None:
                known = connection.scalar(sa.select(sa.func.max(events.c.seq))) or 0
                connection.execute(webhooks.insert().values(key_id=key_id, seq=known))
        return int(known)

    def set_webhook_seq(self, key_id: str, seq: int) -> None:
        """Note that everything up to ``seq`` is handed over."""
        with self.engine.begin() as connection:
            connection.execute(webhooks.update().where(webhooks.c.key_id == key_id).values(seq=seq))

    # Rooms

    def put_room(self, tenant: str, name: str, state: dict[str, Any]) -> None:
        """Write a room's settings and seats."""
        sealed = self.key.seal(state, "rooms.sealed")
        mine = {"of": tenant, "called": name}
        with self.engine.begin() as connection:
            if connection.execute(_UPDATE_ROOM, {**mine, "seal": sealed}).rowcount == 0:
                connection.execute(_NEW_ROOM, {"tenant": tenant, "name": name, "sealed": sealed})

    def drop_room(self, tenant: str, name: str) -> None:
        """Forget a closed room."""
        with self.engine.begin() as connection:
            connection.execute(rooms.delete().where(rooms.c.tenant == tenant, rooms.c.name == name))

    def all_rooms(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Give (tenant, name, state) of every room."""
        with self.engine.connect() as connection:
            rows = list(connection.execute(sa.select(rooms)).mappings())
        return [(row["tenant"], row["name"], self.key.unseal(row["sealed"], "rooms.sealed")) for row in rows]
