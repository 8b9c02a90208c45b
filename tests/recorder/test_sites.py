"""Sites: a real S3 server (Swift), a directory, and every way in which a store fails."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from recorder.gm.sm3 import named, sm3
from recorder.keys import FileProvider, open_sidecar, write_sidecar
from recorder.sealed import DataKey, SealedError, SealedReader, SealedWriter
from recorder.sites import (
    Site,
    SiteBytes,
    SiteConfig,
    SiteError,
    closed_files,
    fetch,
    push,
    remove_from_sites,
)
from recorder.sites.config import ObjectLock, read_site
from recorder.sites.source import FIRST_AHEAD_BYTES
from recorder.storage import segment_path
from tests.recorder.faults import Faults, Request, faulty
from tests.recorder.s3 import S3Server
from tests.recorder.small_recording import SmallRecording, make_provider, make_recording

KEY = DataKey("key", bytes(range(16)))
PLACE = "recordings/default/2026/01/01/0199-one"


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> FileProvider:
    return make_provider(tmp_path_factory.mktemp("keys") / "crypto")


@pytest.fixture
def recording(tmp_path: Path, provider: FileProvider) -> SmallRecording:
    return make_recording(tmp_path / "data" / PLACE, provider, composite_bytes=700_000)


@pytest.fixture
def faults(s3: S3Server) -> Iterator[Faults]:
    with faulty(s3) as proxy:
        yield proxy


def site_at(s3: S3Server, directory: Path, *, via: Faults | None = None, **more: Any) -> Site:
    """Give a site with a bucket of its own, straight or through the proxy."""
    bucket = more.pop("bucket", None) or s3.bucket(versions=more.pop("versions", False))
    config = SiteConfig(
        name=more.pop("name", "one"),
        url=f"s3://{bucket}/some/prefix",
        endpoint=via.endpoint if via else s3.endpoint,
        credentials_file=s3.credentials(directory),
        **more,
    )
    return Site(config)


def sealed_file(path: Path, size: int, seed: int) -> bytes:
    """Write a sealed file; returns its plain text."""
    plain = random.Random(seed).randbytes(size)
    with SealedWriter(path, KEY, kind="archive", media_type="video/mp4") as writer:
        writer.write(plain)
        writer.close()
    return plain


def put(site: Site, key: str, path: Path) -> bool:
    return asyncio.run(site.put_new(key, path))


@pytest.fixture(params=["s3", "directory"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    """Every kind of site does the same."""
    if request.param == "directory":
        (tmp_path / "share").mkdir()
        return Site(SiteConfig(name="share", url=f"file://{tmp_path / 'share'}"))
    return site_at(request.getfixturevalue("s3"), tmp_path)


def test_everything_closed_goes_and_comes_back(site: Site, recording: SmallRecording, tmp_path: Path) -> None:
    names = push(site, recording.path, PLACE)
    assert names[0] == "keys.json"
    assert names.index("manifest.sealed") < names.index("manifest.json")
    assert push(site, recording.path, PLACE) == [], "what is there is not sent again"
    here = {str(one.relative_to(recording.path)) for one in recording.path.rglob("*") if one.is_file()}
    assert set(names) == here
    for name in names:
        assert site.read(f"{PLACE}/{name}") == (recording.path / name).read_bytes()
    fetched = fetch(site, PLACE, tmp_path / "back")
    assert len(fetched) == len(here)
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in fetched)
    # A fetch that was broken off goes on: what is whole stays, the rest comes.
    fetched[0].unlink()
    segment = segment_path(tmp_path / "back", 1, 2)
    segment.write_bytes(segment.read_bytes()[:-10])
    assert sorted(fetch(site, PLACE, tmp_path / "back")) == sorted([fetched[0], segment])
    assert segment.read_bytes() == segment_path(recording.path, 1, 2).read_bytes()


def test_other_bytes_are_never_overwritten(site: Site, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"the original")
    second.write_bytes(b"the forgery.")
    assert put(site, "media", first) is True
    assert put(site, "media", first) is False
    with pytest.raises(SiteError, match="conflict"):
        put(site, "media", second)
    (known,) = site.listing()
    with pytest.raises(SiteError, match="conflict"):
        asyncio.run(site.put_new("media", second, known=known))
    assert site.read("media") == b"the original"


def test_pages_have_revisions_and_do_not_go_back(site: Site, tmp_path: Path) -> None:
    page = tmp_path / "keys.json"
    for revision in (1, 2):
        page.write_text(f'{{"revision": {revision}}}')
        assert asyncio.run(site.put_page("keys.json", page)) is True
    assert asyncio.run(site.put_page("keys.json", page)) is False
    page.write_text('{"revision": 1}')
    with pytest.raises(SiteError, match="later revision"):
        asyncio.run(site.put_page("keys.json", page))


def test_large_files_go_in_parts(s3: S3Server, faults: Faults, tmp_path: Path) -> None:
    site = site_at(s3, tmp_path, via=faults)
    sealed_file(tmp_path / "large", 20_000_000, 1)
    assert put(site, "large", tmp_path / "large") is True
    assert sum("partNumber=" in one.path for one in faults.requests) == 3
    assert asyncio.run(site.sm3("large")) == named(sm3((tmp_path / "large").read_bytes()))
    assert put(site, "large", tmp_path / "large") is False


def test_any_range_is_as_it_is_here(site: Site, tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    source = random.Random(seed)
    for size in (1, 1000, 300_000, 9_000_000):
        path = tmp_path / f"file-{size}"
        plain = sealed_file(path, size, seed)
        put(site, f"ranges/{size}", path)
        there = SiteBytes([site], f"ranges/{size}")
        with SealedReader(there, KEY) as reader:
            for _ in range(25):
                begin = source.randrange(size)
                length = source.choice((1, 1000, source.randrange(1, size + 1)))
                assert reader.read(begin, length) == plain[begin : begin + length], f"seed {seed}"
            assert b"".join(reader.chunks()) == plain


def test_a_range_costs_three_requests(s3: S3Server, tmp_path: Path) -> None:
    site = site_at(s3, tmp_path)
    plain = sealed_file(tmp_path / "file", 9_000_000, 2)
    put(site, "file", tmp_path / "file")
    there = SiteBytes([site], "file")
    with SealedReader(there, KEY) as reader:
        assert reader.read(5_000_000, 1000) == plain[5_000_000:5_001_000]
        assert there.requests == 3, "the tail, the head, one chunk"
        begin = 0
        while block := reader.read(begin, 512 * 1024):
            begin += len(block)
        assert begin == len(plain)
        whole = len(plain) // FIRST_AHEAD_BYTES
        assert there.requests - 3 < whole // 3, "reading on reads ahead"


def test_a_replica_goes_on_where_the_first_site_ends(s3: S3Server, faults: Faults, tmp_path: Path) -> None:
    first, replica = site_at(s3, tmp_path, via=faults), site_at(s3, tmp_path, name="two")
    plain = sealed_file(tmp_path / "file", 3_000_000, 3)
    for one in (first, replica):
        put(one, "file", tmp_path / "file")
    there = SiteBytes([first, replica], "file")
    with SealedReader(there, KEY) as reader:
        assert reader.read(0, 1000) == plain[:1000]
        faults.set("refuse")
        assert b"".join(reader.read(at, 500_000) for at in range(0, 3_000_000, 500_000)) == plain
        assert faults.struck > 0
        assert there.site is replica
    with pytest.raises(SiteError, match="unreachable"):
        SiteBytes([first], "file")
    assert SiteBytes([first, replica], "file").size() == (tmp_path / "file").stat().st_size


def test_changed_bytes_do_not_open(s3: S3Server, faults: Faults, tmp_path: Path) -> None:
    site = site_at(s3, tmp_path, via=faults)
    sealed_file(tmp_path / "file", 1_000_000, 4)
    put(site, "file", tmp_path / "file")
    faults.set("corrupt_download", lambda one: "file" in one.path)
    with pytest.raises(SealedError), SealedReader(SiteBytes([site], "file"), KEY) as reader:
        reader.read(0, 1_000_000)


def is_put(one: Request) -> bool:
    return one.method == "PUT" and one.size > 0


@pytest.mark.parametrize("size", [200_000, 12_000_000])
@pytest.mark.parametrize("fault", ["refuse", "slow", "cut", "corrupt_upload", "lose_answer"])
def test_a_put_that_fails_is_done_the_next_time(
    s3: S3Server, faults: Faults, tmp_path: Path, fault: str, size: int
) -> None:
    """Under every fault: an error, never wrong bytes at the store; afterwards the same call makes it good."""
    site = site_at(s3, tmp_path, via=faults, timeout_s=3.0)
    path = tmp_path / "file"
    path.write_bytes(random.Random(5).randbytes(size))
    faults.set(fault, is_put, delay_s=10.0)
    with pytest.raises(SiteError) as caught:
        put(site, "file", path)
    assert caught.value.code in ("unreachable", "refused")
    assert faults.struck > 0
    faults.clear()
    found = site.head("file")
    assert found is None or site.read("file") == path.read_bytes(), f"{fault} left wrong bytes"
    put(site, "file", path)
    assert site.read("file") == path.read_bytes()


def test_removal_says_what_stays(
    s3: S3Server, faults: Faults, tmp_path: Path, recording: SmallRecording
) -> None:
    free = site_at(s3, tmp_path, name="free")
    versions = site_at(s3, tmp_path, name="versions", versions=True)
    locked = site_at(s3, tmp_path, name="locked", via=faults)
    gone = site_at(s3, tmp_path, name="gone", bucket="no-such-bucket")
    for one in (free, versions, locked):
        push(one, recording.path, PLACE)
    faults.set("deny", lambda one: one.method == "DELETE")
    key = f"{PLACE}/keys.json"
    for _ in range(2):  # the second time nothing is to be seen there, and the answer is the same
        done = remove_from_sites([free, versions, locked, gone], PLACE, ["keys.json"])
        assert done.removed == [f"free: {key}"]
        assert not done.complete
        assert "old versions" in done.kept[f"versions: {key}"]
        assert "AccessDenied" in done.kept[f"locked: {key}"]
        assert "NoSuchBucket" in done.kept[f"gone: {key}"]
    assert free.head(key) is None
    assert locked.head(key) is not None


def test_a_lock_is_asked_for_with_all_but_the_keys(
    s3: S3Server, faults: Faults, tmp_path: Path, recording: SmallRecording
) -> None:
    """Swift knows no lock and does not show what becomes of it: the signed request is what we answer for."""
    lock = ObjectLock(mode="compliance", days=30)
    site = site_at(s3, tmp_path, via=faults, object_lock=lock)
    names = push(site, recording.path, PLACE)
    sealed_file(tmp_path / "large", 9_000_000, 6)
    put(site, "large", tmp_path / "large")
    begun = {
        one.path: one for one in faults.requests if one.method == "PUT" or one.path.endswith("?uploads=")
    }
    for name in [*names, "large?uploads="]:
        (request,) = [one for path, one in begun.items() if path.endswith(name)]
        locked = request.headers.get("x-amz-object-lock-mode"), name != "keys.json"
        assert locked in (("COMPLIANCE", True), (None, False)), name
        if locked[0]:
            until = datetime.fromisoformat(request.headers["x-amz-object-lock-retain-until-date"])
            assert timedelta(days=29) < until - datetime.now(UTC) < timedelta(days=31)
            assert "x-amz-object-lock-retain-until-date" in request.headers["authorization"], "it is signed"


def test_what_is_erased_while_it_is_sent_does_not_stay(site: Site, tmp_path: Path) -> None:
    page = tmp_path / "keys.json"
    page.write_text('{"revision": 1}')

    class ErasedOnceRead(type(page)):  # type: ignore[misc]
        def read_bytes(self) -> bytes:
            data: bytes = super().read_bytes()
            self.unlink()
            return data

    assert asyncio.run(site.put_page("keys.json", ErasedOnceRead(page))) is True
    assert site.head("keys.json") is None


def test_a_sealed_part_without_its_manifest_gives_way(
    site: Site, recording: SmallRecording, tmp_path: Path
) -> None:
    (tmp_path / "other").write_bytes(b"the sealed part of a node that died before its manifest went")
    assert put(site, f"{PLACE}/manifest.sealed", tmp_path / "other")
    assert "manifest.sealed" in push(site, recording.path, PLACE)
    assert site.read(f"{PLACE}/manifest.sealed") == (recording.path / "manifest.sealed").read_bytes()
    (recording.path / "manifest.sealed").write_bytes(b"forged")
    with pytest.raises(SiteError, match="conflict"):
        push(site, recording.path, PLACE)


def test_only_what_is_closed_goes(recording: SmallRecording) -> None:
    path = recording.path
    for name in ("manifest.json", "manifest.sealed"):
        (path / name).unlink()
    last = segment_path(path, 1, 2)
    whole = last.read_bytes()
    last.write_bytes(whole[:-10])
    (path / "files" / "composite.mp4.half.sealed").write_bytes(b"a composer is at work")
    (path / ".keys.json.1234").write_bytes(b"temporary")
    names = {one.name for one in closed_files(path)}
    assert "segments/p0001-000001.seg" in names
    assert "segments/p0001-000002.seg" not in names, "it has no END"
    assert not any("half" in name or "/." in name or name.startswith(".") for name in names)
    segment_path(path, 2, 0).write_bytes(b"")
    assert "segments/p0001-000002.seg" in {one.name for one in closed_files(path)}, "its writer is dead"
    last.write_bytes(whole)
    segment_path(path, 2, 0).unlink()
    assert "segments/p0001-000002.seg" in {one.name for one in closed_files(path)}, "it has an END"


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"url": "http://bucket/x"}, "s3://bucket"),
        ({"url": "s3:///x"}, "s3://bucket"),
        ({"url": "s3://id:secret@bucket/x"}, "credentials"),
        ({"endpoint": "http://store.bank.example"}, "https"),
        ({"name": "Not A Name"}, "pattern"),
        ({"timeout_s": 0}, "greater than 0"),
        ({"object_lock": {"mode": "compliance", "days": 30}, "checksum": False}, "object_lock needs"),
        ({"access_key_id": "x"}, "not permitted"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, members: dict[str, Any], says: str) -> None:
    text = tmp_path / "site.yaml"
    url = members.pop("url", "s3://bucket/x")
    text.write_text("\n".join(f"{name}: {value!r}" for name, value in members.items()) or "{}")
    with pytest.raises(ValueError, match=says):
        read_site(url, text)


def test_credentials_are_read_from_a_private_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "credentials.yaml"
    path.write_text("access_key_id: a\nsecret_access_key: topsecret\n")
    path.chmod(0o640)
    site = Site(SiteConfig(url="s3://bucket", endpoint="http://127.0.0.1:1", credentials_file=path))
    with pytest.raises(SiteError, match="chmod 600"):
        site.listing()
    path.chmod(0o600)
    with pytest.raises(SiteError) as caught:
        site.listing()
    assert caught.value.code == "unreachable"
    assert "topsecret" not in f"{caught.value} {site!r} {site.config!r}"
    path.write_text("access_key_id: a\nsecret_access_key: topsecret\nmore: 1\n")
    with pytest.raises(ValueError, match="nothing else") as wrong:
        site.config.credentials()
    assert "topsecret" not in str(wrong.value)


def test_a_share_that_is_not_mounted_is_not_made(tmp_path: Path) -> None:
    site = Site(SiteConfig(url=f"file://{tmp_path / 'not-mounted'}"))
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(SiteError, match="unreachable"):
        put(site, "file", tmp_path / "file")
    assert not (tmp_path / "not-mounted").exists()


def test_a_name_from_a_store_does_not_lead_out(s3: S3Server, tmp_path: Path) -> None:
    bucket = s3.bucket()
    s3.request("PUT", f"/{bucket}/some/prefix/recordings/%2e%2e/%2e%2e/evil", body=b"x")
    site = site_at(s3, tmp_path, bucket=bucket)
    with pytest.raises(SiteError, match="changed"):
        fetch(site, "", tmp_path / "there")
    assert not list(tmp_path.rglob("evil"))


def test_a_hostile_store_changes_nothing_but_its_recordings(tmp_path: Path, provider: FileProvider) -> None:
    """It plants files, rolls pages back, and forges keys: each is named, and nothing here changes."""
    bucket, data = tmp_path / "bucket", tmp_path / "data"
    made = make_recording(tmp_path / "one", provider)
    place = f"recordings/default/2026/01/01/{made.recording}"
    directory, there = data / place, bucket / place
    directory.parent.mkdir(parents=True)
    made.path.rename(directory)
    shutil.copytree(directory, there)
    (directory / "segments" / "p0001-000002.seg").unlink()
    own = data / "secrets" / "crypto" / "signing.key.pem"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"the real private key")
    planted = [
        "secrets/crypto/signing.key.pem",
        "secrets/keys.json",
        "index.sqlite",
        "config.yaml",
        "uploaded/x.one",
        "recordings/default/2026/01/01/keys.json",
        f"{place}/segments/evil.py",
        f"{place}/segments/deeper/p0001-000000.seg",
        f"{place}/statements/one.json",
        f"{place}/files/composite.mp4",
        f"{place}/conf/config.yaml",
    ]
    for name in planted:
        (bucket / name).parent.mkdir(parents=True, exist_ok=True)
        (bucket / name).write_bytes(b"planted")
    changed = [f"{place}/{name}" for name in ("manifest.json", "segments/p0001-000001.seg", "keys.json")]
    for name in changed:
        (bucket / name).write_bytes((bucket / name).read_bytes() + b"more")
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    site = Site(SiteConfig(name="share", url=f"file://{bucket}"))
    refused: dict[str, str] = {}
    new = fetch(site, "", data, refused=lambda name, why: refused.update({name: why}))
    assert new == [directory / "segments" / "p0001-000002.seg"]
    assert set(refused) == {*planted, *changed}
    assert {path: path.read_bytes() for path in before} == before
    assert {path for path in data.rglob("*") if path.is_file()} == {*before, *new}
    empty = tmp_path / "empty"
    fetch(site, "", empty, pages_only=True)
    assert {path.name for path in empty.iterdir()} == {"recordings"}


def test_keys_come_again_only_as_a_later_revision_of_the_same_hand(
    tmp_path: Path, provider: FileProvider
) -> None:
    made = make_recording(tmp_path / "one", provider)
    there = tmp_path / "bucket"
    shutil.copytree(made.path, there)
    site = Site(SiteConfig(name="share", url=f"file://{there}"))
    page = open_sidecar(made.path).fields
    wraps: Any = page["wraps"]
    told: list[str] = []

    def attempt(revision: int, by: FileProvider, recording: str = made.recording) -> bool:
        key_id = str(page["key_id"])
        write_sidecar(
            there, recording, key_id, [*wraps, *wraps], by.signer(), revision=revision, succession=["padding"]
        )
        before = (made.path / "keys.json").read_bytes()
        came = fetch(site, "", made.path, refused=lambda name, why: told.append(why))
        assert bool(came) == ((made.path / "keys.json").read_bytes() != before)
        return bool(came)

    assert not attempt(1, provider)
    assert "revision 1" in told[-1]
    assert not attempt(2, make_provider(tmp_path / "foreign"))
    assert "vouch" in told[-1]
    assert not attempt(2, provider, "another")
    assert "another recording" in told[-1]
    assert attempt(2, provider)
    changed = (there / "keys.json").read_bytes().replace(b'"revision":2', b'"revision":33')
    (there / "keys.json").write_bytes(changed)
    assert fetch(site, "", made.path, refused=lambda name, why: told.append(why)) == []
    assert "signature does not fit" in told[-1]


def test_a_segment_is_not_replaced_by_another(tmp_path: Path, provider: FileProvider) -> None:
    made = make_recording(tmp_path / "one", provider)
    there = tmp_path / "bucket"
    shutil.copytree(made.path, there)
    here, other = segment_path(made.path, 1, 2), segment_path(there, 1, 2)
    torn = bytearray(here.read_bytes()[:-10])
    torn[len(torn) // 2] ^= 1
    here.write_bytes(torn)
    site = Site(SiteConfig(name="share", url=f"file://{there}"))
    told: dict[str, str] = {}
    assert fetch(site, "", made.path, refused=lambda name, why: told.update({name: why})) == []
    assert "grown" in told["segments/p0001-000002.seg"]
    assert here.read_bytes() == torn
    assert other.exists()
