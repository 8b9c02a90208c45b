"""The audit log over HTTP: search it, check it, fetch its anchors. For servers alone, each in its tenant."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from aiohttp import web

from mediaserver.api import models
from mediaserver.api.problems import Problem
from mediaserver.api.routing import Access, Call, Query, Route, answer
from mediaserver.events import Wanted
from recorder.clock import rfc3339

PAGE = 100
MAX_PAGE = 1000
MAX_TEXT = 256
DAY_NS = 86_400 * 10**9


async def search(call: Call) -> web.Response:
    """Find entries of the asker's tenant, oldest first."""
    query = _query(call, "after", "type", "recording", "actor", "from", "to", "limit")
    after, limit = _number(query, "after", 0, 1 << 62), _number(query, "limit", PAGE, MAX_PAGE)
    wanted = Wanted(
        _tenants(call),
        kind=query.get("type", ""),
        recording=query.get("recording", ""),
        actor=query.get("actor", ""),
        begin=_time(query, "from"),
        end=_time(query, "to"),
    )
    found = await call.control.events.search(wanted, after, max(1, limit))
    entries = [
        models.AuditEntry(**one.event, address=one.origin.address, purpose=one.origin.purpose)
        for one in found
    ]
    call.control.events.put(
        "audit.searched", tenant=call.tenant, actor=call.actor, data={"query": query, "found": len(entries)}
    )
    return answer(models.AuditEntries(entries=entries, next=entries[-1].seq if entries else after))


async def verify(call: Call) -> web.Response:
    """Check the log of this server: chain, signatures, links, anchors."""
    report = await call.control.audit.verify()
    data = {"verdict": report["verdict"], "until": report["proven_until"]}
    call.control.events.put("audit.log_verified", tenant=call.tenant, actor=call.actor, data=data)
    return answer(report)


async def anchors(call: Call) -> web.Response:
    """Give the frames that tie the tenant's recordings to the log."""
    query = _query(call, "recording", "from", "to", "limit")
    yesterday = rfc3339(time.time_ns() - DAY_NS)
    found = await call.control.audit.frames(
        call.tenant,
        begin=_time(query, "from") or yesterday,
        end=_time(query, "to"),
        recording=query.get("recording", ""),
        limit=max(1, _number(query, "limit", PAGE, MAX_PAGE)),
    )
    return answer({"anchors": found})


def _tenants(call: Call) -> tuple[str, ...]:
    """Say whose entries may be seen: the tenant's; with one tenant only, those of the server itself too."""
    alone = {key.tenant for key in call.control.tokens.keys} == {call.tenant}
    return (call.tenant, "") if alone else (call.tenant,)


def _query(call: Call, *known: str) -> dict[str, str]:
    query = dict(call.request.query)
    query.pop("purpose", None)
    for name, value in query.items():
        if name not in known:
            raise Problem("bad_request", f"unknown query parameter {name}")
        if len(value) > MAX_TEXT or not value.isprintable():
            raise Problem("bad_request", f"{name} must have at most {MAX_TEXT} printable characters")
    return query


def _number(query: dict[str, str], name: str, default: int, largest: int) -> int:
    try:
        value = int(query.get(name, default))
    except ValueError:
        raise Problem("bad_request", f"{name} is a whole number") from None
    if not 0 <= value <= largest:
        raise Problem("bad_request", f"{name} must be 0 to {largest}")
    return value


def _time(query: dict[str, str], name: str) -> str:
    """Read a time as the log writes it; without an offset it is UTC."""
    if name not in query:
        return ""
    try:
        given = datetime.fromisoformat(query[name])
        return rfc3339(int(given.replace(tzinfo=given.tzinfo or UTC).timestamp() * 1000) * 1_000_000)
    except (ValueError, OverflowError):
        raise Problem("bad_request", f"{name} must be a time such as 2026-01-31T08:00:00Z") from None


_FROM = Query("from", "RFC 3339: from this time on")
_TO = Query("to", "RFC 3339: before this time")

ROUTES = (
    Route(
        "GET",
        "/v1/audit",
        search,
        Access.SERVER,
        "Search the audit log",
        answer=models.AuditEntries,
        query=(
            Query("after", "entries with a larger seq"),
            Query("type", "exactly this type, or its beginning and *"),
            Query("recording", "about this recording"),
            Query("actor", "by this identity or key"),
            _FROM,
            _TO,
            Query("limit", f"1 to {MAX_PAGE}, default {PAGE}"),
        ),
    ),
    Route("POST", "/v1/audit/verify", verify, Access.SERVER, "Check the audit log's integrity"),
    Route(
        "GET",
        "/v1/audit/anchors",
        anchors,
        Access.SERVER,
        "Fetch what ties recordings to the audit log",
        query=(
            Query("recording", "items about this recording only"),
            Query("from", "RFC 3339: from this time on; default a day ago"),
            _TO,
            Query("limit", f"the newest 1 to {MAX_PAGE}, default {PAGE}"),
        ),
    ),
)
