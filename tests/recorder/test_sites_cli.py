"""``recorder verify|recover|fetch|list URL``: from the object store alone."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from recorder import cli
from recorder.catalog import opened
from recorder.cli import sites as cli_sites
from recorder.elsewhere import names_at_sites
from recorder.fieldkey import FieldKey
from recorder.keys import FileProvider
from recorder.reindex import files_of, opener, reindex
from recorder.sites import Site, SiteConfig, push
from recorder.verify import verify
from tests.recorder.s3 import S3Server
from tests.recorder.small_recording import SmallRecording, make_provider, make_recording

DAY = "recordings/default/2026/01/01"


@dataclass
class Store:
    """A bucket and how the command reaches it."""

    s3: S3Server
    url: str
    options: tuple[str, ...]
    site: Site

    def put(self, made: SmallRecording) -> str:
        """Put a recording to the store as an upload does; returns its address."""
        place = f"{DAY}/{made.recording}"
        push(self.site, made.path, place)
        return f"{self.url}/{place}"


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> FileProvider:
    return make_provider(tmp_path_factory.mktemp("crypto") / "keys")


@pytest.fixture
def store(s3: S3Server, tmp_path: Path) -> Store:
    url = f"s3://{s3.bucket()}/evidence"
    credentials = s3.credentials(tmp_path)
    file = tmp_path / "site.yaml"
    file.write_text(json.dumps({"endpoint": s3.endpoint, "credentials_file": str(credentials)}))
    site = Site(SiteConfig(url=url, endpoint=s3.endpoint, credentials_file=credentials))
    return Store(s3, url, ("--site", str(file)), site)


def make(tmp_path: Path, provider: FileProvider, name: str, **more: bool) -> SmallRecording:
    made = make_recording(tmp_path / name, provider, **more)
    return SmallRecording(
        made.path.rename(tmp_path / made.recording),
        made.recording,
        made.provider,
        made.data_key,
        made.segments,
        made.composite,
    )


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], env={"COLUMNS": "300"})


def test_verify_a_url(store: Store, tmp_path: Path, provider: FileProvider) -> None:
    made = make(tmp_path, provider, "one")
    url = store.put(made)
    done = run("verify", url, *store.options, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["verdict"], report["recording"]) == ("ok", made.recording)
    with_key = run("verify", url + "/", *store.options, "--keys", provider.directory)
    assert with_key.exit_code == 0, with_key.output
    assert "every chunk, with the key" in with_key.stdout
    # Somebody with access to the store changes one bit.
    name = "segments/p0001-000001.seg"
    data = bytearray((made.path / name).read_bytes())
    data[len(data) // 2] ^= 1
    bucket_path = store.url.removeprefix("s3://")
    store.s3.request("PUT", f"/{bucket_path}/{DAY}/{made.recording}/{name}", body=bytes(data))
    broken = run("verify", url, *store.options, "--json")
    assert broken.exit_code == 1
    found = json.loads(broken.stdout)["findings"][0]
    assert (found["kind"], found["file"]) == ("changed", name)
    assert found["begin"] <= len(data) // 2 < found["end"]
    # … or takes a segment away.
    store.site.delete(f"{DAY}/{made.recording}/{name}")
    removed = run("verify", url, *store.options, "--json")
    assert removed.exit_code == 1
    assert json.loads(removed.stdout)["findings"][0]["kind"] == "removed"


def test_recover_works_from_the_store_alone(
    store: Store, tmp_path: Path, provider: FileProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(tmp_path, provider, "lost", stopped=False)
    url = store.put(made)
    assert store.site.head(f"{DAY}/{made.recording}/segments/p0001-000002.seg") is None, "it had no END"
    shutil.rmtree(made.path)
    assert run("verify", url, *store.options).exit_code == 3
    keys = ("--keys", provider.directory)
    # A node that lives goes on sending: nothing is signed under its hands.
    monkeypatch.setattr(cli_sites, "WATCH_S", 0.0)

    def grow(_: float) -> None:
        (tmp_path / "more").write_bytes(b"more")
        push_one(store, f"{DAY}/{made.recording}/segments/p0001-000009.seg", tmp_path / "more")

    monkeypatch.setattr("recorder.cli.sites.time.sleep", grow)
    refused = run("recover", url, *store.options, *keys)
    assert refused.exit_code == 1
    assert "grows" in str(refused.exception)
    store.site.delete(f"{DAY}/{made.recording}/segments/p0001-000009.seg")
    monkeypatch.setattr("recorder.cli.sites.time.sleep", lambda _: None)
    done = run("recover", url, *store.options, *keys)
    assert done.exit_code == 0, done.output
    assert "recovered, 1 parts, 2 segments" in done.stdout
    checked = run("verify", url, *store.options, *keys, "--json")
    assert checked.exit_code == 0, checked.output
    again = run("recover", url, *store.options, *keys, "--gone")
    assert again.exit_code == 1
    assert "signed already" in str(again.exception)


def push_one(store: Store, key: str, path: Path) -> None:
    asyncio.run(store.site.put_new(key, path))


def test_list_and_fetch_everything(store: Store, tmp_path: Path, provider: FileProvider) -> None:
    whole = make(tmp_path, provider, "whole")
    lost = make(tmp_path, provider, "lost", stopped=False)
    for made in (whole, lost):
        store.put(made)
    listed = run("list", store.url, *store.options, "--json")
    assert listed.exit_code == 0, listed.output
    rows = {Path(row["path"]).name: row for row in json.loads(listed.stdout)}
    assert (rows[whole.recording]["state"], rows[whole.recording]["segments"]) == ("sealed", 3)
    assert rows[whole.recording]["files"] == ["composite.mp4"]
    assert (rows[lost.recording]["state"], rows[lost.recording]["segments"]) == ("unfinished", 2)
    data = tmp_path / "data"
    done = run("fetch", store.url, data, *store.options)
    assert done.exit_code == 0, done.output
    assert verify(data / DAY / whole.recording).verdict.value == "ok"
    again = run("fetch", store.url, data, *store.options)
    assert again.stdout.startswith("0 files fetched")


def test_pages_alone_make_an_index_that_knows_the_media(
    store: Store, tmp_path: Path, provider: FileProvider
) -> None:
    """An empty disk: keys, manifests and statements are enough to find and to play."""
    small = make(tmp_path, provider, "small")
    store.put(small)
    data = tmp_path / "data"
    assert run("fetch", store.url, data, *store.options, "--pages").exit_code == 0
    directory = data / DAY / small.recording
    assert not (directory / "segments").exists()
    assert {Path(name).parts[0] for name in names_at_sites(directory)} == {"segments", "files"}
    with opened(f"sqlite:///{tmp_path / 'index.sqlite'}", FieldKey.open(tmp_path / "index.key")) as catalog:
        result = reindex(catalog, data, opener(provider, actor="test"))
        # small_recording's facts are fewer than a server's: what counts here are its files.
        assert result.recordings + len(result.refused) == 1

    assert [one.name for one in files_of(directory)] == ["composite.mp4"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("verify", "http://somewhere/x"), 2, "s3://bucket"),
        (("verify", "s3://id:secret@bucket/x"), 2, "credentials"),
        (("verify", "{url}/recordings"), 1, "is no recording"),
        (("fetch", "{url}/nothing-there", "{tmp}/x"), 1, "nothing is below"),
    ],
)
def test_wrong_use_is_said(
    store: Store, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    given = [one.format(url=store.url, tmp=tmp_path) for one in arguments]
    done = run(*given, *store.options)
    assert done.exit_code == code
    assert says in done.output + str(done.exception)
