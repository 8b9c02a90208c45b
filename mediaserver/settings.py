"""What an operator can set, each key with its default and the consequence of changing it.

Key names carry their unit (``drain_s``, ``chunk_ms``, ``queue_bytes``); values are plain numbers. Reading
a file and the environment is in config.py; configs/default.yaml is made from the descriptions here. The
section ``crypto`` is in key_settings.py.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

import ifaddr
import pydantic
from pydantic import AfterValidator, Field, SecretStr

from mediaserver.attest_settings import Timestamp
from mediaserver.key_settings import Crypto
from mediaserver.network_settings import Http, Port, Tls, Turn
from mediaserver.section import Section
from recorder.custody import after
from recorder.keys import ProviderConfig
from recorder.sites.config import SiteConfig
from recorder.template import Profile


def _network(value: str) -> str:
    ipaddress.ip_network(value)
    return value


def _address(value: str) -> str:
    ipaddress.ip_address(value)
    return value


def _bound(values: tuple[str, ...]) -> tuple[str, ...]:
    """Put in place of each interface's name the addresses it has now, link-local ones left out."""
    found: list[str] = []
    for value in values:
        try:
            own = [str(ipaddress.ip_address(value))]
        except ValueError:
            named = [adapter for adapter in ifaddr.get_adapters() if adapter.name == value]
            texts = [ip.ip if isinstance(ip.ip, str) else ip.ip[0] for adapter in named for ip in adapter.ips]
            own = [text for text in texts if not ipaddress.ip_address(text.partition("%")[0]).is_link_local]
            if not own:
                raise ValueError(f"{value!r} is no address, nor an interface that has one") from None
        found += [text for text in own if text not in found]
    return tuple(found)


def _period(value: str) -> str:
    after(0, value)
    return value


Network = Annotated[str, AfterValidator(_network)]
Address = Annotated[str, AfterValidator(_address)]
Positive = Annotated[float, Field(gt=0)]
Period = Annotated[str, AfterValidator(_period)]
"""ISO 8601: years, months, days."""


class Media(Section):
    """The media workers: processes that relay and record, each with one UDP port."""

    workers: int = Field(
        default=0, ge=0, le=256, description="Worker processes. 0: one per core. A room lives in one worker."
    )
    spare: bool = Field(
        default=True,
        description="Keep one more worker process loaded, without port or rooms (about 60 MB). When a worker "
        "dies it takes over in a fraction of a second; without it calls wait for a new process.",
    )
    port: Port = Field(
        default=7882,
        description="UDP port of the first worker; the others follow (7883 …). Open them in the firewall. "
        "0: any free ones; for tests.",
    )
    tcp_port: Port | None = Field(
        default=7881,
        description="TCP port for clients whose firewall lets no UDP through (ICE-TCP), one for all workers. "
        "null: such clients need TURN. 0: a free one for each worker; for tests.",
    )
    bind: Annotated[tuple[str, ...], AfterValidator(_bound)] = Field(
        default=("0.0.0.0",),  # noqa: S104  calls come from the network
        description="Addresses or interfaces (such as eth1, by its addresses at the start) that calls come "
        "in by, UDP and TCP. List each by itself on a machine with several networks: what is not listed is "
        "shut.",
    )
    advertised: tuple[Address, ...] = Field(
        default=(),
        description="Addresses that clients are told to send media to. Empty: all of this machine and "
        "127.0.0.1. "
        "Behind NAT or in a DMZ: the public address, else calls connect only inside.",
    )
    forwarder: Literal["auto", "native", "python"] = Field(
        default="auto",
        description="native: the compiled packet loop. python: its slow twin (2-4 times the CPU). "
        "auto: native where it could be built, else python with a warning.",
    )
    receive_buffer_bytes: int = Field(
        default=4 << 20,
        ge=65536,
        description="Kernel receive buffer of each UDP socket. Smaller: packets are lost when a core is busy "
        "for "
        "some milliseconds. The kernel caps it at net.core.rmem_max; the doctor command checks.",
    )
    codecs: tuple[str, ...] = Field(
        default=("video/VP8", "video/H264", "audio/opus"),
        min_length=1,
        description="Codecs of a room unless it names its own, best first. video/VP9 and video/AV1 pass "
        "through. A client that fits none is refused with codec_mismatch.",
    )
    red: Literal["off", "accept", "prefer"] = Field(
        default="accept",
        description="Sound whose packets repeat the frame before (RED, RFC 2198): a lost packet is heard and "
        "recorded all the same, for some 30 kbit/s more. accept: from clients that prefer it. prefer: from "
        "all that offer it, such as Chromium. off: from none. A listener without it hears plain Opus.",
    )
    consent_s: Positive = Field(
        default=15.0,
        description="A client not heard from for this long has left; one that sends but does not check its "
        "connection, after 30 s (RFC 7675). Shorter: gone clients vanish sooner, short network blips end "
        "sessions.",
    )
    idle_room_s: Positive = Field(
        default=30.0, description="A room closes this long after its last participant left."
    )


