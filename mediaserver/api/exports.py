"""Export a recording for the court: one zip, opened and packed while it is sent."""

from __future__ import annotations

from aiohttp import web

from mediaserver.api import models
from mediaserver.api.auth import recording_of
from mediaserver.api.routing import Access, Call, Route
from mediaserver.recordings.evidence import EvidenceProblem
from mediaserver.recordings.exporting import ReceiverGone


async def export(call: Call) -> web.StreamResponse:
    """Send the package; the statement and the audit log say who has it, and why."""
    entry = await recording_of(call)
    body: models.ExportRequest = call.body
    headers = {
        "Content-Type": "application/zip",
        "Content-Disposition": f'attachment; filename="{entry.id}.zip"',
        "Cache-Control": "private, no-store",
    }
    response = web.StreamResponse(headers=headers)

    async def send(data: bytes) -> None:
        if not response.prepared:
            told = {"files": body.files, "operator": body.operator}
            await call.control.events.append_about(entry, "audit.exported", told, call.actor)
            await response.prepare(call.request)
        await response.write(data)

    try:
        await call.control.exporting.export(
            entry,
            send,
            actor=call.actor,
            operator=body.operator,
            reason=body.reason,
            names=body.files,
            sealed=body.sealed,
            report=body.report,
        )
    except (EvidenceProblem, ReceiverGone):
        if not response.prepared:
            raise
        if call.request.transport is not None:  # cut off: the beginning of a zip must not pass for all of it
            call.request.transport.abort()
        return response
    await response.write_eof()
    return response


ROUTES = (
    Route(
        "POST",
        "/v1/recordings/{recording}/export",
        export,
        Access.SERVER,
        "Get the package for the court: files in plain text with all that proves them, as a zip",
        body=models.ExportRequest,
        answer="application/zip",
        codes=("recording_not_found", "recording_state", "file_not_found", "destroyed", "sealed_only"),
    ),
)
