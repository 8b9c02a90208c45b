"""Check the time-stamps of a recording: each token against what it stamps, its authority, and its own age.

A token proves nothing once its authority's certificate is over (its key may have leaked since), unless a
later token that still holds covers it and was made before that: hence renewals (RFC 4998 has the same rule).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from enum import StrEnum

from recorder.canonical import JSON, CanonicalError, canonical
from recorder.gm import tsp
from recorder.gm.sm3 import named, sm3
from recorder.manifest import Manifest
from recorder.statements import STATEMENTS, Statement
from recorder.timestamp import PAGE_TYPES, RENEWAL, digests_of


class TokenState(StrEnum):
    """What a token is worth here."""

    VERIFIED = "verified"
    NOT_VERIFIED_HERE = "not_verified_here"
    """Its algorithm is none of ours, or nobody named its authority: it proves nothing, for or against."""
    LAPSED = "lapsed"
    """It held, but its authority's certificate is over and no later token vouches that it is older."""
    BROKEN = "broken"
    """It is not over this recording, or its signature, authority or form does not hold."""


@dataclass(frozen=True)
class TokenReport:
    """One token of a recording."""

    statement: int
    kind: str
    state: TokenState
    detail: str = ""
    time: str = ""
    """When the authority says it stamped, RFC 3339; empty if the token is unreadable."""
    authority: str = ""
    covers: int = 0
    """The last statement it covers; 0: the manifest alone."""
    lapses: str = ""
    """End of its authority's certificate."""

    @property
    def file(self) -> str:
        """The page that holds it."""
        return f"{STATEMENTS}/{self.statement:06d}.json"

    def to_json(self) -> dict[str, JSON]:
        """Return it as reports show it."""
        return {**asdict(self), "state": self.state.value}


@dataclass(frozen=True)
class _Held:
    report: TokenReport
    time: datetime | None = None
    not_after: datetime | None = None


def check_tokens(
    manifest: Manifest,
    statements: Sequence[Statement],
    anchors: Sequence[bytes] | None,
    now: datetime,
) -> list[TokenReport]:
    """Check every token. ``anchors`` are DER certificates of authorities; without them none is verified.

    ``statements`` are those whose signature holds; what a token says of others is not compared, they are
    findings of their own.
    """
    held = [_check(manifest, statements, one, anchors) for one in statements if one.kind in PAGE_TYPES]
    reports: list[TokenReport] = []
    alive: list[_Held] = []
    for one in reversed(held):
        report = one.report
        if report.state == TokenState.VERIFIED and one.time is not None and one.not_after is not None:
            until = one.not_after
            renewed = any(
                later.report.covers >= report.statement and later.time is not None and later.time <= until
                for later in alive
            )
            if now <= until or renewed:
                alive.append(one)
            else:
                detail = "its authority's certificate is over, and no later token in force is older than that"
                report = replace(report, state=TokenState.LAPSED, detail=detail)
        reports.append(report)
    return reports[::-1]


def lapse_of(statements: Sequence[Statement]) -> datetime | None:
    """Return when the newest token's authority's certificate ends; None without a readable token."""
    newest: tsp.Token | None = None
    for statement in statements:
        if statement.kind in PAGE_TYPES:
            try:
                token = tsp.parse(_response(statement.body.get("response")))
            except tsp.TokenError:
                continue
            if newest is None or token.time > newest.time:
                newest = token
    return newest.not_after if newest else None


def check_digest(encoded: JSON, digest: bytes, anchors: Sequence[bytes] | None) -> dict[str, JSON]:
    """Check a response (base64) over an SM3 digest; return time, authority, ``state`` and detail.

    Raise TokenError (a ValueError) if it is over something else or does not hold.
    """
    response = _response(encoded)
    token = tsp.parse(response)
    _require_imprint(token, digest)
    state, detail = _verified(response, token, anchors)
    said: dict[str, JSON] = {"time": _rfc3339(token.time), "authority": token.authority}
    return {**said, "state": state.value, "detail": detail}