class Recording(Section):
    """The journal, the original of every recording."""

    segment_s: Positive = Field(
        default=10.0,
        description="Length of a sealed journal file. Shorter: more files; longer: more is lost with the "
        "disk "
        "once uploads are on.",
    )
    chunk_ms: Annotated[int, Field(ge=20, le=1000)] = Field(
        default=250,
        description="Media is sealed and written at least this often. A worker that is killed (kill -9) "
        "loses this and the time of one write: stated as 1 s at most.",
    )
    chunk_bytes: Annotated[int, Field(ge=4096, le=1 << 20)] = Field(
        default=256 << 10,
        description="… or when this much has come. Small chunks seal slowly (SM4 likes large ones).",
    )
    fsync: bool = Field(
        default=True,
        description="true: journals are made durable each second; a power cut costs 2 s at most, on a disk "
        "that keeps its word. false: only finished segments are, so it costs up to one segment (segment_s) "
        "and recordings that had just begun; a killed process loses no more than with it. "
        "What it costs: docs/operations.md.",
    )
    queue_bytes: int = Field(
        default=64 << 20,
        ge=1 << 20,
        description="Memory per worker for media not yet written. When the disk stalls for longer than this "
        "holds (about 60 s of 8 Mbit/s), packets are dropped, counted and listed as gaps.",
    )
    min_free_bytes: int = Field(
        default=1 << 30,
        ge=0,
        description="With less free disk space no recording starts (507 disk_full, event disk.full); "
        "running ones have this much left.",
    )
    low_free_bytes: int = Field(
        default=10 << 30,
        ge=0,
        description="With less free disk space disk.low is told, once, until there is a quarter more: an "
        "hour of ten recorded calls takes about 10 GB.",
    )
    auto: bool = Field(
        default=False,
        description="true: every room is recorded from its first participant on. business_no is the room's "
        "name.",
    )
    auto_mode: Literal["single", "composite", "both"] = Field(
        default="composite", description="What an automatic recording makes."
    )


class Composing(Section):
    """Making the composite MP4 from the journal."""

    when: Literal["live", "after_stop", "off_peak", "on_demand"] = Field(
        default="live",
        description="live: follows the call, ready seconds after it. after_stop: costs no CPU during calls. "
        "off_peak: in the hours of off_peak. on_demand: when first fetched.",
    )
    off_peak: str = Field(
        default="20:00-06:00",
        pattern=r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$",
        description="Local hours in which off_peak jobs run.",
    )
    profile: Profile = Field(
        default="standard",
        description="standard: 1280x720, 25 frames/s. evidence: 15 frames/s, about a quarter less CPU. hd: "
        "1920x1080, 25 frames/s, twice the CPU.",
    )
    live_cores: float = Field(
        default=0.0,
        ge=0.0,
        le=1024.0,
        description="Cores that composites following their calls may take together, by what they were "
        "measured to cost; what does not fit is composed after its call. 0: nine tenths of the machine.",
    )
    max_parallel: int = Field(
        default=0,
        ge=0,
        description="Composites made at once, each up to one core, at low priority. 0: one per core. "
        "More wait in a queue and are ready later.",
    )
    attempts: int = Field(
        default=5,
        ge=1,
        le=20,
        description="A composing job that dies is started again this often before it fails.",
    )


class Retention(Section):
    """How long recordings are kept at least. Nothing is ever destroyed by itself: what is due is listed, and
    two persons destroy it.
    """

    policies: dict[str, dict[Literal["original", "archive", "derived"], Period]] = Field(
        default={},
        description="Name of a policy to periods from the end of the recording, per kind of file, such as "
        '{"insurance": {"original": "P1Y", "archive": "P10Y", "derived": "P10Y"}}. A kind that is left out '
        "is kept until somebody sets its time. Later changes do not touch recordings that were made.",
    )
    default: str | None = Field(
        default=None,
        description="Policy of recordings whose start names none. null: they are kept until somebody says "
        "otherwise.",
    )


