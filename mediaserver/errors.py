"""What the server refuses to do, with the stable code that the API answers (mediaserver/api/problems.py)."""

from __future__ import annotations

from typing import Any


class Refused(Exception):
    """A request that cannot be carried out as things are; ``members`` go into the problem."""

    def __init__(self, code: str, detail: str, **members: Any) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.members = members
