"""Health, metrics, the page and the description of the API itself."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

from aiohttp import web

from mediaserver.api import models
from mediaserver.api.openapi import describe
from mediaserver.api.problems import Problem
from mediaserver.api.routing import Access, Call, Route, answer

ROUTES_KEY: web.AppKey[tuple[Route, ...]] = web.AppKey("routes", tuple[Route, ...])
PAGE = Path(__file__).parent.parent / "page"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; connect-src 'self'; font-src 'self'; manifest-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


async def healthz(call: Call) -> web.Response:
    """Say that the process lives."""
    return answer(models.Health(status="ok"))


async def readyz(call: Call) -> web.Response:
    """Say whether new calls can be taken."""
    checks = await call.control.checks()
    if call.control.draining:
        return answer(models.Health(status="draining", checks=checks), status=503)
    ready = all(checks.values())
    return answer(
        models.Health(status="ok" if ready else "unready", checks=checks), status=200 if ready else 503
    )


async def metrics(call: Call) -> web.Response:
    """Give metrics for Prometheus; no label names a room, a person or a transaction."""
    text = await call.control.metrics_text()
    return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def openapi(call: Call) -> web.Response:
    """Describe the API (OpenAPI 3.1), made from the routes and models themselves."""
    routes: tuple[Route, ...] = call.request.app[ROUTES_KEY]
    return answer(describe(routes, importlib.metadata.version("shuanglu")))


async def page(call: Call) -> web.StreamResponse:
    """Serve a file of the page."""
    name = call.request.match_info.get("name", "index.html")
    path = (PAGE / name).resolve()
    if not path.is_relative_to(PAGE.resolve()) or not path.is_file() or path.name.startswith("."):
        raise Problem("not_found", "no such page")
    headers: dict[str, Any] = {"Cache-Control": "no-cache"}
    if path.suffix == ".html":
        headers["Content-Security-Policy"] = PAGE_POLICY
    if path.suffix in (".js", ".mjs"):
        headers["Content-Type"] = "text/javascript; charset=utf-8"
    return web.FileResponse(path, headers=headers)


ROUTES = (
    Route("GET", "/healthz", healthz, Access.PUBLIC, "Does the process live?", answer=models.Health),
    Route("GET", "/readyz", readyz, Access.PUBLIC, "Are new calls taken?", answer=models.Health),
    Route("GET", "/metrics", metrics, Access.PUBLIC, "Metrics for Prometheus", answer="text/plain"),
    Route("GET", "/openapi.json", openapi, Access.PUBLIC, "This description"),
    Route("GET", "/", page, Access.PUBLIC, "The page", answer="text/html"),
    Route("GET", "/{name}", page, Access.PUBLIC, "Files of the page", answer="text/html"),
)
