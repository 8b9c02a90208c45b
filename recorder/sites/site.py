"""One site: put what is not there yet, read ranges, list, delete. Third-party errors are translated
here.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import obstore
from obstore import exceptions
from obstore.store import LocalStore, S3Store

from recorder.gm.sm3 import Sm3
from recorder.sites.config import SiteConfig

_log = logging.getLogger(__name__)
WHOLE_BYTES = 8 << 20
"""Up to this size an object is one request, put only if absent where the store can; larger ones go in
parts.
"""
PART_BYTES = 8 << 20
READ_BYTES = 1 << 20
PROBE = ".probe"
LOCK_DATE_S = 3600.0
RETRIES = 2
RETRY_S = 10.0
"""Short: whoever calls tries again by itself, and wants to know that the site fails."""

THREADS = 4
"""Of each site, for requests that block: one that does not answer takes no thread from anybody else."""

P = ParamSpec("P")
T = TypeVar("T")
Throttle = Callable[[int], Awaitable[None]]
"""Waits until so many bytes may be sent."""


class SiteError(Exception):
    """A site does not do what was asked.

    ``code``: unreachable (try again later), refused (credentials, or a locked object), missing,
    conflict (other bytes are there and are never overwritten), changed (not the bytes that were signed).
    """

    def __init__(self, code: str, site: str, detail: str) -> None:
        self.code, self.site, self.detail = code, site, detail
        super().__init__(f"site {site}: {code}: {detail}")


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as the site describes it."""

    key: str
    size: int
    etag: str
    """MD5 in hex of objects put whole by most stores; something else of others."""
    modified: float
    """UTC in seconds, by the site's clock."""


