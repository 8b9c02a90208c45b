"""Ask an HTTP server of the operator's for something small: a time-stamp, a revocation list.

Redirects are not followed, answers are bounded in size and time, and nothing secret may be in the address.
"""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any


class FetchError(Exception):
    """There is no usable answer; names the address and says why."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args: Any, **_named: Any) -> None:
        """Follow none."""


_OPENER = urllib.request.build_opener(_NoRedirect)


def check_url(url: str) -> str:
    """Return ``url`` if it is http or https, names a host and holds no password. Raise ValueError."""
    try:
        parts = urllib.parse.urlsplit(url)
        port_is_one = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_is_one = urllib.parse.urlsplit(""), False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_one or not url.isascii():
        raise ValueError("must be an http:// or https:// address")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must hold no user name or password: it is logged")
    return url


def fetch(
    url: str, *, timeout_s: float, max_bytes: int, body: bytes | None = None, body_type: str = ""
) -> tuple[bytes, str]:
    """GET ``url``, or POST ``body`` to it. Return the answer and its content type without parameters.

    Blocks up to ``timeout_s`` for each step of connecting and for the whole answer's body. Raise FetchError
    for any answer but 200, one over ``max_bytes`` or too slow, and where nothing answers.
    """
    try:
        check_url(url)
    except ValueError as error:
        raise FetchError(f"{url}: {error}") from None
    headers = {"Content-Type": body_type} if body is not None else {}
    request = urllib.request.Request(url, data=body, headers=headers)  # noqa: S310  its scheme is checked
    deadline = time.monotonic() + timeout_s
    try:
        with _OPENER.open(request, timeout=timeout_s) as answer:
            if answer.status != 200:
                raise FetchError(f"{url} answered {answer.status}")
            received = bytearray()
            while part := answer.read1(65536):
                received += part
                if len(received) > max_bytes:
                    raise FetchError(f"{url} answered more than {max_bytes} bytes")
                if time.monotonic() > deadline:
                    raise FetchError(f"{url} did not finish its answer within {timeout_s:g} s")
            announced = answer.headers.get("Content-Length", "")
            if announced.isdigit() and int(announced) != len(received):
                raise FetchError(f"{url} ended its answer after {len(received)} of {announced} bytes")
            return bytes(received), answer.headers.get_content_type()
    except urllib.error.HTTPError as error:
        raise FetchError(f"{url} answered {error.code}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise FetchError(f"{url} does not answer: {reason or type(reason).__name__}") from None
