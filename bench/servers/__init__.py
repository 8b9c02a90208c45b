"""The servers that are compared, each pinned to its cores and driven the way its own clients do it."""

from __future__ import annotations

from bench.servers.base import Server, ServerError
from bench.servers.janus import Janus
from bench.servers.other import Other
from bench.servers.ours import Ours
from bench.servers.stock import Stock

__all__ = ["Janus", "Other", "Ours", "Server", "ServerError", "Stock", "named"]


def named(name: str, cores: set[int], *, record: bool = False, workers: int = 1) -> Server:
    """Make the server of a name: ``ours``, ``ours-python``, ``janus``, ``stock``, or an http(s) address with
    ``{room}`` and ``{identity}`` in it. Raises ValueError for anything else.
    """
    if name in ("ours", "ours-python"):
        forwarder = "python" if name == "ours-python" else "native"
        return Ours(cores, forwarder=forwarder, record=record, workers=workers)
    if name == "janus":
        return Janus(cores, record=record)
    if name in ("stock", "aiortc"):
        return Stock(cores)
    if name.startswith(("http://", "https://")):
        return Other(name)
    raise ValueError(f"no server is called {name!r}: ours, ours-python, janus, stock or a WHIP address")
