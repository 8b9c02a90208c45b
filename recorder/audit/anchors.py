"""Anchors: what ties recordings to the audit log, and the log to the outside.

Two kinds of ANCHOR frames. ``heads`` frames hold *items* as they come: a recording began; a running
journal was signed up to here; its manifest has this digest; its statement n has that one.
``shuanglu.audit-anchor.v1`` frames are signed pages, hourly for each tenant: a Merkle root (RFC 6962, SM3)
over the newest items since the tenant's page before, the head of the log's chain, and the digest of that page
before. A page kept elsewhere (a webhook's receiver, a time-stamp) proves the log up to itself against whoever
holds log and signing key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from recorder.audit.format import integer
from recorder.canonical import JSON, CanonicalError, canonical
from recorder.checkpoint import merkle_tree
from recorder.gm.sm3 import named, parse_named
from recorder.signed import SignedError, SignedPage, open_page

HEADS_TYPE = "heads"
PAGE_TYPE = "shuanglu.audit-anchor.v1"
BEGIN_TYPE = "begin"
ITEMS_IN_FRAME = 120
"""Of at most 300 bytes each."""
_KINDS = ("begun", "failed", "head", "manifest", "statement")

Item = Mapping[str, JSON]


def begun(recording: str, at: str) -> Item:
    """Return the item that says a recording began."""
    return {"recording": recording, "begun": at}


def failed(recording: str, code: str) -> Item:
    """Return the item that says a recording ended without manifest."""
    return {"recording": recording, "failed": code[:64]}


def head(recording: str, *, part: int, index: int, record: int, offset: int, digest: bytes, at: str) -> Item:
    """Return the item of a running journal's checkpoint.

    ``record`` and ``offset`` are those of the CHECKPOINT record in the segment, ``digest`` the SM3 of all
    bytes before it.
    """
    return {
        "recording": recording,
        "part": part,
        "index": index,
        "record": record,
        "offset": offset,
        "head": named(digest),
        "at": at,
    }


def manifest(recording: str, digest: bytes) -> Item:
    """Return the item of a signed manifest, by its page's digest."""
    return {"recording": recording, "manifest": named(digest)}


def statement(recording: str, number: int, digest: bytes) -> Item:
    """Return the item of a statement, by its page's digest."""
    return {"recording": recording, "statement": number, "sm3": named(digest)}


def kind_of(item: Item) -> str:
    """Say which kind an item is. Raise CanonicalError for none of them."""
    kind = next((one for one in _KINDS if one in item), "")
    if not kind or not isinstance(item.get("recording"), str):
        raise CanonicalError(f"an anchor's item names {sorted(item)}")
    return kind


def heads_frames(tenant: str, at: str, items: Sequence[Item]) -> list[dict[str, JSON]]:
    """Return the frames that hold items, each short enough to be kept by who scans a file (64 KiB)."""
    return [
        {"type": HEADS_TYPE, "tenant": tenant, "at": at, "recordings": items[first : first + ITEMS_IN_FRAME]}
        for first in range(0, len(items), ITEMS_IN_FRAME)
    ]


def items_of(frame: Mapping[str, JSON]) -> list[Item]:
    """Return the items of a ``heads`` frame, their form checked. Raise CanonicalError."""
    listed = frame.get("recordings")
    if not isinstance(listed, list) or not isinstance(frame.get("tenant"), str):
        raise CanonicalError("a heads frame has tenant and recordings")
    for item in listed:
        if not isinstance(item, Mapping):
            raise CanonicalError("an anchor's item is an object")
        kind = kind_of(item)
        if kind in ("head", "manifest"):
            parse_named(str(item[kind]))
        if kind == "head":
            for name in ("part", "index", "record", "offset"):
                integer(item, name)
        if kind == "statement":
            integer(item, "statement")
            parse_named(str(item.get("sm3")))
    return listed


@dataclass
class Pending:
    """What a tenant's next page is about: the newest item of each kind of each recording."""

    since: tuple[int, int]
    """(file, record) behind which its items lie."""
    items: dict[tuple[str, str], Item] = field(default_factory=dict)

    def add(self, items: Sequence[Item]) -> None:
        """Take items in, newer ones replacing older."""
        for item in items:
            self.items[str(item["recording"]), kind_of(item)] = item

    def leaves(self) -> list[bytes]:
        """Return the leaves: canonical bytes of the items, by recording and kind."""
        return [canonical(self.items[name]) for name in sorted(self.items)]

    def root(self) -> bytes | None:
        """Return the Merkle root over the leaves, None if there are none."""
        leaves = self.leaves()
        return merkle_tree(leaves)[0] if leaves else None


@dataclass(frozen=True, slots=True)
class Tenant:
    """The last page of a tenant."""

    number: int = 0
    digest: bytes | None = None


def page_fields(
    tenant: str, node: str, before: Tenant, pending: Pending, *, chain: Mapping[str, JSON], at: str
) -> dict[str, JSON]:
    """Return the members of a tenant's next page, to be signed. ``chain`` says how the log stands."""
    root = pending.root()
    return {
        "type": PAGE_TYPE,
        "tenant": tenant,
        "node": node,
        "number": before.number + 1,
        "previous": named(before.digest) if before.digest is not None else None,
        "at": at,
        "since": {"file": pending.since[0], "record": pending.since[1]},
        "leaves": len(pending.items),
        "root": named(root) if root is not None else None,
        "chain": chain,
    }


def open_anchor_page(payload: bytes) -> SignedPage:
    """Open a tenant's page and check form and signature. Raise SignedError."""
    page = open_page(payload, page_type=PAGE_TYPE)
    try:
        for name in ("number", "leaves"):
            integer(page.fields, name)
        since, chain = page.fields.get("since"), page.fields.get("chain")
        if not isinstance(since, Mapping) or not isinstance(chain, Mapping):
            raise CanonicalError("has no since or chain")
        for holder, names in ((since, ("file", "record")), (chain, ("file", "record", "bytes"))):
            for name in names:
                integer(holder, name)
        parse_named(str(chain.get("head")))
    except ValueError as error:
        raise SignedError(str(error)) from None
    return page


@dataclass
class Anchored:
    """What the log says of one recording. Of each part only the last head: it chains those before it."""

    recording: str
    tenant: str
    begun: str = ""
    failed: str = ""
    manifest: str = ""
    """``sm3:…``; empty while none was signed."""
    heads: dict[int, Item] = field(default_factory=dict)
    statements: dict[int, str] = field(default_factory=dict)

    @property
    def last_at(self) -> str:
        """Time of the last head; empty if there is none."""
        return max((str(item.get("at", "")) for item in self.heads.values()), default="")

    def take(self, item: Item) -> None:
        """Take an item in. Of two heads of a part the one further on stays; of signed pages the first digest.

        A page is signed once: another digest later is of another page put in its place.
        """
        kind = kind_of(item)
        if kind == "head":
            part = integer(item, "part")
            known = self.heads.get(part)
            if known is None or _place(known) < _place(item):
                self.heads[part] = item
        elif kind == "statement":
            self.statements.setdefault(integer(item, "statement"), str(item["sm3"]))
        elif kind == "manifest":
            self.manifest = self.manifest or str(item["manifest"])
        else:
            setattr(self, kind, str(item[kind]))


def _place(item: Item) -> tuple[int, int]:
    return integer(item, "index"), integer(item, "offset")