class Site:
    """One configured site; opened at the first use. For any thread; what is ``async`` is for event
    loops.
    """

    def __init__(self, config: SiteConfig) -> None:
        self.config = config
        self.name = config.name
        self._opened: Any = None
        self._locking_opened: Any = None
        self._locking_since = 0.0
        self._keeps_versions: bool | None = None
        self._conditional = True
        """The store takes ``If-None-Match: *``; known to be false after its first 501."""

    def __repr__(self) -> str:
        return f"Site({self.name!r}, {self.config.url!r})"

    @property
    def _store(self) -> Any:
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    @property
    def _locking(self) -> Any:
        """The store by which what never changes is put: the headers of ``object_lock`` go with its requests.

        obstore takes headers for a whole client only; so this is another one, made anew every hour with a
        later date.
        """
        lock = self.config.object_lock
        if lock is None:
            return self._store
        if self._locking_opened is None or time.monotonic() - self._locking_since > LOCK_DATE_S:
            until = datetime.now(UTC) + timedelta(days=lock.days)
            self._locking_opened = self._open(
                {
                    "x-amz-object-lock-mode": lock.mode.upper(),
                    "x-amz-object-lock-retain-until-date": f"{until:%Y-%m-%dT%H:%M:%SZ}",
                }
            )
            self._locking_since = time.monotonic()
        return self._locking_opened

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(THREADS, thread_name_prefix=f"site-{self.name}")

    async def in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what waits for this site in one of its own threads, as ``asyncio.to_thread`` does in common
        ones.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(function, *args, **kwargs))

    def _open(self, headers: Mapping[str, str] | None = None) -> Any:
        config = self.config
        directory = config.directory
        try:
            if directory is not None:
                # Not made here: a share that is not mounted must not become a folder on the system's disk.
                if not directory.is_dir():
                    raise SiteError("unreachable", self.name, f"there is no directory {directory}")
                return LocalStore(directory)
            keys = {
                "token" if name == "session_token" else name: value
                for name, value in config.credentials().items()
            }
            client: Any = {
                "default_headers": dict(headers or {}),
                "timeout": timedelta(seconds=config.timeout_s),
                "connect_timeout": timedelta(seconds=min(5.0, config.timeout_s)),
                # To loopback alone: the settings see to it.
                "allow_http": (config.endpoint or "").startswith("http:"),
            }
            if config.ca_file is not None:
                client["root_certificate"] = config.ca_file.read_bytes()
            options: dict[str, Any] = {
                "region": config.region,
                "virtual_hosted_style_request": not config.path_style,
                "disable_bulk_delete": True,  # a refusal is then the object's own, with its reason
                **keys,
            }
            if config.endpoint:
                options["endpoint"] = config.endpoint
            if config.checksum:
                options["checksum_algorithm"] = "SHA256"
            return S3Store(
                config.bucket,
                prefix=config.prefix or None,
                client_options=client,
                retry_config={
                    "max_retries": RETRIES,
                    "retry_timeout": timedelta(seconds=RETRY_S),
                    "backoff": {
                        "init_backoff": timedelta(milliseconds=100),
                        "max_backoff": timedelta(seconds=2),
                    },
                },
                **options,
            )
        except (OSError, ValueError, exceptions.BaseError) as error:
            raise SiteError("refused", self.name, str(error)) from None

    @contextmanager
    def _asking(self, key: str) -> Iterator[None]:
        """Translate what goes wrong. Only the first line of an error: it names method, key and
        answer.
        """
        try:
            yield
        except (exceptions.NotFoundError, FileNotFoundError) as error:
            raise SiteError("missing", self.name, f"{key} is not there ({_first(error)})") from None
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError, FileExistsError):
            raise SiteError("conflict", self.name, f"{key} is there already") from None
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError) as error:
            raise SiteError("refused", self.name, f"{key}: {_first(error)}") from None
        except (exceptions.BaseError, OSError, ValueError) as error:
            text = _first(error)
            code = "refused" if any(f" {status} " in text for status in (400, 403, 405)) else "unreachable"
            if "invalid path" in text:  # an object that is none of ours, with a name no file can have
                code = "changed"
            raise SiteError(code, self.name, f"{key}: {text}") from None

    # --- reading

    def head(self, key: str) -> Stored | None:
        """Describe an object; None if there is none. Raise SiteError."""
        try:
            with self._asking(key):
                return _stored(obstore.head(self._store, key))
        except SiteError as error:
            if error.code == "missing" and "NoSuchBucket" not in error.detail:
                return None
            raise

    def listing(self, prefix: str = "") -> list[Stored]:
        """List everything below ``prefix`` (whole path segments), in the order of keys. Raise
        SiteError.
        """
        with self._asking(prefix or "the site"):
            chunks = obstore.list(self._store, prefix=prefix or None)
            return sorted((_stored(one) for chunk in chunks for one in chunk), key=lambda one: one.key)

    def read(self, key: str) -> bytes:
        """Return a whole object: pages, not media. Raise SiteError."""
        with self._asking(key):
            return bytes(obstore.get(self._store, key).bytes())

    def read_range(self, key: str, begin: int, end: int) -> bytes:
        """Return bytes ``begin`` to ``end`` (exclusive), fewer only at the object's end. Raise
        SiteError.
        """
        with self._asking(key):
            return bytes(obstore.get_range(self._store, key, start=begin, end=end))

    def read_tail(self, key: str, size: int) -> tuple[bytes, int]:
        """Return the last ``size`` bytes (or all there are) and the object's size. Raise SiteError."""
        with self._asking(key):
            options: Any = {"range": {"suffix": size}} if self.config.directory is None else {}
            result = obstore.get(self._store, key, options=options)
            whole = int(result.meta["size"])
            if options:
                return bytes(result.bytes()), whole
        return self.read_range(key, max(0, whole - size), whole) if whole else b"", whole

    def chunks(self, key: str) -> Iterator[bytes]:
        """Yield an object front to back, about 1 MiB at a time. Raise SiteError."""
        with self._asking(key):
            for chunk in obstore.get(self._store, key).stream(min_chunk_size=READ_BYTES):
                yield bytes(chunk)

    async def sm3(self, key: str) -> str:
        """Read an object back and return ``sm3:…`` of its bytes. Raise SiteError."""
        digest = Sm3()
        with self._asking(key):
            result = await obstore.get_async(self._store, key)
            async for chunk in result.stream(min_chunk_size=READ_BYTES):
                await asyncio.to_thread(digest.update, bytes(chunk))
        return f"sm3:{digest.digest().hex()}"

    # --- writing

    async def put_new(
        self, key: str, path: Path, *, throttle: Throttle | None = None, known: Stored | None = None
    ) -> bool:
        """Put a file that never changes; False if the same bytes are there already (then nothing is
        sent).

        ``known``: the object as a listing told it, if it is there. Raise SiteError ``conflict`` if
        other bytes are there, OSError if the file cannot be read.
        """
        if known is not None:
            await self._require_same(known, path)
            return False
        size = path.stat().st_size
        data = await asyncio.to_thread(path.read_bytes) if size <= WHOLE_BYTES else None
        if data is not None:
            await _wait(throttle, size)
            if self._conditional:
                done = await self._put_if_absent(key, data)
                if done is not None:
                    return done or await self._met(key, path)
        if await self._find(key) is not None:
            return await self._met(key, path)
        with self._asking(key):
            if data is not None:
                await obstore.put_async(self._locking, key, data, use_multipart=False)
            else:
                await obstore.put_async(
                    self._locking,
                    key,
                    _parts(path, throttle),
                    use_multipart=True,
                    chunk_size=PART_BYTES,
                    max_concurrency=2,
                )
        return True

    async def _put_if_absent(self, key: str, data: bytes) -> bool | None:
        """Return whether it was put (else something is there); None if the store has no such request."""
        try:
            with self._asking(key):
                await obstore.put_async(self._locking, key, data, mode="create", use_multipart=False)
        except SiteError as error:
            if error.code == "conflict":
                return False
            if " 501 " not in error.detail and "not implemented" not in error.detail.lower():
                raise
            _log.info("site %s puts without conditions only: each put is preceded by a look", self.name)
            self._conditional = False
            return None
        return True

    async def put_page(self, key: str, path: Path) -> bool:
        """Put a page that has revisions (``keys.json``); False if it is there as it is.

        A page there with a later ``revision`` is never overwritten: SiteError ``conflict``. Should the
        local file be removed meanwhile (crypto-erase), the site's is removed again. Raise SiteError,
        OSError.
        """
        data = await asyncio.to_thread(path.read_bytes)
        if await self._find(key) is not None:
            there = await self.in_thread(self.read, key)
            if there == data:
                return False
            if _revision(there) > _revision(data):
                raise SiteError("conflict", self.name, f"{key} is of a later revision there")
        with self._asking(key):
            await obstore.put_async(self._store, key, data, mode="overwrite", use_multipart=False)
        if not path.exists():
            await self.in_thread(self.delete, key)
        return True

    def delete(self, key: str) -> None:
        """Delete an object; one that is not there is no error. Raise SiteError ``refused`` if its bytes
        stay.

        A bucket that keeps versions (every locked one does) only hides an object behind a marker and
        says that all is well. obstore can neither list nor delete versions, so there nothing is ever
        known to be gone.
        """
        with self._asking(key):
            obstore.delete(self._store, key)
        if self.head(key) is not None:
            raise SiteError("refused", self.name, f"{key} is still there after its deletion")
        if self.keeps_versions():
            detail = (
                f"{key} is hidden, but the bucket keeps old versions; delete them with the store's own tools"
            )
            raise SiteError("refused", self.name, detail)

    def keeps_versions(self) -> bool:
        """Tell whether the site keeps what is overwritten or deleted, by putting ``.probe``. Raise
        SiteError.
        """
        if self._keeps_versions is None:
            with self._asking(PROBE):
                made = obstore.put(self._store, PROBE, b"Shuanglu asks whether versions are kept here.\n")
            self._keeps_versions = made["version"] not in (None, "", "null")
        return self._keeps_versions

    async def _find(self, key: str) -> Stored | None:
        return await self.in_thread(self.head, key)

    async def _met(self, key: str, path: Path) -> bool:
        found = await self._find(key)
        if found is None:
            raise SiteError("unreachable", self.name, f"{key} comes and goes")
        await self._require_same(found, path)
        return False

    async def _require_same(self, found: Stored, path: Path) -> None:
        """Raise SiteError ``conflict`` unless an object has a file's bytes: by its MD5, else read
        back.
        """
        if found.size == path.stat().st_size:
            if found.etag and found.etag == await asyncio.to_thread(_digest, path, "md5"):
                return
            if await self.sm3(found.key) == await asyncio.to_thread(sm3_of, path):
                return
        raise SiteError("conflict", self.name, f"{found.key} has other bytes there; it is not overwritten")


