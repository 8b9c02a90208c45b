"""Which files of a recording lie at its object stores alone, because they were removed from the disk.

Local, unsigned and no proof of anything: it only says where to look. Verification does not read it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from recorder.atomic import replace_file

AT_SITES = ".at-sites.json"


def names_at_sites(directory: Path) -> frozenset[str]:
    """Name the files (paths below ``directory``) that are at the sites alone; empty where all are here."""
    try:
        page: Any = json.loads((directory / AT_SITES).read_bytes())
    except (FileNotFoundError, ValueError):
        return frozenset()
    names = page.get("files") if isinstance(page, Mapping) else None
    return frozenset(str(name) for name in names) if isinstance(names, list) else frozenset()


def note_at_sites(directory: Path, names: Collection[str]) -> None:
    """Write down which files are at the sites alone; none removes the note. Raise OSError."""
    if names:
        replace_file(directory / AT_SITES, json.dumps({"files": sorted(names)}).encode())
    else:
        (directory / AT_SITES).unlink(missing_ok=True)
