"""Recordings go to real S3 sites while a real worker makes them, under every fault a store can have."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack

from mediaserver.recordings import finishing, uploads
from mediaserver.settings import Settings
from mediaserver.tokens import ApiKey
from recorder.atomic import create_file
from recorder.catalog import Entry
from recorder.elsewhere import names_at_sites
from recorder.reindex import files_of
from recorder.report import Report
from recorder.sealed import SealedWriter
from recorder.sites import Site, SiteConfig, fetch, signed_digests
from recorder.statements import Statement, append_statement
from recorder.verify import verify
from tests.mediaserver.running import KEYS, Client, make_keys, running, settings_in
from tests.recorder.faults import Faults, Request, faulty
from tests.recorder.s3 import S3Server

PATIENCE_S = 40.0
SDP = {"Content-Type": "application/sdp"}


@pytest.fixture
def faults(s3: S3Server) -> Iterator[Faults]:
    with faulty(s3) as proxy:
        yield proxy


def site_config(s3: S3Server, directory: Path, name: str, via: Faults | None = None) -> dict[str, Any]:
    """Give a site as the settings file has it, with a bucket of its own."""
    return {
        "name": name,
        "url": f"s3://{s3.bucket()}/evidence",
        "endpoint": via.endpoint if via else s3.endpoint,
        "credentials_file": str(s3.credentials(directory)),
        "timeout_s": 5.0,
    }


def straight(s3: S3Server, config: dict[str, Any]) -> Site:
    """Give the same site without the proxy."""
    given = {**config, "endpoint": s3.endpoint, "credentials_file": Path(config["credentials_file"])}
    return Site(SiteConfig(**given))


def server_settings(directory: Path, sites: list[dict[str, Any]], **storage: Any) -> Settings:
    settings = settings_in(
        directory,
        recording={"segment_s": 1.0, "min_free_bytes": 1 << 20},
        storage={"sites": sites, **storage},
    )
    make_keys(settings)
    return settings


async def until(what: Callable[[], Any]) -> Any:
    """Wait until something is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not (found := what()):
            await asyncio.sleep(0.05)
    return found


