"""Fetch a composite or single picture: decrypted on its way, never into a file, byte ranges included."""

from __future__ import annotations

from aiohttp import web

from mediaserver.api import ranges
from mediaserver.api.auth import recording_of
from mediaserver.api.problems import Problem
from mediaserver.api.routing import Access, Call, Query, Route, answer
from mediaserver.recordings.reading import FileGone, beside, open_file
from recorder.catalog import Entry, FileEntry
from recorder.sealed import SealedError
from recorder.sites import SiteError

BLOCK = 512 * 1024
"""Bytes decrypted at a time, in a thread; about 1 ms of SM4."""
RETRY_AFTER_S = 1


async def get_file(call: Call) -> web.StreamResponse:
    """Serve a file whole or in part; while it is being composed, say how far that is (202)."""
    entry = await recording_of(call)
    name = call.path("name")
    purpose = call.request.query.get("purpose", "playback")
    if not 1 <= len(purpose) <= 64 or not purpose.isprintable():
        raise Problem("bad_request", "purpose must have 1 to 64 printable characters")
    file = next((one for one in entry.files if one.name == name), None)
    if file is None:
        return await _not_yet(call, entry, name)
    return await _serve(call, entry, file, purpose)


async def _not_yet(call: Call, entry: Entry, name: str) -> web.Response:
    finishing = call.control.finishing
    copy = call.control.copies.state(entry, name)
    if copy is not None and copy["state"] == "waiting":
        headers = {"Retry-After": str(RETRY_AFTER_S), "Cache-Control": "no-store"}
        return answer({"recording": entry.id, "file": name, **copy}, status=202, headers=headers)
    if entry.state == "failed" or not finishing.will_make(entry, name):
        raise Problem("file_not_found", "the recording has no file of this name")
    if entry.composing["state"] == "failed":
        detail = f"composing failed: {entry.composing.get('detail')}"
        raise Problem("file_not_found", detail, composing=entry.composing)
    if not entry.active:
        await finishing.want(entry)
    composition = finishing.composition(entry.id)
    progress = composition.progress if composition is not None else None
    state = "running" if composition is not None else "waiting"
    return answer(
        {"recording": entry.id, "file": name, "state": state, "progress": progress},
        status=202,
        headers={"Retry-After": str(RETRY_AFTER_S), "Cache-Control": "no-store"},
    )


async def _serve(call: Call, entry: Entry, file: FileEntry, purpose: str) -> web.StreamResponse:
    request = call.request
    etag = f'"{file.plain_sm3}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-store",
        "Content-Disposition": f'inline; filename="{file.name}"',
        "Content-Type": file.media_type,
    }
    wanted = request.headers.get("If-Match")
    if wanted is not None and not ranges.etag_listed(wanted, etag, weak=False):
        raise Problem("etag_mismatch", "the file is another one", headers={"ETag": etag})
    known = request.headers.get("If-None-Match")
    if known is not None and ranges.etag_listed(known, etag, weak=True):
        return web.Response(status=304, headers={"ETag": etag, "Cache-Control": "private, no-store"})
    asked = request.headers.get("Range")
    if_range = request.headers.get("If-Range")
    if if_range is not None and if_range.strip() != etag:
        asked = None
    size = file.plain_bytes
    try:
        part = ranges.parse_range(asked, size)
    except ranges.RangeNotSatisfiable as error:
        raise Problem(
            "range_not_satisfiable",
            f"the file has {size} bytes",
            headers={"Content-Range": f"bytes */{size}"},
        ) from error
    start, end = part or (0, size)
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    response = web.StreamResponse(status=206 if part is not None else 200, headers=headers)
    if request.method == "HEAD":
        await response.prepare(request)
        return response
    recordings = call.control.recordings
    path = recordings.directory(entry) / file.path
    key = await recordings.data_key(entry, purpose=purpose, actor=call.actor)
    # The first block is opened before the answer begins: a damaged file is a clear 500, not a broken stream.
    try:
        reader, block = await open_file(
            recordings.directory(entry),
            recordings.uploads.sites,
            entry,
            file,
            key,
            start,
            min(BLOCK, end - start),
        )
    except FileGone as error:
        raise Problem("file_not_found", f"the file is not to be had: {error}") from error
    except SealedError as error:
        raise Problem("internal", f"the file is damaged: {error}") from error
    await call.control.events.append_about(
        entry,
        "audit.file_read",
        {
            "file": file.name,
            "purpose": purpose,
            "from": start,
            "to": end,
        },
        call.actor,
    )
    try:
        await response.prepare(request)
        at = start
        while block:
            await response.write(block)
            at += len(block)
            size = min(BLOCK, end - at)
            block = await beside(path, recordings.uploads.sites, reader.read, at, size) if at < end else b""
    except (SealedError, SiteError):  # cut the connection: the client must not take the part for the whole
        if request.transport is not None:
            request.transport.abort()
        return response
    finally:
        reader.close()
    await response.write_eof()
    return response


_QUERY = (Query("purpose", "why it is fetched; goes into the audit. Default playback"),)
_CODES = ("recording_not_found", "file_not_found", "range_not_satisfiable", "etag_mismatch")

ROUTES = (
    Route(
        "GET",
        "/v1/recordings/{recording}/files/{name}",
        get_file,
        Access.READER,
        "Fetch a file, whole or by Range; 202 with progress while it is composed",
        answer="video/mp4",
        query=_QUERY,
        codes=_CODES,
    ),
    Route(
        "HEAD",
        "/v1/recordings/{recording}/files/{name}",
        get_file,
        Access.READER,
        "Ask for a file's size and ETag",
        query=_QUERY,
        codes=_CODES,
    ),
)