def _require_imprint(token: tsp.Token, digest: bytes) -> None:
    if (token.imprint_algorithm, token.imprint) != (tsp.SM3_OID, digest):
        raise tsp.TokenError("the token is over something else than the statement says")


def _response(encoded: JSON) -> bytes:
    if isinstance(encoded, str) and len(encoded) > 2 * tsp.MAX_RESPONSE_BYTES:
        raise tsp.TokenError("its response is longer than any is")
    try:
        return base64.b64decode(encoded if isinstance(encoded, str) else "", validate=True)
    except binascii.Error:
        raise tsp.TokenError("its response is no base64") from None


def _check(
    manifest: Manifest,
    statements: Sequence[Statement],
    statement: Statement,
    anchors: Sequence[bytes] | None,
) -> _Held:
    report = TokenReport(statement.number, statement.kind, TokenState.BROKEN)
    stamped = statement.body.get("stamped")
    if not isinstance(stamped, Mapping):
        return _Held(replace(report, detail="names nothing that it stamps"))
    try:
        response = _response(statement.body.get("response"))
        token = tsp.parse(response)
        report = replace(
            report,
            time=_rfc3339(token.time),
            authority=token.authority,
            covers=_covers(stamped, statement),
            lapses=_rfc3339(token.not_after) if token.not_after else "",
        )
        _require_imprint(token, sm3(canonical(stamped)))
        _compare(stamped, manifest, [one for one in statements if one.number <= report.covers], statement)
        state, detail = _verified(response, token, anchors)
        return _Held(replace(report, state=state, detail=detail), token.time, token.not_after)
    except (tsp.TokenError, CanonicalError) as error:
        return _Held(replace(report, detail=str(error)))


def _verified(response: bytes, token: tsp.Token, anchors: Sequence[bytes] | None) -> tuple[TokenState, str]:
    try:
        tsp.check(response, token, anchors)
    except (tsp.TokenUnsupported, tsp.TokenUntrusted) as error:
        return TokenState.NOT_VERIFIED_HERE, str(error)
    if anchors is None:
        return TokenState.NOT_VERIFIED_HERE, "nobody named its authority (--tsa-trust)"
    return TokenState.VERIFIED, ""


def _covers(stamped: Mapping[str, JSON], statement: Statement) -> int:
    number = stamped.get("number")
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < statement.number:
        raise tsp.TokenError("it does not say which statements before it are covered")
    return number


def _compare(
    stamped: Mapping[str, JSON], manifest: Manifest, covered: Sequence[Statement], statement: Statement
) -> None:
    """Compare what was stamped with what is there. Raise TokenError."""
    if stamped.get("type") != PAGE_TYPES[statement.kind]:
        raise tsp.TokenError(f"it stamps a {stamped.get('type')!r}")
    if stamped.get("recording") != manifest.recording:
        raise tsp.TokenError(f"it stamps recording {stamped.get('recording')!r}, not this one")
    whole = len(covered) == stamped.get("number")
    if statement.kind == RENEWAL:
        _compare_files(stamped.get("files"), digests_of(manifest, covered), whole=whole)
        return
    if stamped.get("manifest") != named(manifest.page.digest):
        raise tsp.TokenError("it stamps another manifest than the one that is there")
    last = named(covered[-1].page.digest) if covered else None
    if whole and stamped.get("statement") != last:
        raise tsp.TokenError(
            f"it stamps another statement {stamped.get('number')} than the one that is there"
        )


def _compare_files(listed: JSON, present: Mapping[str, str], *, whole: bool) -> None:
    stamped = {
        str(one.get("name")): str(one.get("sm3"))
        for one in (listed if isinstance(listed, list) else [])
        if isinstance(one, Mapping)
    }
    differ = {name for name in stamped.keys() & present.keys() if stamped[name] != present[name]}
    differ |= present.keys() - stamped.keys()
    if whole:
        differ |= stamped.keys() - present.keys()
    if differ:
        raise tsp.TokenError(f"it stamps another package: {', '.join(sorted(differ)[:3])} differ")


def _rfc3339(when: datetime) -> str:
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
