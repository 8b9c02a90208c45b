"""Credentials for a TURN server beside us, good for a limited time (draft-uberti-behave-turn-rest-00).

The TURN server (coturn with ``use-auth-secret``) shares a secret with us and asks nobody: the user name
says until when it is good, the password proves that we gave it.
"""

from __future__ import annotations

import base64
import hmac
from urllib.parse import quote

from mediaserver.network_settings import Turn

MAX_NAME = 200
"""Characters of the identity in a user name; the whole may have 508 bytes (RFC 8489 section 14.3)."""


def credentials(secret: bytes, identity: str, expires_s: int) -> tuple[str, str]:
    """Return user name and password of ``identity``, good until ``expires_s`` (seconds of Unix time)."""
    username = f"{expires_s}:{quote(identity, safe='')[:MAX_NAME]}"
    return username, base64.b64encode(hmac.digest(secret, username.encode(), "sha1")).decode()


def servers(turn: Turn, identity: str, now_s: float) -> list[dict[str, str]]:
    """Return a client's ICE servers, ``{urls}`` or ``{urls, username, credential}`` (RTCIceServer)."""
    told = []
    for url in turn.urls:
        one = {"urls": url}
        if not url.startswith("stun:") and turn.secret is not None:
            secret = turn.secret.get_secret_value().encode()
            username, password = credentials(secret, identity, int(now_s) + turn.ttl_s)
            one |= {"username": username, "credential": password}
        told.append(one)
    return told


def links(turn: Turn, identity: str, now_s: float) -> str:
    """Return the ``Link`` header that tells a client its ICE servers (RFC 9725 section 4.6); empty: none."""
    told = []
    for one in servers(turn, identity, now_s):
        link = f'<{one["urls"]}>; rel="ice-server"'
        if "username" in one:
            link += f'; username="{one["username"]}"; credential="{one["credential"]}"'
            link += '; credential-type="password"'
        told.append(link)
    return ", ".join(told)