async def event(api: Client, kind: str, recording: str, **wanted: Any) -> dict[str, Any]:
    """Wait for an event of a recording."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            page = await api.ok("GET", "/v1/events?after=0&limit=1000")
            for one in page["events"]:
                if (one["type"], one["recording"]) == (kind, recording) and wanted.items() <= one[
                    "data"
                ].items():
                    found: dict[str, Any] = one
                    return found
            await asyncio.sleep(0.05)


@asynccontextmanager
async def calling(api: Client, room: str) -> AsyncIterator[None]:
    """Have somebody publish sound into a room."""
    await api.ok("POST", "/v1/rooms", {"name": room})
    peer = RTCPeerConnection()
    peer.addTrack(AudioStreamTrack())
    await peer.setLocalDescription(await peer.createOffer())
    token = api.participant(room, "li", "customer")
    status, body, _ = await api.ask(
        "POST", f"/v1/whip/{room}", data=peer.localDescription.sdp, headers=SDP, token=token
    )
    assert status == 201, body
    await peer.setRemoteDescription(RTCSessionDescription(body.decode(), "answer"))
    try:
        yield
    finally:
        await peer.close()


async def start(api: Client, room: str, number: str) -> dict[str, Any]:
    body = {"business_no": number, "mode": "composite"}
    shown: dict[str, Any] = await api.ok("POST", f"/v1/rooms/{room}/recordings", body)
    return shown


def directory_of(api: Client, recording: str) -> Path:
    (found,) = (api.control.settings.data_dir / "recordings").glob(f"*/*/*/*/{recording}")
    return found


def key_of(api: Client, recording: str) -> str:
    return str(directory_of(api, recording).relative_to(api.control.settings.data_dir))


def segments(site: Site, key: str) -> list[str]:
    return [one.key for one in site.listing(key) if one.key.endswith(".seg")]


def same_everywhere(directory: Path, key: str, *sites: Site) -> int:
    """Check that every file is at every site byte by byte, and nothing else; returns how many."""
    here = {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    for site in sites:
        there = {one.key.removeprefix(f"{key}/"): site.read(one.key) for one in site.listing(key)}
        assert there.keys() == here.keys()
        assert [name for name, data in here.items() if there[name] != data] == []
    return len(here)


async def test_a_recording_is_at_its_sites_while_it_is_made(s3: S3Server, tmp_path: Path) -> None:
    configs = [site_config(s3, tmp_path, "first"), site_config(s3, tmp_path, "replica")]
    sites = [straight(s3, one) for one in configs]
    async with running(server_settings(tmp_path, configs)) as api, calling(api, "hall"):
        made = await start(api, "hall", "UP-1")
        key = key_of(api, made["id"])
        for site in sites:
            await until(lambda site=site: len(segments(site, key)) >= 3)  # type: ignore[misc]
            assert site.head(f"{key}/keys.json") is not None, (
                "without it a lost node's segments open for nobody"
            )
        assert (await api.ok("GET", f"/v1/recordings/{made['id']}"))["state"] == "recording"
        await api.ok("POST", f"/v1/recordings/{made['id']}/stop")
        for name in ("first", "replica"):
            await event(api, "storage.complete", made["id"], site=name)
        assert same_everywhere(directory_of(api, made["id"]), key, *sites) >= 6
        # What is added later goes as well.
        recordings = api.control.recordings
        entry = await recordings.find(made["id"])
        assert entry is not None
        signer = recordings.provider.signer()
        append_statement(directory_of(api, made["id"]), "review", {"verdict": "passed"}, signer)
        await recordings.uploads.changed(entry)
        for site in sites:
            await until(lambda site=site: site.head(f"{key}/statements/000001.json"))  # type: ignore[misc]
        text = (await api.ok("GET", "/metrics", key=None)).decode()
        assert 'shuanglu_upload_pending_bytes{site="first"} 0.0' in text
        assert 'shuanglu_uploaded_bytes_total{site="replica"}' in text


async def test_a_store_that_is_down_only_delays(
    s3: S3Server, faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "DELAYED_S", 0.5)
    monkeypatch.setattr(uploads, "LAST_RETRY_S", 0.5)
    config = site_config(s3, tmp_path, "first", faults)
    faults.set("refuse")
    async with running(server_settings(tmp_path, [config])) as api, calling(api, "hall"):
        made = await start(api, "hall", "UP-2")
        told = await event(api, "storage.delayed", made["id"])
        assert told["data"]["code"] == "unreachable"
        assert told["data"]["pending_bytes"] > 0
        text = (await api.ok("GET", "/metrics", key=None)).decode()
        assert 'shuanglu_upload_failures_total{code="unreachable",site="first"}' in text
        assert 'shuanglu_upload_pending_bytes{site="first"} 0.0' not in text
        await api.ok("POST", f"/v1/recordings/{made['id']}/stop")
        faults.clear()
        await event(api, "storage.restored", made["id"])
        await event(api, "storage.complete", made["id"])
        same_everywhere(directory_of(api, made["id"]), key_of(api, made["id"]), straight(s3, config))


@pytest.mark.parametrize("fault", ["cut", "corrupt_upload", "lose_answer", "slow"])
async def test_a_line_that_fails_now_and_then_loses_nothing(
    s3: S3Server, faults: Faults, tmp_path: Path, fault: str
) -> None:
    """Every other put fails, half-way or after the store has it."""
    config = site_config(s3, tmp_path, "first", faults)
    turn = iter(range(1_000_000))

    def every_other(one: Request) -> bool:
        return one.method == "PUT" and next(turn) % 2 == 0

    faults.set(fault, every_other, delay_s=0.3)
    async with running(server_settings(tmp_path, [config])) as api, calling(api, "hall"):
        made = await start(api, "hall", f"UP-{fault}")
        await until(lambda: faults.struck >= 3)
        await api.ok("POST", f"/v1/recordings/{made['id']}/stop")
        await event(api, "storage.complete", made["id"])
        same_everywhere(directory_of(api, made["id"]), key_of(api, made["id"]), straight(s3, config))


async def test_other_bytes_at_the_store_are_told_and_left(s3: S3Server, tmp_path: Path) -> None:
    config = site_config(s3, tmp_path, "first")
    site = straight(s3, config)
    async with running(server_settings(tmp_path, [config], local="delete", local_keep_s=0)) as api:
        await api.ok("POST", "/v1/rooms", {"name": "hall"})
        made = await start(api, "hall", "UP-3")
        key = key_of(api, made["id"])
        forged = tmp_path / "forged"
        create_file(forged, b"forged before the server came to it")
        await site.put_new(f"{key}/segments/p0001-000003.seg", forged)
        told = await event(api, "storage.conflict", made["id"])
        assert told["data"]["file"] == "segments/p0001-000003.seg"
        await api.ok("POST", f"/v1/recordings/{made['id']}/stop")
        directory = directory_of(api, made["id"])
        await until(lambda: site.head(f"{key}/manifest.json"))
        assert site.read(f"{key}/segments/p0001-000003.seg") == forged.read_bytes()
        await api.control.uploads.freeing.sweep()
        assert (directory / "segments" / "p0001-000003.seg").exists(), "the only good copy stays"


async def add_composite(api: Client, recording: str, size: int, seed: int) -> bytes:
    """Put a file and its statement beside a recording, as a composer's end does; returns the plain text."""
    recordings = api.control.recordings
    entry = await recordings.find(recording)
    assert entry is not None
    directory = recordings.directory(entry)
    key = await recordings.data_key(entry, purpose="test", actor="test")
    plain = random.Random(seed).randbytes(size)
    (directory / "files").mkdir(exist_ok=True)
    path = directory / "files" / "composite.mp4.{file_id}.sealed"
    with SealedWriter(path, key, kind="archive", media_type="video/mp4") as writer:
        writer.write(plain)
        body = {"files": [writer.close().to_json()]}
    append_statement(directory, "composite", body, recordings.provider.signer())
    await api.control.finishing.conclude(recording)
    return plain


