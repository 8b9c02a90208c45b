"""How long a recording is kept by what its start said and by the settings' policies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mediaserver.errors import Refused
from recorder.catalog import Entry
from recorder.custody import KINDS, after, utc_ns

if TYPE_CHECKING:
    from mediaserver.settings import Retention


def begin_until(entry: Entry, policies: Mapping[str, Mapping[Any, str]]) -> dict[str, int]:
    """Work out until when a recording is kept by what its start said, else by the policy it names."""
    wanted = entry.details.get("retention")
    if not wanted or entry.stopped_ns is None:
        return {}
    if wanted.get("until") is not None:
        at = utc_ns(wanted["until"])
        return dict.fromkeys(KINDS, at)
    periods = policies.get(str(wanted["basis"]), {})
    return {str(kind): after(entry.stopped_ns, period) for kind, period in periods.items()}


def wanted_retention(asked: dict[str, Any] | None, settings: Retention) -> dict[str, Any] | None:
    """Say what retention a recording begins with: what its start asks for, else the default policy.

    Raises Refused for a basis without a time that is no policy.
    """
    if asked is None:
        return {"basis": settings.default, "until": None} if settings.default is not None else None
    if asked.get("until") is None and asked["basis"] not in settings.policies:
        known = ", ".join(settings.policies) or "none"
        raise Refused("retention_unknown", f"no policy {asked['basis']} (there are: {known}); or give until")
    return asked
