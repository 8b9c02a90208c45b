"""The API as its callers and its attackers see it: one real server for all tests of this file."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mediaserver.api.app import ROUTES
from mediaserver.api.problems import CODES
from mediaserver.api.ranges import RangeNotSatisfiable, etag_listed, parse_range
from mediaserver.api.routing import Access
from mediaserver.tokens import server_token
from tests.mediaserver.running import KEYS, Client, make_keys, running, settings_in

pytestmark = pytest.mark.asyncio(loop_scope="module")
ROOT = Path(__file__).resolve().parents[2]
ONE, TWO = KEYS


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    settings = settings_in(
        tmp_path_factory.mktemp("api"),
        http={"cors_origins": ["https://bank.example"]},
        trusted_proxy=["127.0.0.1/32"],
    )
    make_keys(settings)
    async with running(settings) as client:
        await client.ok("POST", "/v1/rooms", {"name": "hall"})
        yield client


async def test_every_route_and_code_is_documented() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    missing = [f"{one.method} {one.path}" for one in ROUTES if f"`{one.method} {one.path}`" not in text]
    missing += [code for code, (status, _) in CODES.items() if f"| `{code}` | {status} |" not in text]
    assert missing == []
    documented = re.findall(r"`((?:GET|POST|PATCH|DELETE|HEAD|OPTIONS) /\S*)`", text)
    assert set(documented) == {f"{one.method} {one.path}" for one in ROUTES}
    assert all(code in CODES for one in ROUTES for code in one.codes)


async def test_openapi_names_every_route(api: Client) -> None:
    document = await api.ok("GET", "/openapi.json", key=None)
    described = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert described == {(one.path, one.method.lower()) for one in ROUTES}
    schemas = document["components"]["schemas"]
    references = set(re.findall(r"#/components/schemas/([^\"']+)", str(document)))
    assert references <= set(schemas)
    assert schemas["RoomCreate"]["additionalProperties"] is False
    identifiers = [one["operationId"] for methods in document["paths"].values() for one in methods.values()]
    assert len(identifiers) == len(set(identifiers))


async def test_no_route_is_open_by_accident(api: Client) -> None:
    for route in ROUTES:
        if route.access is Access.PUBLIC:
            continue
        path = re.sub(r"\{\w+\}", "nothing", route.path)
        status, body, _ = await api.ask(route.method, path, key=None)
        assert status == 401, route.path
        assert route.method == "HEAD" or body["code"] == "token_missing"


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        ("Bearer nonsense", "token_invalid"),
        ("Bearer " + "a" * 5000, "token_invalid"),
        ("Basic dXNlcjpwYXNz", "token_missing"),
        ("Bearer " + server_token(ONE, ttl_s=10, now_s=1_600_000_000), "token_expired"),
        ("Bearer " + server_token(ONE, ttl_s=90_000), "token_invalid"),
    ],
)
async def test_bad_tokens(api: Client, authorization: str, code: str) -> None:
    headers = {"Authorization": authorization}
    problem = await api.problem("GET", "/v1/rooms", key=None, headers=headers)
    assert (problem["status"], problem["code"]) == (401, code)


@pytest.mark.parametrize(
    ("raw", "code", "detail"),
    [
        (b"", "body_invalid", ""),
        (b"{", "json_invalid", ""),
        (b"\xff\xfe", "json_invalid", ""),
        (b'{"name":"a","name":"b"}', "json_invalid", "twice"),
        (b'{"name":NaN}', "json_invalid", "NaN"),
        (b'{"name":1e999}', "json_invalid", "large"),
        (b'{"name":"\\ud800"}', "json_invalid", "surrogate"),
        (b'{"name":' + b"9" * 30 + b"}", "json_invalid", "large"),
        (b'{"name":' + b"[" * 3000 + b"]" * 3000 + b"}", "json_invalid", ""),
        (b'{"name":"a","colour":1}', "body_invalid", "colour"),
        (b'{"name":"a/b"}', "body_invalid", "name"),
        (b'{"name":".."}', "body_invalid", "name"),
        (b'{"name":7}', "body_invalid", "name"),
        (b'{"name":"a","recording":{"auto":true,"business_no":"1","mode":"all"}}', "body_invalid", "mode"),
        (b"[]", "body_invalid", ""),
    ],
)
async def test_bad_bodies(api: Client, raw: bytes, code: str, detail: str) -> None:
    headers = {"Content-Type": "application/json"}
    problem = await api.problem("POST", "/v1/rooms", data=raw, headers=headers)
    if raw == b"":
        assert problem["code"] in ("json_invalid", "body_invalid")
        return
    assert problem["code"] == code
    assert detail in problem["detail"]


async def test_fields_at_fault_are_named(api: Client) -> None:
    body = {"business_no": "", "template": {"overlays": [{"kind": "clock", "zone": "Mars"}]}}
    problem = await api.problem("POST", "/v1/rooms/hall/recordings", body)
    named = {one["field"] for one in problem["fields"]}
    assert "business_no" in named
    assert any(name.startswith("template.overlays.0") for name in named)


async def test_refusals_of_the_http_layer_are_problems(api: Client) -> None:
    assert (await api.problem("GET", "/v1/nowhere/at/all"))["code"] == "not_found"
    refused = await api.problem("PUT", "/v1/rooms")
    assert (refused["status"], refused["code"]) == (405, "method_not_allowed")
    status, _, headers = await api.ask("PUT", "/v1/rooms")
    assert status == 405
    assert "POST" in headers["Allow"]
    huge = b'{"name":"' + b"a" * 70_000 + b'"}'
    large = await api.problem("POST", "/v1/rooms", data=huge, headers={"Content-Type": "application/json"})
    assert (large["status"], large["code"]) == (413, "body_too_large")
    text = await api.problem("POST", "/v1/rooms", data=b"{}", headers={"Content-Type": "text/plain"})
    assert (text["status"], text["code"]) == (415, "media_type_unsupported")


@pytest.mark.parametrize(
    "path",
    [
        "/../etc/passwd",
        "/%2e%2e/secrets/api-keys.yaml",
        "/..%2f..%2fdata/secrets/session.key",
        "/.hidden",
        "/v1/recordings/..%2f..%2fsecrets/files/x",
        "/v1/rooms/%00",
    ],
)
async def test_paths_lead_nowhere_else(api: Client, path: str) -> None:
    problem = await api.problem("GET", path)
    assert problem["status"] in (400, 404)


async def test_answers_carry_security_headers(api: Client) -> None:
    for path in ("/healthz", "/v1/rooms", "/v1/nowhere"):
        _, _, headers = await api.ask("GET", path)
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert headers["X-Frame-Options"] == "DENY"
        assert "Server" not in headers
    assert headers["Cache-Control"] == "no-store"


async def test_cross_origin_calls_need_a_configured_origin(api: Client) -> None:
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    _, _, headers = await api.ask("OPTIONS", "/v1/whip/hall", key=None, headers=asked)
    assert "Access-Control-Allow-Origin" not in headers
    asked["Origin"] = "https://bank.example"
    status, _, headers = await api.ask("OPTIONS", "/v1/rooms", key=None, headers=asked)
    assert status == 204
    assert headers["Access-Control-Allow-Origin"] == "https://bank.example"
    assert "Idempotency-Key" in headers["Access-Control-Allow-Headers"]
    _, _, headers = await api.ask("GET", "/v1/rooms", headers={"Origin": "https://bank.example"})
    assert "ETag" in headers["Access-Control-Expose-Headers"]
    assert "Access-Control-Allow-Credentials" not in headers


async def test_rooms(api: Client) -> None:
    status, room, headers = await api.ask("POST", "/v1/rooms", {"name": "录音室-1", "codecs": ["video/VP8"]})
    assert status == 201
    assert headers["Location"] == "/v1/rooms/录音室-1" or headers["Location"].startswith("/v1/rooms/")
    again, same, _ = await api.ask("POST", "/v1/rooms", {"name": "录音室-1", "codecs": ["video/VP8"]})
    assert (again, same) == (200, room)
    other = await api.problem("POST", "/v1/rooms", {"name": "录音室-1"})
    assert other["code"] == "room_exists"
    assert "录音室-1" in [one["name"] for one in (await api.ok("GET", "/v1/rooms"))["rooms"]]
    assert (await api.ask("DELETE", "/v1/rooms/录音室-1"))[0] == 204
    assert (await api.problem("GET", "/v1/rooms/录音室-1"))["code"] == "room_not_found"


async def test_seats_are_stable_by_identity(api: Client) -> None:
    await api.ok("POST", "/v1/rooms", {"name": "seats"})

    async def seat(identity: str, role: str) -> str:
        body = {"identity": identity, "role": role}
        token = await api.ok("POST", "/v1/rooms/seats/tokens", body)
        return str(token["seat"])

    assert await seat("li", "customer") == "customer#1"
    assert await seat("wang", "customer") == "customer#2"
    assert await seat("chen", "agent") == "agent#1"
    assert await seat("li", "customer") == "customer#1"
    listed = await api.ok("GET", "/v1/rooms/seats/participants")
    assert [one["seat"] for one in listed["participants"]] == ["customer#1", "customer#2", "agent#1"]
    too_long = await api.problem(
        "POST", "/v1/rooms/seats/tokens", {"identity": "x", "role": "agent", "ttl_s": 10**7}
    )
    assert too_long["code"] == "body_invalid"


async def test_another_tenants_things_do_not_exist(api: Client) -> None:
    started = await api.ok("POST", "/v1/rooms/hall/recordings", {"business_no": "mine"})
    identifier = started["id"]
    for method, path in [
        ("GET", "/v1/rooms/hall"),
        ("DELETE", "/v1/rooms/hall"),
        ("GET", "/v1/rooms/hall/participants"),
        ("GET", f"/v1/recordings/{identifier}"),
        ("POST", f"/v1/recordings/{identifier}/stop"),
        ("POST", f"/v1/recordings/{identifier}/verify"),
        ("GET", f"/v1/recordings/{identifier}/files/composite.mp4"),
        ("GET", f"/v1/recordings/{identifier}/manifest"),
        ("GET", f"/v1/recordings/{identifier}/timeline"),
    ]:
        problem = await api.problem(method, path, key=TWO)
        assert problem["status"] == 404, path
    assert (await api.ok("GET", "/v1/recordings", key=TWO))["recordings"] == []
    assert (await api.ok("GET", "/v1/events", key=TWO))["events"] == []
    assert (await api.ok("GET", "/v1/rooms", key=TWO))["rooms"] == []
    await api.ok("POST", "/v1/rooms", {"name": "hall"}, key=TWO)
    theirs = await api.ok("POST", "/v1/rooms/hall/recordings", {"business_no": "mine"}, key=TWO)
    for recording, key in ((identifier, ONE), (theirs["id"], TWO)):
        await api.ok("POST", f"/v1/recordings/{recording}/stop", key=key)


async def test_participants_may_do_what_they_are_granted(api: Client) -> None:
    customer = api.participant("hall", "li", "customer")
    agent = api.participant("hall", "chen", "agent")
    stranger = api.participant("elsewhere", "eve", "agent")
    forbidden = [
        ("POST", "/v1/rooms", {"name": "x"}, agent),
        ("POST", "/v1/rooms/hall/tokens", {"identity": "x", "role": "agent"}, agent),
        ("POST", "/v1/rooms/hall/recordings", {"business_no": "1"}, customer),
        ("POST", "/v1/rooms/hall/recordings", {"business_no": "1"}, stranger),
        ("GET", "/v1/recordings", None, customer),
        ("GET", "/v1/recordings?room=elsewhere", None, agent),
        ("DELETE", "/v1/rooms/hall/participants/li", None, agent),
        ("GET", "/v1/rooms/hall/participants", None, stranger),
        ("POST", "/v1/invites", {"room": "hall", "role": "agent"}, agent),
        ("GET", "/v1/session", None, agent),
    ]
    for method, path, body, token in forbidden:
        problem = await api.problem(method, path, body, token=token)
        assert problem["code"] == "forbidden", path
    await api.ok("GET", "/v1/rooms/hall/participants", token=customer)
    mine = await api.ok("GET", "/v1/recordings", token=agent)
    assert all(one["room"] == "hall" for one in mine["recordings"])


async def test_idempotency(api: Client) -> None:
    headers = {"Idempotency-Key": "open-once"}
    body = {"name": "once"}
    first = await api.ask("POST", "/v1/rooms", body, headers=headers)
    again = await api.ask("POST", "/v1/rooms", body, headers=headers)
    assert (first[0], again[0]) == (201, 201)
    assert again[1] == first[1]
    assert again[2]["Idempotency-Replayed"] == "true"
    assert again[2]["Location"] == first[2]["Location"]
    other = await api.problem("POST", "/v1/rooms", {"name": "another"}, headers=headers)
    assert other["code"] == "idempotency_key_reused"
    # The key belongs to its sender: another tenant's request is its own.
    assert (await api.ask("POST", "/v1/rooms", {"name": "theirs"}, headers=headers, key=TWO))[0] == 201
    refused = {"Idempotency-Key": "refused"}
    one = await api.problem("POST", "/v1/rooms", {"name": 1}, headers=refused)
    two = await api.problem("POST", "/v1/rooms", {"name": 1}, headers=refused)
    assert one == two
    assert (await api.problem("POST", "/v1/rooms", body, headers={"Idempotency-Key": "k" * 129}))[
        "code"
    ] == "bad_request"


async def test_two_same_requests_at_once_start_one_recording(api: Client) -> None:
    headers = {"Idempotency-Key": "start-once"}
    body = {"business_no": "twice"}
    results = await asyncio.gather(
        *(api.ask("POST", "/v1/rooms/hall/recordings", body, headers=headers) for _ in range(3))
    )
    statuses = sorted(one[0] for one in results)
    assert 201 in statuses
    assert set(statuses) <= {201, 409}
    found = await api.ok("GET", "/v1/recordings?business_no=twice")
    assert len(found["recordings"]) == 1
    await api.ok("POST", f"/v1/recordings/{found['recordings'][0]['id']}/stop")


async def test_invitation_becomes_a_session(api: Client) -> None:
    invite = await api.ok(
        "POST", "/v1/invites", {"room": "hall", "role": "agent", "identity": "chen", "name": "陈"}
    )
    assert re.fullmatch(r"[2-9A-Z]{4}-[2-9A-Z]{4}-[2-9A-Z]{4}", invite["code"])
    assert invite["url"].endswith(f"/#code={invite['code']}")
    status, session, headers = await api.ask(
        "POST", "/v1/session", {"code": invite["code"].lower()}, key=None
    )
    assert status == 201
    assert (session["identity"], session["role"], session["room"]) == ("chen", "agent", "hall")
    assert session["seat"] == "agent#1"
    assert session["grants"]["record"] is True
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    again = await api.problem("POST", "/v1/session", {"code": invite["code"]}, key=None)
    assert again["code"] == "code_invalid"
    with_cookie = {"Cookie": cookie.split(";")[0]}
    fresh = await api.ok("GET", "/v1/session", key=None, headers=with_cookie)
    await api.ok("GET", "/v1/rooms/hall", token=fresh["token"])
    assert (await api.ask("GET", "/v1/recordings", key=None, headers=with_cookie))[0] == 200
    # A cookie reads; it starts nothing, whoever made the browser send it.
    refused = await api.problem(
        "POST", "/v1/rooms/hall/recordings", {"business_no": "1"}, key=None, headers=with_cookie
    )
    assert refused["status"] == 401
    assert (await api.ask("DELETE", "/v1/session", key=None, headers=with_cookie))[0] == 204
    for headers_or_token in ({"headers": with_cookie, "key": None}, {"token": session["token"]}):
        path = "/v1/session" if "headers" in headers_or_token else "/v1/rooms/hall"
        gone = await api.problem("GET", path, **headers_or_token)
        assert gone["code"] == "token_revoked"


async def test_guessing_codes_is_slowed(api: Client) -> None:
    from_there = {"X-Forwarded-For": "203.0.113.9"}
    invite = await api.ok("POST", "/v1/invites", {"room": "hall", "role": "customer"})
    selector = invite["code"][:4]
    codes: list[Any] = []
    for _ in range(11):
        problem = await api.problem(
            "POST", "/v1/session", {"code": f"{selector}-2222-2222"}, key=None, headers=from_there
        )
        codes.append(problem["code"])
    assert codes == ["code_invalid"] * 10 + ["rate_limited"]
    # The invitation that was guessed at is dead, and other addresses are not slowed.
    elsewhere = {"X-Forwarded-For": "203.0.113.10"}
    dead = await api.problem("POST", "/v1/session", {"code": invite["code"]}, key=None, headers=elsewhere)
    assert dead["code"] == "code_invalid"


async def test_removal_revokes_tokens(api: Client) -> None:
    await api.ok("POST", "/v1/rooms", {"name": "strict"})
    body = {"identity": "li", "role": "customer"}
    token = (await api.ok("POST", "/v1/rooms/strict/tokens", body))["token"]
    await api.ok("GET", "/v1/rooms/strict", token=token)
    assert (await api.ask("DELETE", "/v1/rooms/strict/participants/li"))[0] == 204
    assert (await api.problem("GET", "/v1/rooms/strict", token=token))["code"] == "token_revoked"
    assert (await api.problem("DELETE", "/v1/rooms/strict/participants/nobody"))[
        "code"
    ] == "participant_not_found"
    # A new token may be given.
    fresh = (await api.ok("POST", "/v1/rooms/strict/tokens", body))["token"]
    await api.ok("GET", "/v1/rooms/strict", token=fresh)


async def test_health_and_metrics(api: Client) -> None:
    assert (await api.ok("GET", "/healthz", key=None))["status"] == "ok"
    ready = await api.ok("GET", "/readyz", key=None)
    assert ready["checks"] == {"workers": True, "database": True, "disk": True, "audit": True}
    text = (await api.ok("GET", "/metrics", key=None)).decode()
    assert "shuanglu_workers_up 1.0" in text
    assert "hall" not in text
    await api.ask("BREW", "/v1/rooms")
    text = (await api.ok("GET", "/metrics", key=None)).decode()
    assert "BREW" not in text


@pytest.mark.parametrize(
    ("header", "size", "expected"),
    [
        (None, 10, None),
        ("bytes=0-3", 10, (0, 4)),
        ("bytes=4-", 10, (4, 10)),
        ("bytes=-3", 10, (7, 10)),
        ("bytes=-99", 10, (0, 10)),
        ("bytes=8-99", 10, (8, 10)),
        ("bytes=5-2", 10, None),
        ("bytes=0-1,4-5", 10, None),
        ("lines=0-1", 10, None),
        ("bytes=-", 10, None),
        ("bytes=x-y", 10, None),
    ],
)
async def test_ranges(header: str | None, size: int, expected: tuple[int, int] | None) -> None:
    assert parse_range(header, size) == expected


@pytest.mark.parametrize(("header", "size"), [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0)])
async def test_ranges_outside(header: str, size: int) -> None:
    with pytest.raises(RangeNotSatisfiable):
        parse_range(header, size)


async def test_entity_tags() -> None:
    assert etag_listed('"a", W/"b"', '"b"', weak=True)
    assert not etag_listed('"a", W/"b"', '"b"', weak=False)
    assert etag_listed("*", '"b"', weak=False)
    assert not etag_listed("b", '"b"', weak=True)
