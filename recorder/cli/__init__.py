"""The command ``recorder``: look at, verify, recover, export and index recordings, rotate keys, offline.

Each module beside this one adds its commands to ``base.app``.
"""

from __future__ import annotations

from recorder.canonical import CanonicalError
from recorder.catalog import CatalogError
from recorder.cli import audit, custody, export, index, keys, look, recover, sites, stamp, verify
from recorder.cli.base import app, fail
from recorder.custody import CustodyError
from recorder.export import ExportError
from recorder.fieldkey import FieldKeyError
from recorder.gm.selftest import SelfTestError
from recorder.gm.sm2 import Sm2Error
from recorder.journal import JournalError
from recorder.keys import KeyProblem
from recorder.manifest import ManifestError
from recorder.pages import PagesError
from recorder.recovering import RecoveryError
from recorder.sealed import SealedError
from recorder.sites import SiteError
from recorder.statements import StatementError
from recorder.timestamp import TimestampError

__all__ = [
    "app",
    "audit",
    "custody",
    "export",
    "index",
    "keys",
    "look",
    "main",
    "recover",
    "sites",
    "stamp",
    "verify",
]

FAILURES = (
    KeyProblem,
    ManifestError,
    StatementError,
    SealedError,
    JournalError,
    CanonicalError,
    RecoveryError,
    ExportError,
    CustodyError,
    PagesError,
    CatalogError,
    FieldKeyError,
    SelfTestError,
    TimestampError,
    Sm2Error,
    SiteError,
    OSError,
)


def main() -> None:
    """Run the command; failures that are no defect of ours become one line and exit code 1."""
    try:
        app()
    except FAILURES as error:
        fail(str(error))