def _stored(meta: Any) -> Stored:
    etag = str(meta.get("e_tag") or "").strip('"')
    return Stored(str(meta["path"]), int(meta["size"]), etag, meta["last_modified"].timestamp())


def _first(error: BaseException) -> str:
    """Give an error's first line, and of the store's answer its code and message."""
    text = str(error)
    head = text.split("\n", 1)[0][:300]
    found = [part for tag in ("Code", "Message") if (part := _between(text, f"<{tag}>", f"</{tag}>"))]
    return f"{head} ({': '.join(found)})" if found else head


def _between(text: str, begin: str, end: str) -> str:
    _, _, rest = text.partition(begin)
    return rest.partition(end)[0][:200] if end in rest else ""


def _revision(page: bytes) -> int:
    try:
        value = json.loads(page)["revision"]
    except (ValueError, KeyError, TypeError):
        return 0
    return value if isinstance(value, int) else 0


def _digest(path: Path, name: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(name, usedforsecurity=False)).hexdigest()


def sm3_of(path: Path) -> str:
    digest = Sm3()
    with path.open("rb") as file:
        while data := file.read(READ_BYTES):
            digest.update(data)
    return f"sm3:{digest.digest().hex()}"


async def _wait(throttle: Throttle | None, size: int) -> None:
    if throttle is not None:
        await throttle(size)


async def _parts(path: Path, throttle: Throttle | None) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while data := await asyncio.to_thread(file.read, PART_BYTES):
            await _wait(throttle, len(data))
            yield data
