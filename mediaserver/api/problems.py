"""Errors over HTTP: ``application/problem+json`` (RFC 9457) with a stable ``code``.

Clients branch on ``code``; ``detail`` is for people and may change. Every code is listed here and in
docs/api.md.
"""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

CODES: dict[str, tuple[int, str]] = {
    "bad_request": (400, "The request is malformed"),
    "json_invalid": (400, "The body is not strict JSON"),
    "source_unknown": (400, "The track source is not known"),
    "sdp_invalid": (400, "The SDP cannot be read"),
    "token_missing": (401, "A token is required"),
    "token_invalid": (401, "The token does not hold"),
    "token_expired": (401, "The token has expired"),
    "token_revoked": (401, "The token was revoked"),
    "code_invalid": (401, "The one-time code is wrong, used or expired"),
    "forbidden": (403, "Not allowed with this token"),
    "sealed_only": (403, "This server seals recordings and cannot open them"),
    "not_found": (404, "No such resource"),
    "room_not_found": (404, "No such room"),
    "participant_not_found": (404, "No such participant"),
    "session_not_found": (404, "No such session"),
    "recording_not_found": (404, "No such recording"),
    "file_not_found": (404, "No such file"),
    "method_not_allowed": (405, "The resource does not know this method"),
    "not_acceptable": (406, "None of the accepted media types can be served"),
    "room_exists": (409, "The room exists with other settings"),
    "recording_active": (409, "This business number is being recorded"),
    "composite_exists": (409, "The recording has a file of this name"),
    "attempt_required": (409, "This business number was recorded before"),
    "former_keys_missing": (409, "The settings name no former keys"),
    "recording_state": (409, "The recording's state does not allow this"),
    "retention_running": (409, "The retention of these files is not over"),
    "retention_unknown": (409, "No such retention"),
    "archive_missing": (409, "There is no archive composite to outlive the originals"),
    "on_hold": (409, "A legal hold stands"),
    "no_hold": (409, "No such hold stands"),
    "no_proposal": (409, "Nothing is proposed"),
    "other_proposal": (409, "Another statement than the named one proposes it"),
    "proposal_stands": (409, "Something is proposed already"),
    "second_person": (403, "A second person is needed"),
    "review_state": (409, "The state of review does not allow this"),
    "reviewer_is_agent": (403, "Nobody reviews a recording he took part in as agent"),
    "destroyed": (410, "The recording was destroyed"),
    "resume_expired": (410, "The signalling session is over"),
    "room_closed": (410, "The room is closing"),
    "part_exists": (409, "This part of the recording is on disk already"),
    "idempotency_in_progress": (409, "The first request with this key is still at work"),
    "etag_mismatch": (412, "If-Match names another state"),
    "body_too_large": (413, "The body is too large"),
    "media_type_unsupported": (415, "The body's media type is not supported"),
    "range_not_satisfiable": (416, "The range lies outside the file"),
    "body_invalid": (422, "The body does not fit its schema"),
    "codec_unknown": (422, "The room's codec list names one that is not known"),
    "codec_mismatch": (409, "No codec is common to both sides"),
    "idempotency_key_reused": (422, "The key was used for another request"),
    "precondition_required": (428, "If-Match is required"),
    "rate_limited": (429, "Too many requests"),
    "internal": (500, "The server failed"),
    "method_unknown": (501, "The media worker is of another version"),
    "recording_failed": (502, "The recording could not be started"),
    "keys_unavailable": (503, "The keys that seal and sign do not answer"),
    "worker_unavailable": (503, "No media worker answers"),
    "worker_full": (503, "The media worker takes no more"),
    "worker_draining": (503, "The media worker is going down"),
    "room_full": (503, "The room takes no more sessions"),
    "draining": (503, "The server is going down and takes nothing new"),
    "audit_unavailable": (503, "The audit log cannot be written"),
    "disk_full": (507, "Too little free disk space"),
}

TYPE_PREFIX = "https://shuanglu.dev/problems/"


class Problem(Exception):
    """An answer with an error. ``code`` is one of CODES, or comes from a media worker with its ``status``."""

    def __init__(
        self,
        code: str,
        detail: str = "",
        *,
        status: int | None = None,
        headers: dict[str, str] | None = None,
        **members: Any,
    ) -> None:
        known = CODES.get(code)
        self.code = code
        self.status = status or (known[0] if known else 500)
        self.title = known[1] if known else code.replace("_", " ")
        self.detail = detail
        self.headers = headers or {}
        self.members = members
        super().__init__(f"{self.status} {code}: {detail}")

    def to_json(self) -> dict[str, Any]:
        """Give the problem object."""
        return {
            "type": TYPE_PREFIX + self.code,
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            **self.members,
        }

    def response(self) -> web.Response:
        """Give the answer to send."""
        return web.Response(
            status=self.status,
            headers=self.headers,
            body=json.dumps(self.to_json(), ensure_ascii=False).encode(),
            content_type="application/problem+json",
        )


def from_http_error(error: web.HTTPException) -> Problem:
    """Give aiohttp's own refusals the same shape."""
    headers = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
    codes = {
        404: "not_found",
        405: "method_not_allowed",
        413: "body_too_large",
        415: "media_type_unsupported",
    }
    code = codes.get(error.status, "bad_request" if error.status < 500 else "internal")
    detail = error.text if error.status == 413 and error.text else ""
    return Problem(code, detail, status=error.status, headers=headers)
