"""What a benchmark's report looks like: tables in the terminal, a page with plots."""

from bench.report.page import html
from bench.report.terminal import tables

__all__ = ["html", "tables"]
