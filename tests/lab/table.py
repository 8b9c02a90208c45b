"""The figures of a run: a row each, printed as a table at the end and written as JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure and what was wished for."""

    scenario: str
    figure: str
    value: float | None
    """None: it never came."""
    unit: str
    goal: float
    at_most: bool
    """True: the value shall be ``goal`` or less; False: or more."""
    server: str = "ours"
    """``ours``, or which other server stood in its place."""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def reached(self) -> bool:
        """Say whether the goal is reached."""
        if self.value is None:
            return False
        return self.value <= self.goal if self.at_most else self.value >= self.goal


class Table:
    """All rows of a run."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(
        self,
        scenario: str,
        figure: str,
        value: float | None,
        unit: str,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        server: str = "ours",
        **details: Any,
    ) -> Row:
        """Add a figure with its goal; returns the row, whose ``reached`` a test asserts where it is held."""
        goal = at_most if at_most is not None else at_least
        assert goal is not None
        rounded = None if value is None else round(value, 3)
        row = Row(scenario, figure, rounded, unit, goal, at_most is not None, server, details)
        self.rows.append(row)
        print(json.dumps(asdict(row), ensure_ascii=False), flush=True)
        return row

    def find(self, scenario: str, figure: str, server: str = "ours") -> float | None:
        """Return a figure of this run, None if there is none."""
        found = [
            row for row in self.rows if (row.scenario, row.figure, row.server) == (scenario, figure, server)
        ]
        return found[-1].value if found else None

    def text(self) -> str:
        """Return the table for people: a line for each figure of ours, with the goal and Janus' beside it."""
        words = [("scenario", "figure", "goal", "ours", "Janus", "")]
        for row in self.rows:
            if row.server != "ours":
                continue
            beside = self.find(row.scenario, row.figure, "janus")
            goal = f"{'≤' if row.at_most else '≥'} {row.goal:g} {row.unit}"
            ours = "never" if row.value is None else f"{row.value:g} {row.unit}"
            theirs = "" if beside is None else f"{beside:g} {row.unit}"
            verdict = "reached" if row.reached else "NOT REACHED"
            words.append((row.scenario, row.figure, goal, ours, theirs, verdict))
        widths = [max(len(line[column]) for line in words) for column in range(6)]
        return "\n".join(
            "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
            for line in words
        )

    def write(self, seed: int) -> Path:
        """Write ``LAB_OUT`` (default out/lab.json); returns its path."""
        path = Path(os.environ.get("LAB_OUT") or ROOT / "out" / "lab.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{**asdict(row), "reached": row.reached} for row in self.rows]
        path.write_text(json.dumps({"seed": seed, "rows": rows}, ensure_ascii=False, indent=1) + "\n")
        return path