class Tokens(Section):
    """Times of tokens, invitations and browser sessions."""

    leeway_s: float = Field(
        default=30.0,
        ge=0,
        le=300,
        description="Clock difference between token makers and this server that is forgiven.",
    )
    server_max_s: int = Field(
        default=300,
        ge=10,
        le=3600,
        description="Longest life of a server's own JWT; longer ones are refused.",
    )
    client_ttl_s: int = Field(
        default=3600, ge=10, description="Life of a client token unless the request says."
    )
    client_max_s: int = Field(
        default=86400,
        ge=10,
        description="Longest life of a client token. A leaked one opens its room for as long.",
    )
    invite_ttl_s: int = Field(
        default=600, ge=10, description="An invitation's one-time code works for this long."
    )
    session_ttl_s: int = Field(
        default=28800,
        ge=60,
        description="A browser that signed in by invitation stays signed in for this long.",
    )


class Database(Section):
    """The index of recordings. It can be deleted and rebuilt from them (recorder reindex)."""

    url: SecretStr | None = Field(
        default=None,
        description="SQLAlchemy URL. null: SQLite in the data directory. PostgreSQL for several nodes.",
    )
    url_file: Path | None = Field(
        default=None, description="File that holds the URL, because it has a password."
    )


class Storage(Section):
    """Object stores that get every recording while its call goes on: sealed bytes and signed pages only."""

    sites: tuple[SiteConfig, ...] = Field(
        default=(),
        description="S3-compatible stores or directories, the first one read first, the others its replicas. "
        "Each: name, url (s3://bucket/prefix or file:///directory), endpoint, region, credentials_file "
        "(0600), ca_file, path_style, checksum, object_lock, timeout_s; docs/storage.md. Empty: this disk "
        "holds the only copy. With a site a lost machine costs at most one segment (recording.segment_s) and "
        "the time of its upload.",
    )
    local: Literal["keep", "delete"] = Field(
        default="keep",
        description="delete: media leaves this disk once every site has it, read back and compared with its "
        "signed SM3; it is then read from the sites. Keys, manifests and statements stay.",
    )
    local_keep_s: float = Field(
        default=86400.0,
        ge=0,
        description="With local: delete, media stays here for so long after its upload. It goes earlier when "
        "less than twice recording.min_free_bytes is free.",
    )
    parallel: int = Field(
        default=4, ge=1, le=64, description="Uploads at once to each site; each holds up to 8 MiB of memory."
    )
    max_bytes_per_s: int = Field(
        default=0,
        ge=0,
        description="Upload rate to each site. 0: unlimited. Below what the calls produce uploads lag, and "
        "more than a segment is lost with the machine.",
    )

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> Storage:
        names = [site.name for site in self.sites]
        if len(set(names)) != len(names):
            raise ValueError("storage.sites: each needs a name of its own")
        if self.local == "delete" and not self.sites:
            raise ValueError("storage.local: delete needs a site that keeps the recordings")
        return self


class Audit(Section):
    """The audit log: who did what, and what proves the recordings' ends (docs/audit.md)."""

    heads_s: Annotated[float, Field(ge=2, le=600)] = Field(
        default=10.0,
        description="How often the log notes how far each running journal was signed. What a journal wrote "
        "since could be cut off a crashed recording unnoticed.",
    )
    anchor_s: Annotated[float, Field(ge=10, le=86400)] = Field(
        default=3600.0,
        description="How often each tenant's anchor is signed and, if anchor_webhook is set, posted. What "
        "the log wrote since could be cut off by whoever holds the log.",
    )
    anchor_webhook: str = Field(
        default="",
        pattern=r"^(https?://\S+)?$",
        description="URL outside this server's administration that keeps the anchors (each a signed page). "
        "Empty: nothing outside bounds what an administrator could remove from the log's end.",
    )
    anchor_secret_file: Path | None = Field(
        default=None,
        description="File with the secret that signs these deliveries as webhooks are (HMAC-SHA-256). null: "
        "only the page's own SM2 signature vouches for it.",
    )
    keep_days: Annotated[int, Field(ge=183)] = Field(
        default=1095,
        description="Files of the log go when their newest entry is older, and the log says so. The law asks "
        "for six months at least; keep it as long as the recordings it proves.",
    )


