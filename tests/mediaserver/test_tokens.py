"""Tokens: who gets in, and every way not to."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest

from mediaserver.tokens import (
    ApiKey,
    Grants,
    TokenError,
    Tokens,
    client_token,
    server_token,
)

NOW = 1_800_000_000.0
OLD = ApiKey("key-old", "o" * 40, "bank")
NEW = ApiKey("key-new", "n" * 40, "bank")
OTHER = ApiKey("key-other", "x" * 40, "insurer")
CUSTOMER: dict[str, Any] = {"identity": "c-1", "room": "r1", "role": "customer", "name": "王𠮷"}


def tokens(**more: Any) -> Tokens:
    return Tokens([OLD, NEW, OTHER], "s" * 40, **more)


def refused(token: str, now_s: float = NOW, **more: Any) -> TokenError:
    with pytest.raises(TokenError) as error:
        tokens(**more).verify(token, now_s)
    return error.value


def forged(key: ApiKey = NEW, header: dict[str, Any] | None = None, **claims: Any) -> str:
    whole = {
        "iss": key.id,
        "aud": "shuanglu/client",
        "iat": NOW,
        "exp": NOW + 60,
        "jti": "j",
        "sub": "c",
        "room": "r",
        "role": "customer",
        **claims,
    }
    whole = {name: value for name, value in whole.items() if value is not None}
    return jwt.encode(whole, key.secret, "HS256", headers={"kid": key.id, **(header or {})})


def test_a_server_signs_its_own_token() -> None:
    principal = tokens().verify(server_token(OLD, now_s=NOW), NOW + 10)
    assert (principal.kind, principal.tenant, principal.key_id) == ("server", "bank", "key-old")
    assert tokens().verify(server_token(OTHER, now_s=NOW), NOW).tenant == "insurer"


def test_a_client_token_says_who_where_and_what() -> None:
    token, minted = tokens().mint_client("bank", ttl_s=600, now_s=NOW, **CUSTOMER)
    principal = tokens().verify(token, NOW + 599)
    assert principal == minted
    assert (principal.kind, principal.key_id, principal.expires_at) == ("client", "key-new", NOW + 600)
    assert (principal.identity, principal.room, principal.name) == ("c-1", "r1", "王𠮷")
    assert principal.grants == Grants(publish=True, subscribe=True)
    assert tokens().verify(client_token(OLD, now_s=NOW, **CUSTOMER)[0], NOW).key_id == "key-old"


def test_roles_have_their_grants_unless_the_token_says() -> None:
    assert Grants.for_role("agent").record
    assert Grants.for_role("supervisor") == Grants(subscribe=True, hidden=True)
    watcher = client_token(NEW, now_s=NOW, grants=Grants(subscribe=True), **CUSTOMER)[0]
    assert not tokens().verify(watcher, NOW).grants.publish


def test_times_have_a_leeway() -> None:
    token = server_token(NEW, ttl_s=60, now_s=NOW)
    tokens().verify(token, NOW + 89)
    tokens().verify(token, NOW - 29)
    assert refused(token, NOW + 91).code == "token_expired"
    assert "clocks" in refused(token, NOW - 31).detail
    assert refused(server_token(NEW, ttl_s=301, now_s=NOW)).code == "token_invalid"
    assert "lives for more" in refused(client_token(NEW, ttl_s=90_000, now_s=NOW, **CUSTOMER)[0]).detail


def test_a_revoked_token_is_refused() -> None:
    token, principal = tokens().mint_client("bank", now_s=NOW, **CUSTOMER)
    revoked = {("bank", principal.token_id)}
    asked = tokens(is_revoked=lambda tenant, token_id: (tenant, token_id) in revoked)
    with pytest.raises(TokenError) as error:
        asked.verify(token, NOW)
    assert error.value.code == "token_revoked"


def test_a_session_cookie_is_not_a_token_and_the_reverse() -> None:
    token, principal = tokens().mint_client("bank", now_s=NOW, **CUSTOMER)
    cookie = tokens().mint_session(principal, ttl_s=28800, now_s=NOW)
    session = tokens().verify_session(cookie, NOW + 28000)
    assert (session.kind, session.identity, session.tenant) == ("cookie", "c-1", "bank")
    assert session.token_id == principal.token_id
    assert refused(cookie).code == "token_invalid"
    for wrong in (token, server_token(NEW, now_s=NOW)):
        with pytest.raises(TokenError):
            tokens().verify_session(wrong, NOW)
    with pytest.raises(TokenError, match="no longer valid"):
        Tokens([OTHER], "s" * 40).verify_session(cookie, NOW)
    with pytest.raises(TokenError):
        Tokens([NEW], "z" * 40).verify_session(cookie, NOW)


def test_rubbish_is_refused() -> None:
    good = client_token(NEW, now_s=NOW, **CUSTOMER)[0]
    for cut in range(len(good)):
        assert refused(good[:cut]).code == "token_invalid"
    for bad in ("", "a.b.c", "é" * 20, "." * 4000, good + "x", good + ".", "x" * 5000):
        assert refused(bad).code == "token_invalid"


def test_the_algorithm_is_fixed() -> None:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    claims = {"iss": NEW.id, "aud": "shuanglu/server", "iat": NOW, "exp": NOW + 60}
    for algorithm in ("none", "None", "HS384", "RS256", "HS256é", None):
        unsigned = f"{part({'alg': algorithm, 'kid': NEW.id})}.{part(claims)}."
        assert "HS256" in refused(unsigned).detail
    assert (
        refused(jwt.encode(claims, NEW.secret * 2, "HS512", headers={"kid": NEW.id})).code == "token_invalid"
    )


@pytest.mark.parametrize(
    ("token", "detail"),
    [
        (forged(header={"kid": "key-none"}), "kid"),
        (forged(header={"kid": "key-old"}), "signature"),
        (forged(iss="key-old"), "issuer"),
        (forged(aud="shuanglu/session"), "aud"),
        (forged(aud=["shuanglu/client"]), "aud"),
        (forged(aud=None), "aud"),
        (forged(exp=None), "exp"),
        (forged(iat=None), "iat"),
        (forged(exp="soon"), "exp"),
        (forged(exp=True), "exp"),
        (forged(exp=float("1e300")), "exp"),
        (forged(nbf=NOW + 50), "not valid yet"),
        (forged(sub=None), "sub"),
        (forged(sub=""), "sub"),
        (forged(sub=5), "sub"),
        (forged(room="a\nb"), "room"),
        (forged(role="r" * 257), "role"),
        (forged(jti=None), "jti"),
        (forged(grants={"publish": 1}), "grant"),
        (forged(grants={"root": True}), "grant"),
        (forged(grants=[]), "grants"),
    ],
)
def test_wrong_claims_are_named(token: str, detail: str) -> None:
    error = refused(token)
    assert error.code == "token_invalid"
    assert detail in error.detail


def test_keys_must_be_long_enough_and_are_not_shown() -> None:
    with pytest.raises(ValueError, match="key-short"):
        Tokens([ApiKey("key-short", "x" * 31)], "s" * 40)
    assert NEW.secret not in repr(NEW)
    with pytest.raises(ValueError, match="identity"):
        client_token(NEW, identity="", room="r", role="agent")
    with pytest.raises(KeyError):
        tokens().key_of("nobody")
