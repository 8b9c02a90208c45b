"""What of a site's objects may come to this disk: a store may list any name and give any bytes."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from recorder.canonical import CanonicalError, as_int
from recorder.keys import SIDECAR, SIDECAR_TYPE
from recorder.keys.succession import successors
from recorder.manifest import MANIFEST, SEALED_PART
from recorder.signed import SignedError, open_page, read_page
from recorder.sites.contents import has_end
from recorder.statements import STATEMENTS
from recorder.storage import SegmentName

_ABOVE = tuple(
    re.compile(pattern)
    for pattern in (
        r"recordings",
        r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}",
        r"\d{4}",
        r"\d{2}",
        r"\d{2}",
        r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    )
)
_STATEMENT = re.compile(r"\d{6,}(\.json|(\.[A-Za-z0-9_-]+)?\.sealed)")
_FILE = re.compile(r"[^/.\x00-\x1f][^/\x00-\x1f]*\.sealed")
_COMPARE_BYTES = 1 << 20


def belongs(name: str) -> bool:
    """Tell whether a path below a site's address is one of a recording's own files (docs/container.md).

    The address may be the recording's, or any level of ``recordings/{tenant}/{yyyy}/{mm}/{dd}/{id}`` above.
    """
    *above, folder, last = ("", *PurePosixPath(name).parts)
    inner = {
        "segments": lambda: SegmentName.parse(last) is not None,
        STATEMENTS: lambda: _STATEMENT.fullmatch(last) is not None,
        "files": lambda: _FILE.fullmatch(last) is not None,
    }.get(folder)
    if inner is None:
        holder = [*above, folder][1:]
        known = last in (SIDECAR, MANIFEST, SEALED_PART)
    else:
        holder, known = above[1:], inner()
    # From the recording upwards, as far as the address leaves it open.
    return (
        known
        and len(holder) <= len(_ABOVE)
        and all(
            pattern.fullmatch(part)
            for pattern, part in zip(_ABOVE[len(_ABOVE) - len(holder) :], holder, strict=True)
        )
    )


def why_kept(here: Path, size: int) -> str | None:
    """Say why a file that is here stays, whatever ``size`` bytes a site has of it; None if
    ``why_not_instead`` is to be asked. Raise OSError.
    """
    if here.name == SIDECAR:
        return None
    have = here.stat().st_size
    if SegmentName.parse(here.name) is not None and have < size and not has_end(here):
        return None
    return f"it is here with {have} bytes, there with {size}, and is never replaced"


def why_not_instead(here: Path, came: Path) -> str | None:
    """Say why what came from a site may not replace the file that is here; None if it may.

    A segment may have grown; ``keys.json`` may be of a later revision, by the same signer or one it
    vouches for. Raise OSError.
    """
    if here.name != SIDECAR:
        return None if _begins_with(came, here) else "it is not the segment here, grown"
    try:
        old = open_page(read_page(here), page_type=SIDECAR_TYPE)
    except SignedError as error:
        return f"the one here {error}: remove it first"
    try:
        new = open_page(read_page(came), page_type=SIDECAR_TYPE)
        revisions = as_int(old.fields["revision"]), as_int(new.fields["revision"])
    except SignedError as error:
        return f"the one there {error}"
    except (KeyError, CanonicalError):
        return "the one there has no revision"
    if any(old.fields.get(member) != new.fields.get(member) for member in ("recording", "key_id", "suite")):
        return "the one there is of another recording or key"
    if revisions[1] <= revisions[0]:
        return f"it is of revision {revisions[1]} there, {revisions[0]} here"
    signer = old.certificate
    if (
        new.certificate.public_key.point != signer.public_key.point
        and new.certificate.fingerprint not in successors(new.fields, {signer.fingerprint: signer})
    ):
        return "the one there is signed by a key that the signer here does not vouch for"
    return None


def _begins_with(longer: Path, shorter: Path) -> bool:
    with longer.open("rb") as one, shorter.open("rb") as other:
        while part := other.read(_COMPARE_BYTES):
            if one.read(len(part)) != part:
                return False
    return True