class Webhook(Section):
    """Delivery of events to the URL an API key names (webhook_url in api-keys.yaml)."""

    timeout_s: Positive = Field(
        default=10.0, description="An answer slower than this counts as a failed try."
    )
    retry_hours: Positive = Field(
        default=72.0,
        description="Tries go on for this long, ever more seldom. After it the event is only in /v1/events.",
    )


class Log(Section):
    """The log, on standard error. Secrets and tokens never appear in it."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="debug adds one line per request and signalling step."
    )
    format: Literal["auto", "json", "console"] = Field(
        default="auto", description="json: one object a line. auto: console on a terminal, else json."
    )


class Settings(Section):
    """Everything an operator can set."""

    environment: Literal["development", "production"] = Field(
        default="development",
        description="production refuses to start with development keys. Recordings made under "
        "development keys "
        ""
        "say so for ever.",
    )
    data_dir: Path = Field(
        default=Path("data"),
        description="Recordings, index, secrets and sockets. Relative to the directory the server starts in. "
        "Back it up; losing secrets/ loses the recordings.",
    )
    trusted_proxy: tuple[Network, ...] = Field(
        default=(),
        description="Networks whose X-Forwarded-For and -Proto are believed, such as 10.0.0.5/32. Too wide: "
        "clients can forge their address in the audit.",
    )
    drain_s: float = Field(
        default=30.0,
        ge=0,
        description="After SIGTERM no new rooms; calls get this long to end, then recordings are closed "
        "cleanly. "
        "A second SIGTERM closes at once. Must be below the container's stop grace time.",
    )
    http: Http = Http()
    tls: Tls = Tls()
    media: Media = Media()
    turn: Turn = Turn()
    recording: Recording = Recording()
    composing: Composing = Composing()
    retention: Retention = Retention()
    tokens: Tokens = Tokens()
    crypto: Crypto = Crypto()
    timestamp: Timestamp = Timestamp()
    database: Database = Database()
    storage: Storage = Storage()
    webhook: Webhook = Webhook()
    audit: Audit = Audit()
    log: Log = Log()

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> Settings:
        if (self.tls.cert is None) != (self.tls.key is None):
            raise ValueError("tls.cert and tls.key belong together: give both or none")
        if not self.tls.enabled and not self.trusted_proxy and not is_loopback(self.http.host):
            raise ValueError(
                f"tls.enabled: plain HTTP on {self.http.host} is refused; "
                "listen on 127.0.0.1, name the TLS proxy in trusted_proxy, or leave TLS on"
            )
        if self.retention.default is not None and self.retention.default not in self.retention.policies:
            raise ValueError(f"retention.default: there is no policy {self.retention.default}")
        if self.composing.when == "off_peak" and self.composing.off_peak[:5] == self.composing.off_peak[6:]:
            raise ValueError("composing.off_peak: begins when it ends")
        return self

    @property
    def run_dir(self) -> Path:
        """Where the workers' sockets are (0700)."""
        return self.data_dir / "run"

    @property
    def secrets_dir(self) -> Path:
        return self.data_dir / "secrets"

    @property
    def recordings_dir(self) -> Path:
        return self.data_dir / "recordings"

    @property
    def crypto_dir(self) -> Path:
        return self.crypto.directory or self.secrets_dir / "crypto"


class WorkerConfig(Section):
    """What a media worker is told: one JSON line on its standard input (see supervisor.py)."""

    index: int
    socket: Path
    """The Unix socket to listen on (ipc.IpcServer)."""
    bind: tuple[str, ...]
    port: int
    """UDP port on every bound address. 0: any free one, the same on all of them."""
    tcp_port: int | None = None
    """TCP port shared with the other workers; None: no ICE-TCP."""
    advertised: tuple[str, ...]
    """Addresses of the ICE candidates; the port is the bound one."""
    media: Media
    recording: Recording
    keys: ProviderConfig
    """Where the signing key is; never what opens a recording."""
    log: Log
    heads_s: float = 10.0
    """How often the worker tells how its journals stand."""


def is_loopback(host: str) -> bool:
    """Say whether ``host`` is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