async def test_media_leaves_this_disk_only_when_the_store_gives_it_back(
    s3: S3Server, faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    source = random.Random(seed)
    configs = [site_config(s3, tmp_path, "first", faults), site_config(s3, tmp_path, "replica")]
    settings = server_settings(tmp_path, configs, local="delete", local_keep_s=0)
    async with running(settings) as api:
        await api.ok("POST", "/v1/rooms", {"name": "hall"})
        made = await start(api, "hall", "UP-4")
        await asyncio.sleep(2.2)
        await api.ok("POST", f"/v1/recordings/{made['id']}/stop")
        plain = await add_composite(api, made["id"], 1_500_000, seed)
        directory = directory_of(api, made["id"])
        media = set(signed_digests(directory))
        for name in ("first", "replica"):
            await event(api, "storage.complete", made["id"], site=name)
        await until(lambda: len(list((settings.data_dir / "uploaded").glob("*"))) == 2)
        freeing = api.control.uploads.freeing
        # The store gives back other bytes than were signed: nothing goes, and it is told.
        faults.set("corrupt_download", lambda one: one.path.endswith(".sealed"))
        assert await freeing.sweep() == 0
        told = await event(api, "storage.damaged", made["id"])
        assert told["data"]["site"] == "first"
        assert all((directory / name).exists() for name in media)
        faults.clear()
        freeing.forget_failures()
        assert await freeing.sweep() == 1
        await event(api, "storage.local_deleted", made["id"], files=len(media))
        assert not any((directory / name).exists() for name in media)
        assert names_at_sites(directory) == media
        assert [one.name for one in files_of(directory)] == ["composite.mp4"], "an index built now knows them"

        where = f"/v1/recordings/{made['id']}/files/composite.mp4"
        for _ in range(10):
            begin = source.randrange(len(plain))
            end = source.randrange(begin, len(plain))
            headers = {"Range": f"bytes={begin}-{end}"}
            status, body, _ = await api.ask("GET", where, headers=headers)
            assert (status, body) == (206, plain[begin : end + 1]), f"seed {seed}"
        assert (await api.ask("GET", where))[1] == plain
        # The first site fails in both ways; the replica goes on.
        for fault in ("refuse", "corrupt_download"):
            faults.set(fault)
            assert (await api.ask("GET", where, headers={"Range": "bytes=100-999"}))[1] == plain[100:1000]
        faults.clear()
        # Verifying needs all of it: it comes back, stays for as long as it is verified, and goes again.
        swept: list[int] = []
        loop = asyncio.get_running_loop()

        def verify_beside_a_sweep(*given: Any, **named: Any) -> Report:
            swept.append(asyncio.run_coroutine_threadsafe(freeing.sweep(), loop).result(PATIENCE_S))
            return verify(*given, **named)

        with monkeypatch.context() as patched:
            patched.setattr(finishing, "verify", verify_beside_a_sweep)
            report = await api.ok("POST", f"/v1/recordings/{made['id']}/verify")
        assert report["ok"] is True
        assert swept == [0]
        assert all((directory / name).exists() for name in media)
        assert await freeing.sweep() == 1
        assert not any((directory / name).exists() for name in media)
        # With no site left it is said, and nothing is invented.
        for one in api.control.uploads.sites:
            for name in media:
                one.delete(f"{key_of(api, made['id'])}/{name}")
        problem = await api.problem("GET", where)
        assert problem["code"] == "file_not_found"


async def test_keys_are_erased_at_every_site(s3: S3Server, tmp_path: Path) -> None:
    configs = [site_config(s3, tmp_path, "first"), site_config(s3, tmp_path, "replica")]
    sites = [straight(s3, one) for one in configs]
    async with running(server_settings(tmp_path, configs)) as api:
        await api.ok("POST", "/v1/rooms", {"name": "hall"})
        made = await start(api, "hall", "UP-5")
        await api.ok("POST", f"/v1/recordings/{made['id']}/stop")
        for name in ("first", "replica"):
            await event(api, "storage.complete", made["id"], site=name)
        entry = await api.control.recordings.find(made["id"])
        assert entry is not None
        directory, key = directory_of(api, made["id"]), key_of(api, made["id"])
        (directory / "keys.json").unlink()
        done = await api.control.uploads.remove(entry, ["keys.json"])
        assert done.complete
        await api.control.uploads.changed(entry)
        await event(api, "storage.complete", made["id"], site="replica")
        assert [site.head(f"{key}/keys.json") for site in sites] == [None, None]


async def test_what_is_destroyed_leaves_every_site(s3: S3Server, faults: Faults, tmp_path: Path) -> None:
    configs = [site_config(s3, tmp_path, "first"), site_config(s3, tmp_path, "locked", faults)]
    sites = [straight(s3, one) for one in configs]
    settings = server_settings(tmp_path, configs)
    second = ApiKey("key-compliance", "two-persons" * 4, KEYS[0].tenant)
    path = settings.secrets_dir / "api-keys.yaml"
    listed = yaml.safe_load(path.read_text())
    path.write_text(
        yaml.safe_dump([*listed, {"id": second.id, "secret": second.secret, "tenant": second.tenant}])
    )
    async with running(settings) as api:
        await api.ok("POST", "/v1/rooms", {"name": "hall"})
        body = {"business_no": "UP-6", "retention": {"basis": "contract", "until": "2020-01-01"}}
        made = await api.ok("POST", "/v1/rooms/hall/recordings", body)
        where = f"/v1/recordings/{made['id']}"
        await api.ok("POST", f"{where}/stop")
        await add_composite(api, made["id"], 1000, 1)
        key, directory = key_of(api, made["id"]), directory_of(api, made["id"])
        media = set(signed_digests(directory)) | {"keys.json"}
        for site in sites:
            await until(lambda site=site: media <= names_there(site, key))  # type: ignore[misc]
        faults.set("deny", lambda one: one.method == "DELETE" and one.path.endswith(".seg"))
        await until(lambda: (directory / "statements" / "000002.json").exists())
        proposed = await api.ok("POST", f"{where}/destruction", {"reason": "expired"})
        approval = {"proposal": proposed["proposals"][0]["statement"]}
        await api.ok("POST", f"{where}/destruction/approve", approval, key=second)
        told = await event(api, "storage.not_removed", made["id"])
        assert told["data"]["kept"] == len([name for name in media if name.endswith(".seg")])
        assert all("locked" in name and "AccessDenied" in why for name, why in told["data"]["why"].items())
        assert not media & names_there(sites[0], key)
        assert {name for name in media & names_there(sites[1], key) if not name.endswith(".seg")} == set()
        # The tombstone itself goes to the sites, where it says why the rest is not there.
        number = len(list((directory / "statements").glob("*.json")))
        for site in sites:
            await until(lambda site=site: f"statements/{number:06d}.json" in names_there(site, key))  # type: ignore[misc]


async def test_a_new_machine_takes_over_from_the_store_alone(s3: S3Server, tmp_path: Path) -> None:
    """As docs/storage.md says: secrets from the safe, pages from the store, then the server is started."""
    config = site_config(s3, tmp_path, "first")
    site = straight(s3, config)
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    old = server_settings(tmp_path / "old", [config])
    async with running(old) as api:
        await api.ok("POST", "/v1/rooms", {"name": "hall"})
        ended = await start(api, "hall", "UP-7")
        await api.ok("POST", f"/v1/recordings/{ended['id']}/stop")
        plain = await add_composite(api, ended["id"], 400_000, 7)
        await until(lambda: site.head(f"{key_of(api, ended['id'])}/statements/000001.json"))
        cut_off = await start(api, "hall", "UP-8")
        key = key_of(api, cut_off["id"])
        await until(lambda: len(segments(site, key)) >= 2)
    new = server_settings(tmp_path / "new", [config])
    shutil.rmtree(new.secrets_dir)
    shutil.copytree(old.secrets_dir, new.secrets_dir)
    shutil.rmtree(old.data_dir)
    await asyncio.to_thread(fetch, site, "", new.data_dir, pages_only=True)
    async with running(new) as api:
        where = f"/v1/recordings/{ended['id']}"
        assert (await api.ok("GET", where))["state"] == "sealed"
        assert not list(directory_of(api, ended["id"]).rglob("*.seg"))
        status, body, _ = await api.ask(
            "GET", f"{where}/files/composite.mp4", headers={"Range": "bytes=5-99"}
        )
        assert (status, body) == (206, plain[5:100])
        assert (await api.ok("POST", f"{where}/verify"))["ok"] is True
        async with asyncio.timeout(PATIENCE_S):
            while (await api.ok("GET", f"/v1/recordings/{cut_off['id']}"))["state"] != "recovered":
                await asyncio.sleep(0.05)
        await until(lambda: site.head(f"{key}/manifest.json"))
        assert (await api.ok("POST", f"/v1/recordings/{cut_off['id']}/verify"))["ok"] is True


def names_there(site: Site, key: str) -> set[str]:
    return {one.key.removeprefix(f"{key}/") for one in site.listing(key)}


async def test_a_site_that_is_gone_from_the_settings_ends_its_tasks(tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    settings = server_settings(tmp_path, [{"name": "share", "url": f"file://{tmp_path / 'share'}"}])
    async with running(settings) as api:
        began = time.monotonic()
        await api.control.uploads.upload(json.dumps(["elsewhere", "0199"]))
        await api.control.uploads.upload(json.dumps(["share", "no such recording"]))
        assert time.monotonic() - began < PATIENCE_S


async def test_a_silent_site_takes_no_thread_from_anybody(s3: S3Server, tmp_path: Path) -> None:
    """It takes connections and never answers; all that the rest of the server has is one thread."""
    config = {**site_config(s3, tmp_path, "silent"), "timeout_s": 300.0}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        config["endpoint"] = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with running(server_settings(tmp_path, [config])) as api:
            loop = asyncio.get_running_loop()
            loop.set_default_executor(ThreadPoolExecutor(1))
            await api.ok("POST", "/v1/rooms", {"name": "hall"})
            made = await start(api, "hall", "UP-9")
            connection, _ = await loop.sock_accept(listener)
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await asyncio.to_thread(int)
                    await api.ok("POST", f"/v1/recordings/{made['id']}/stop")
            finally:
                listener.close()
                connection.close()


async def test_what_is_added_while_an_upload_ends_goes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = tmp_path / "share"
    share.mkdir()
    settings = server_settings(tmp_path, [{"name": "share", "url": f"file://{share}"}])
    async with running(settings) as api:
        freeing, added = api.control.uploads.freeing, list[Statement]()
        arrived = freeing.arrived

        async def add(entry: Entry, site: Site) -> None:
            await arrived(entry, site)
            if not added:
                directory, signer = directory_of(api, entry.id), api.control.recordings.provider.signer()
                review = {"verdict": "passed"}
                added.append(await asyncio.to_thread(append_statement, directory, "review", review, signer))
                await api.control.uploads.changed(entry)

        monkeypatch.setattr(freeing, "arrived", add)
        await api.ok("POST", "/v1/rooms", {"name": "hall"})
        made = await start(api, "hall", "UP-10")
        await api.ok("POST", f"/v1/recordings/{made['id']}/stop")
        await until(lambda: bool(added))
        name = f"{added[0].number:06d}.json"
        await until(lambda: (share / key_of(api, made["id"]) / "statements" / name).exists())
