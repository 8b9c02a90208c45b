"""Invitations by one-time code, and the browser sessions they become."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import partial

from aiohttp import web

from mediaserver import invites
from mediaserver.api import models
from mediaserver.api.auth import COOKIE
from mediaserver.api.problems import Problem
from mediaserver.api.rooms import grants_of
from mediaserver.api.routing import Access, Call, Route, answer
from mediaserver.errors import Refused
from mediaserver.tokens import Grants, Principal
from recorder.clock import rfc3339


async def create_invite(call: Call) -> web.Response:
    """Make a one-time code for a room, opening the room if it is not open."""
    control = call.control
    body: models.InviteCreate = call.body
    ttl_s = body.ttl_s or control.settings.tokens.invite_ttl_s
    invitation = invites.Invitation(
        tenant=call.tenant,
        room=body.room,
        role=body.role,
        identity=body.identity or f"{body.role}-{control.short_id()}",
        name=body.name,
        grants=grants_of(body.role, body.grants).to_json(),
    )
    if control.rooms.get(call.tenant, body.room) is None:
        control.refuse_when_draining()
        codecs = list(control.settings.media.codecs)
        await control.rooms.open(call.tenant, body.room, codecs, control.default_auto(body.room))
    code, expires_s = await control.database.run(partial(invites.make, control.store, invitation, ttl_s))
    control.events.put(
        "audit.invited",
        tenant=call.tenant,
        room=body.room,
        actor=call.actor,
        data={"identity": invitation.identity, "role": body.role, "grants": invitation.grants},
    )
    return answer(
        models.Invite(
            code=code,
            url=f"{control.public_url()}/#code={code}",
            expires_at=rfc3339(expires_s * 1_000_000_000),
        ),
        status=201,
    )


async def create_session(call: Call) -> web.Response:
    """Exchange a one-time code for a session cookie and a client token."""
    control = call.control
    address = call.request.remote or ""
    wait_s = control.code_brake.wait_s(address, time.monotonic())
    if wait_s > 0:
        raise Problem("rate_limited", "too many wrong codes", headers={"Retry-After": str(math.ceil(wait_s))})
    body: models.SessionCreate = call.body
    try:
        invitation = await control.database.run(invites.redeem, control.store, body.code)
    except Refused:
        control.code_brake.failed(address, time.monotonic())
        control.sign_ins.note(address, "code_invalid", "", time.monotonic())
        raise
    token, principal = control.tokens.mint_client(
        invitation.tenant,
        identity=invitation.identity,
        room=invitation.room,
        role=invitation.role,
        name=invitation.name,
        grants=Grants.from_json(invitation.grants),
        ttl_s=control.settings.tokens.client_ttl_s,
    )
    ttl_s = control.settings.tokens.session_ttl_s
    await control.note_token(replace(principal, expires_at=time.time() + ttl_s))
    response = await _session(call, token, principal, status=201)
    response.set_cookie(
        COOKIE,
        control.tokens.mint_session(principal, ttl_s=ttl_s),
        max_age=ttl_s,
        path="/",
        httponly=True,
        secure=control.is_https,
        samesite="Strict",
    )
    await control.events.append(
        "audit.signed_in",
        tenant=principal.tenant,
        room=principal.room,
        actor=principal.identity,
        data={"role": principal.role},
    )
    return response


async def _session(call: Call, token: str, principal: Principal, status: int = 200) -> web.Response:
    room = call.control.rooms.get(principal.tenant, principal.room)
    seat = ""
    if room is not None:
        one = await call.control.rooms.admit(
            room, principal.identity, principal.role, principal.name, hidden=principal.grants.hidden
        )
        seat = one.seat
    return answer(
        models.Session(
            identity=principal.identity,
            role=principal.role,
            seat=seat,
            room=principal.room,
            name=principal.name,
            grants=principal.grants.to_json(),
            token=token,
            expires_at=rfc3339(int(principal.expires_at) * 1_000_000_000),
        ),
        status=status,
        headers={"Cache-Control": "no-store"},
    )


async def get_session(call: Call) -> web.Response:
    """Give a signed-in browser a fresh client token."""
    control = call.control
    asker = call.asker
    token, principal = control.tokens.mint_client(
        asker.tenant,
        identity=asker.identity,
        room=asker.room,
        role=asker.role,
        name=asker.name,
        grants=asker.grants,
        ttl_s=control.settings.tokens.client_ttl_s,
        token_id=asker.token_id,
    )
    if control.rooms.get(asker.tenant, asker.room) is None and not control.draining:
        codecs = list(control.settings.media.codecs)
        await control.rooms.open(asker.tenant, asker.room, codecs, control.default_auto(asker.room))
    return await _session(call, token, principal)


async def delete_session(call: Call) -> web.Response:
    """Sign a browser out; its tokens are revoked."""
    await call.control.revoke(call.asker)
    call.control.events.put(
        "audit.signed_out", tenant=call.tenant, room=call.asker.room, actor=call.actor, data={}
    )
    response = web.Response(status=204)
    response.del_cookie(COOKIE, path="/", secure=call.control.is_https, httponly=True, samesite="Strict")
    return response


ROUTES = (
    Route(
        "POST",
        "/v1/invites",
        create_invite,
        Access.SERVER,
        "Invite by a one-time code",
        body=models.InviteCreate,
        answer=models.Invite,
        status=201,
        codes=("draining", "worker_unavailable"),
    ),
    Route(
        "POST",
        "/v1/session",
        create_session,
        Access.PUBLIC,
        "Sign a browser in with a one-time code",
        body=models.SessionCreate,
        answer=models.Session,
        status=201,
        codes=("code_invalid", "rate_limited"),
    ),
    Route(
        "GET",
        "/v1/session",
        get_session,
        Access.COOKIE,
        "Who is signed in; gives a fresh client token",
        answer=models.Session,
    ),
    Route("DELETE", "/v1/session", delete_session, Access.COOKIE, "Sign the browser out", status=204),
)
