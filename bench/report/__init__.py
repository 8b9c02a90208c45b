"""What a benchmark's report looks like: a table in the terminal, a page with plots."""

from bench.report.page import html
from bench.report.terminal import table

__all__ = ["html", "table"]
