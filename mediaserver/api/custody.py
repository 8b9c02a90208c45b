"""Handlers of what happens to a recording after its end: clips, copies, retention, holds, review,
destruction.

All for servers only: a participant of a call decides nothing of this. Two persons are two API keys.
"""

from __future__ import annotations

import time

from aiohttp import web

from mediaserver.api import models
from mediaserver.api.auth import recording_of
from mediaserver.api.routing import Access, Call, Route, answer
from mediaserver.recordings.custody import Act
from recorder.catalog import Entry
from recorder.custody import utc_ns


async def _act(
    call: Call, purpose: str, event: str, act: Act, *, operator: str = "", status: int = 200
) -> web.Response:
    """Let the caller act on the recording of the path; the audit says so."""
    entry = await recording_of(call)
    custody, statement = await call.control.custody.act(entry, call.actor, operator, purpose, act)
    await _audit(call, entry, event, statement.number, operator)
    return answer(models.Custody.model_validate(custody.to_json()), status=status)


async def _audit(call: Call, entry: Entry, event: str, statement: int, operator: str) -> None:
    data = {"statement": statement, "operator": operator}
    await call.control.events.append_about(entry, f"audit.{event}", data, call.actor)


async def show(call: Call) -> web.Response:
    """Show retention, holds, proposals, review and what was destroyed."""
    custody = await call.control.custody.show(await recording_of(call))
    return answer(models.Custody.model_validate(custody.to_json()))


async def keep(call: Call) -> web.Response:
    """Set until when kinds of files are kept."""
    body: models.RetentionPatch = call.body
    until = {str(kind): utc_ns(when) for kind, when in body.until.items()}
    return await _act(
        call,
        "retention",
        "retention_set",
        lambda keeper: keeper.set_retention(until, body.basis, body.reason),
        operator=body.operator,
    )


async def approve_retention(call: Call) -> web.Response:
    """Let a shorter retention count that another key proposed."""
    body: models.Approval = call.body
    return await _act(
        call,
        "retention",
        "retention_set",
        lambda keeper: keeper.approve_retention(body.proposal),
        operator=body.operator,
    )


async def hold(call: Call) -> web.Response:
    """Place a legal hold."""
    body: models.OnRecord = call.body
    return await _act(
        call,
        "hold",
        "held",
        lambda keeper: keeper.place_hold(body.reason),
        operator=body.operator,
        status=201,
    )


async def release(call: Call) -> web.Response:
    """Release a hold that another key placed."""
    body: models.HoldRelease = call.body
    return await _act(
        call,
        "hold",
        "released",
        lambda keeper: keeper.release_hold(body.hold, body.reason),
        operator=body.operator,
    )


async def review(call: Call) -> web.Response:
    """Sign the outcome of a manual review."""
    entry = await recording_of(call)
    body: models.ReviewRequest = call.body
    people = entry.details.get("participants", [])
    agents = {str(one["identity"]) for one in people if one.get("role") == "agent"}
    return await _act(
        call,
        "review",
        "reviewed",
        lambda keeper: keeper.review(body.state, body.comment, body.reviewer, agents),
        operator=body.reviewer,
        status=201,
    )


async def propose(call: Call) -> web.Response:
    """Propose a destruction."""
    body: models.DestructionProposal = call.body
    kinds = {str(kind) for kind in body.kinds}
    return await _act(
        call,
        "destruction",
        "destruction_proposed",
        lambda keeper: keeper.propose_destruction(kinds, body.reason, time.time_ns()),
        operator=body.operator,
        status=201,
    )


async def withdraw(call: Call) -> web.Response:
    """Withdraw a proposed destruction."""
    body: models.OnRecord = call.body
    return await _act(
        call,
        "destruction",
        "destruction_withdrawn",
        lambda keeper: keeper.withdraw("destruction", body.reason),
        operator=body.operator,
    )


async def destroy(call: Call) -> web.Response:
    """Carry out the destruction that another key proposed."""
    entry = await recording_of(call)
    body: models.Approval = call.body
    custody, page = await call.control.custody.destroy(entry, body.proposal, call.actor, body.operator)
    await _audit(call, entry, "destroyed", int(page["statement"]), body.operator)
    shown = models.Custody.model_validate(custody.to_json())
    return answer(models.Destruction(custody=shown, certificate=page))


async def clip(call: Call) -> web.Response:
    """Begin a clip of the archive composite."""
    return await _begin(call, "clip")


async def copy(call: Call) -> web.Response:
    """Begin a copy of the archive composite for one viewer."""
    return await _begin(call, "copy")


async def _begin(call: Call, kind: str) -> web.Response:
    entry = await recording_of(call)
    name = await call.control.copies.ask(entry, kind, call.actor, call.body.model_dump(mode="json"))
    headers = {"Location": f"/v1/recordings/{entry.id}/files/{name}"}
    begun = models.CopyBegun(recording=entry.id, file=name, state="waiting")
    return answer(begun, status=202, headers=headers)


_CODES = ("recording_not_found", "recording_state", "destroyed")


def _route(
    method: str,
    path: str,
    handler: object,
    summary: str,
    body: type[models.Request] | None,
    *codes: str,
    status: int = 200,
) -> Route:
    return Route(
        method,
        f"/v1/recordings/{{recording}}/{path}",
        handler,  # type: ignore[arg-type]
        Access.SERVER,
        summary,
        body=body,
        answer=models.Custody,
        status=status,
        codes=(*_CODES, *codes),
    )


ROUTES = (
    *(
        Route(
            "POST",
            f"/v1/recordings/{{recording}}/{path}",
            handler,
            Access.SERVER,
            summary,
            body=body,
            answer=models.CopyBegun,
            status=202,
            codes=(
                "recording_not_found",
                "recording_state",
                "file_not_found",
                "range_not_satisfiable",
                "sealed_only",
            ),
        )
        for path, handler, summary, body in (
            ("clips", clip, "Cut a stretch out of the archive composite", models.ClipRequest),
            ("copies", copy, "Copy the archive composite for one viewer", models.CopyRequest),
        )
    ),
    _route("GET", "custody", show, "Show retention, holds, review, destruction", None),
    _route("PATCH", "retention", keep, "Set until when files are kept", models.RetentionPatch),
    _route(
        "POST",
        "retention/approve",
        approve_retention,
        "Let a proposed shorter retention count",
        models.Approval,
        "no_proposal",
        "other_proposal",
        "second_person",
        "on_hold",
    ),
    _route("POST", "hold", hold, "Place a legal hold", models.OnRecord, status=201),
    _route("DELETE", "hold", release, "Release a hold", models.HoldRelease, "no_hold", "second_person"),
    _route(
        "POST",
        "review",
        review,
        "Sign a manual review",
        models.ReviewRequest,
        "review_state",
        "reviewer_is_agent",
        status=201,
    ),
    _route(
        "POST",
        "destruction",
        propose,
        "Propose a destruction",
        models.DestructionProposal,
        "retention_running",
        "retention_unknown",
        "on_hold",
        "proposal_stands",
        status=201,
    ),
    _route(
        "DELETE", "destruction", withdraw, "Withdraw a proposed destruction", models.OnRecord, "no_proposal"
    ),
    Route(
        "POST",
        "/v1/recordings/{recording}/destruction/approve",
        destroy,
        Access.SERVER,
        "Carry out a destruction that another key proposed",
        body=models.Approval,
        answer=models.Destruction,
        codes=(*_CODES, "no_proposal", "other_proposal", "second_person", "retention_running", "on_hold"),
    ),
)
