"""Who is asking: JSON web tokens of servers, clients and browser sessions (docs/tokens.md).

All are HS256 (RFC 7519) and say in ``aud`` what they are for, so that one can never pass for another. A
server signs its own short token with its API key, whose secret never travels; client tokens can be minted
offline with the same key. Session cookies are signed with this server's own key. Time is an argument (seconds
of UTC).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import jwt

from recorder.ids import uuid7

ALGORITHM = "HS256"
MAX_TOKEN_BYTES = 4096
"""A longer token is refused before it is parsed; ours have about 500 bytes."""
MIN_SECRET_BYTES = 32
SERVER_AUDIENCE = "shuanglu/server"
CLIENT_AUDIENCE = "shuanglu/client"
SESSION_AUDIENCE = "shuanglu/session"
PROVEN_KEPT = 2_000
"""Tokens whose signature need not be checked again: a client shows the same one with every request."""
MAX_TEXT = 256
"""Characters of an identity, room, role or name."""


class TokenError(Exception):
    """The token does not let its bearer in; ``code`` is token_invalid, token_expired or token_revoked."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A tenant's key. A tenant may have several live ones, so that they can be rotated."""

    id: str
    secret: str = field(repr=False)
    tenant: str = "default"
    webhook_url: str = ""


@dataclass(frozen=True, slots=True)
class Grants:
    """What a participant may do in its room."""

    publish: bool = False
    subscribe: bool = False
    record: bool = False
    """Start, stop, pause and mark recordings, and fetch them."""
    hidden: bool = False
    """Not shown to others and never recorded."""
    admin: bool = False
    """Mute and remove others."""

    @classmethod
    def for_role(cls, role: str) -> Grants:
        """Return what a role may do unless its token says: agents record, supervisors watch."""
        if role == "agent":
            return cls(publish=True, subscribe=True, record=True)
        if role in ("manager", "supervisor"):
            return cls(subscribe=True, hidden=True)
        return cls(publish=True, subscribe=True)

    @classmethod
    def from_json(cls, value: object) -> Grants:
        """Read ``{"publish": true, …}``; ValueError for unknown names or values that are not true/false."""
        if not isinstance(value, dict):
            raise ValueError("grants must be an object")
        known = {one.name for one in fields(cls)}
        for name, granted in value.items():
            if name not in known or not isinstance(granted, bool):
                raise ValueError(f"no such grant, or not true or false: {name}")
        return cls(**value)

    def to_json(self) -> dict[str, bool]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request comes from. ``server`` may do everything in its tenant, the others what grants say."""

    tenant: str
    kind: Literal["server", "client", "cookie"]
    key_id: str
    expires_at: float
    """Seconds of UTC."""
    identity: str = ""
    room: str = ""
    role: str = ""
    name: str = ""
    grants: Grants = Grants()
    token_id: str = ""
    """``jti``: what a revocation names."""


def server_token(key: ApiKey, *, ttl_s: int = 60, now_s: float | None = None) -> str:
    """Sign a server's token with its API key, as a bank's back end does it."""
    now = int(time.time() if now_s is None else now_s)
    claims = {"iss": key.id, "aud": SERVER_AUDIENCE, "iat": now, "exp": now + ttl_s, "jti": str(uuid7())}
    return jwt.encode(claims, key.secret, ALGORITHM, headers={"kid": key.id})


def client_token(
    key: ApiKey,
    *,
    identity: str,
    room: str,
    role: str,
    name: str = "",
    grants: Grants | None = None,
    ttl_s: int = 3600,
    now_s: float | None = None,
    token_id: str = "",
) -> tuple[str, Principal]:
    """Mint a token that lets one participant into one room.

    Returns it with the principal it will make. Raises ValueError for an empty or over-long identity, room,
    role or name, or one with control characters.
    """
    for label, text in (("identity", identity), ("room", room), ("role", role), ("name", name)):
        if not _is_text(text, may_be_empty=label == "name"):
            raise ValueError(f"{label} must have 1 to {MAX_TEXT} characters and no control characters")
    granted = grants or Grants.for_role(role)
    now = int(time.time() if now_s is None else now_s)
    claims = {
        "iss": key.id,
        "aud": CLIENT_AUDIENCE,
        "iat": now,
        "exp": now + ttl_s,
        "jti": token_id or str(uuid7()),
        "sub": identity,
        "room": room,
        "role": role,
        "name": name,
        "grants": granted.to_json(),
    }
    token = jwt.encode(claims, key.secret, ALGORITHM, headers={"kid": key.id})
    principal = Principal(
        tenant=key.tenant,
        kind="client",
        key_id=key.id,
        expires_at=float(now + ttl_s),
        identity=identity,
        room=room,
        role=role,
        name=name,
        grants=granted,
        token_id=str(claims["jti"]),
    )
    return token, principal


class Tokens:
    """Verifies tokens against the API keys, and signs client tokens and session cookies.

    ``is_revoked(tenant, token_id)`` is asked last for every token that holds otherwise.
    """

    def __init__(
        self,
        keys: Iterable[ApiKey],
        session_key: str,
        *,
        leeway_s: float = 30.0,
        server_max_s: int = 300,
        client_max_s: int = 86400,
        is_revoked: Callable[[str, str], bool] = lambda tenant, token_id: False,
    ) -> None:
        self._keys = {key.id: key for key in keys}
        self._session_key = session_key
        self._leeway_s = leeway_s
        self._server_max_s = server_max_s
        self._client_max_s = client_max_s
        self._is_revoked = is_revoked
        self._proven: dict[str, tuple[ApiKey, dict[str, Any]]] = {}
        for key_id, secret in [
            *((key.id, key.secret) for key in self._keys.values()),
            ("session", session_key),
        ]:
            if len(secret.encode()) < MIN_SECRET_BYTES:
                raise ValueError(
                    f"the secret of key {key_id} is shorter than {MIN_SECRET_BYTES} bytes (RFC 7518)"
                )

    def key_of(self, tenant: str) -> ApiKey:
        """Return the key that signs for a tenant: its last one, the newest. KeyError if it has none."""
        for key in reversed(list(self._keys.values())):
            if key.tenant == tenant:
                return key
        raise KeyError(tenant)

    def claimed_tenant(self, authorization: str) -> str:
        """Return the tenant of the API key that an Authorization header names, true or not; else nothing."""
        try:
            key = self._keys.get(str(self._header(authorization.partition(" ")[2].strip()).get("kid")))
        except TokenError:
            return ""
        return key.tenant if key is not None else ""

    @property
    def keys(self) -> list[ApiKey]:
        return list(self._keys.values())

    def verify(self, token: str, now_s: float | None = None) -> Principal:
        """Return who bears this token (server or client); TokenError if it does not hold at ``now_s``."""
        now = time.time() if now_s is None else now_s
        key, claims = self._proven.get(token) or self._prove(token)
        if claims["aud"] == SERVER_AUDIENCE:
            expires_at = self._times(claims, now, self._server_max_s)
            principal = Principal(
                key.tenant, "server", key.id, expires_at, token_id=_text(claims, "jti", may_be_empty=True)
            )
        else:
            expires_at = self._times(claims, now, self._client_max_s)
            principal = self._participant(claims, key.tenant, "client", key.id, expires_at)
        return self._not_revoked(principal)

    def _prove(self, token: str) -> tuple[ApiKey, dict[str, Any]]:
        """Return the key that signed a token and its claims, whose times are still to be checked."""
        header = self._header(token)
        key = self._keys.get(header["kid"]) if isinstance(header.get("kid"), str) else None
        if key is None:
            raise TokenError("token_invalid", "the token names no API key of this server (kid)")
        claims = self._claims(token, key.secret, (SERVER_AUDIENCE, CLIENT_AUDIENCE))
        if claims.get("iss") != key.id:
            raise TokenError("token_invalid", "the token's issuer (iss) is not its key (kid)")
        if len(self._proven) >= PROVEN_KEPT:
            del self._proven[next(iter(self._proven))]
        self._proven[token] = key, claims
        return key, claims

    def mint_client(self, tenant: str, **participant: Any) -> tuple[str, Principal]:
        """Mint a client token with a tenant's key; arguments and errors as ``client_token``."""
        return client_token(self.key_of(tenant), **participant)

    def mint_session(self, principal: Principal, *, ttl_s: int, now_s: float | None = None) -> str:
        """Sign the value of a browser's session cookie for the participant of a client token."""
        now = int(time.time() if now_s is None else now_s)
        claims = {
            "aud": SESSION_AUDIENCE,
            "iat": now,
            "exp": now + ttl_s,
            "jti": principal.token_id,
            "tenant": principal.tenant,
            "key": principal.key_id,
            "sub": principal.identity,
            "room": principal.room,
            "role": principal.role,
            "name": principal.name,
            "grants": principal.grants.to_json(),
        }
        return jwt.encode(claims, self._session_key, ALGORITHM)

    def verify_session(self, cookie: str, now_s: float | None = None) -> Principal:
        """Return who a session cookie stands for; TokenError if it does not hold at ``now_s``."""
        self._header(cookie)
        claims = self._claims(cookie, self._session_key, (SESSION_AUDIENCE,))
        expires_at = self._times(claims, time.time() if now_s is None else now_s, None)
        key_id = _text(claims, "key")
        if key_id not in self._keys:
            raise TokenError("token_revoked", "the API key of this session is no longer valid")
        return self._not_revoked(
            self._participant(claims, _text(claims, "tenant"), "cookie", key_id, expires_at)
        )

    def _header(self, token: str) -> dict[str, Any]:
        if len(token) > MAX_TOKEN_BYTES:
            raise TokenError("token_invalid", f"the token is longer than {MAX_TOKEN_BYTES} bytes")
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError) as error:
            raise TokenError("token_invalid", "not a JSON web token") from error
        if header.get("alg") != ALGORITHM:
            raise TokenError("token_invalid", f"tokens are signed with {ALGORITHM} here")
        return header

    def _claims(self, token: str, secret: str, audiences: tuple[str, ...]) -> dict[str, Any]:
        """Check the signature and what the token is for. Times are checked apart, against the given now."""
        names = ("exp", "iat", "nbf", "aud", "sub", "jti")
        unchecked = {f"verify_{name}": False for name in names}
        try:
            claims = jwt.decode(token, secret, algorithms=[ALGORITHM], options=unchecked)  # type: ignore[arg-type]
        except (jwt.PyJWTError, ValueError) as error:
            raise TokenError("token_invalid", "the token's signature does not hold") from error
        if claims.get("aud") not in audiences:
            raise TokenError(
                "token_invalid", f"the token is not for this (aud must be {' or '.join(audiences)})"
            )
        return claims

    def _times(self, claims: dict[str, Any], now: float, max_s: int | None) -> float:
        times: dict[str, float] = {}
        for name in ("exp", "iat", "nbf"):
            value = claims.get(name, claims.get("iat") if name == "nbf" else None)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**40:
                raise TokenError("token_invalid", f"the token has no time {name}")
            times[name] = float(value)
        if now >= times["exp"] + self._leeway_s:
            raise TokenError("token_expired", "the token has expired")
        if now < max(times["nbf"], times["iat"]) - self._leeway_s:
            raise TokenError("token_invalid", "the token is not valid yet; do both clocks agree?")
        if max_s is not None and times["exp"] - times["iat"] > max_s:
            raise TokenError("token_invalid", f"the token lives for more than {max_s} s")
        return times["exp"]

    def _participant(
        self,
        claims: dict[str, Any],
        tenant: str,
        kind: Literal["client", "cookie"],
        key_id: str,
        expires_at: float,
    ) -> Principal:
        role = _text(claims, "role")
        try:
            grants = Grants.from_json(claims["grants"]) if "grants" in claims else Grants.for_role(role)
        except ValueError as error:
            raise TokenError("token_invalid", str(error)) from error
        return Principal(
            tenant=tenant,
            kind=kind,
            key_id=key_id,
            expires_at=expires_at,
            identity=_text(claims, "sub"),
            room=_text(claims, "room"),
            role=role,
            name=_text(claims, "name", may_be_empty=True),
            grants=grants,
            token_id=_text(claims, "jti"),
        )

    def _not_revoked(self, principal: Principal) -> Principal:
        if principal.token_id and self._is_revoked(principal.tenant, principal.token_id):
            raise TokenError("token_revoked", "the token was revoked")
        return principal


def _is_text(value: object, *, may_be_empty: bool = False) -> bool:
    return (
        isinstance(value, str)
        and (may_be_empty or bool(value))
        and len(value) <= MAX_TEXT
        and not any(ord(character) < 32 or ord(character) == 127 for character in value)
    )


def _text(claims: dict[str, Any], name: str, *, may_be_empty: bool = False) -> str:
    value = claims.get(name, "" if may_be_empty else None)
    if not _is_text(value, may_be_empty=may_be_empty):
        raise TokenError("token_invalid", f"the token's claim {name} is missing or no text")
    return str(value)
