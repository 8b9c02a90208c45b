"""Object stores that hold recordings: S3-compatible ones and directories, the first one's replicas
among them.

A site has the layout of a data directory (``recordings/{tenant}/{yyyy}/{mm}/{dd}/{id}/…``), so what
lies there can be fetched whole, verified and served. Only sealed bytes and signed pages ever go to a
site. docs/storage.md says what is promised.
"""

from recorder.sites.config import SiteConfig
from recorder.sites.contents import Outgoing, closed_files, signed_digests
from recorder.sites.mirror import fetch, push, recordings_at, send
from recorder.sites.removal import Removal, remove_from_sites
from recorder.sites.site import Site, SiteError, Stored
from recorder.sites.source import SiteBytes

__all__ = [
    "Outgoing",
    "Removal",
    "Site",
    "SiteBytes",
    "SiteConfig",
    "SiteError",
    "Stored",
    "closed_files",
    "fetch",
    "push",
    "recordings_at",
    "remove_from_sites",
    "send",
    "signed_digests",
]
