"""From measured figures to machines: what a number of calls needs, by composing policy.

Pure arithmetic over reports of this benchmark. Every result names the figures it was made from, and every
figure where it was measured. docs/benchmarks.md ("Sizing") has the formulas in words.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

BASELINE: Final = Path(__file__).with_name("baseline.json")
"""Figures for what no given report has: ``{"reports": […], "figures": {name: {value, unit, where}}}``."""
AUDIO_BPS: Final = 32_000
AUDIO_PER_S: Final = 50
"""Opus in packets of 20 ms."""
WIRE_BYTES: Final = 8 + 20 + 18
"""UDP, IPv4, Ethernet with its checksum, around a packet."""
TAG_BYTES: Final = 16
"""SRTP's, in what the generator counts, not in the journal."""
RTP_BYTES: Final = 28
"""An RTP header with its extensions: a file has none."""
ENTRY_BYTES: Final = 8
"""What a packet's place in a journal chunk takes (recorder/journal/encoding.py)."""
CONTAINER: Final = 1.01
"""Chunk headers, tags, checkpoints and index of the sealed files."""
CHUNK_S: Final = 0.25
CHUNK_BYTES: Final = 256 * 1024
"""A journal's chunk is closed and written after the one or at the other (recorder/journal/commit.py)."""
SYNCS_PER_S: Final = 1.0
"""fdatasync of every open journal (the same)."""
CHECKPOINTS_PER_S: Final = 0.5
IO_PER_SYNC: Final = 2
"""The gathered data, and the file system's own journal."""
REJOIN_S: Final = 5.0
"""A dead machine's calls should be back on the others within this time."""
GIB: Final = 2**30


@dataclass(frozen=True)
class Machine:
    """What one machine has."""

    cores: int = 32
    memory_gib: int = 128
    network_gbit: float = 10.0
    write_mb_s: float = 500.0
    iops: int = 20_000


@dataclass(frozen=True)
class Wanted:
    """What the operator plans for. Raises ValueError naming the option that makes no sense."""

    calls: int
    """Two-party calls at the busiest time."""
    minutes: float
    per_day: int
    retain: str
    bitrate_kbps: int | None = None
    """Video of one party; None: as in the report."""
    night_hours: float = 10.0
    busy: float = 0.7
    """The share of a core, a link or a disk that is planned for; the rest: peaks, and a machine's death."""
    machine: Machine = field(default_factory=Machine)

    def __post_init__(self) -> None:
        positive = {
            "--calls": self.calls,
            "--minutes": self.minutes,
            "--per-day": self.per_day,
            "--machine-cores": self.machine.cores,
            "--machine-memory-gib": self.machine.memory_gib,
        }
        for option, value in positive.items():
            if not value > 0:
                raise ValueError(f"{option} {value}: must be above 0")
        if self.bitrate_kbps is not None and self.bitrate_kbps <= 0:
            raise ValueError(f"--bitrate {self.bitrate_kbps}: must be above 0")
        if not 0 < self.night_hours <= 24:
            raise ValueError(f"--night-hours {self.night_hours:g}: a night has up to 24 hours")
        if not 0 < self.busy <= 1:
            raise ValueError(f"--busy {self.busy:g}: a share above 0, up to 1")
        retention_days(self.retain)
        at_once = self.per_day * self.minutes / (24 * 60)
        if at_once > self.calls:
            raise ValueError(
                f"--per-day {self.per_day}: so many calls of {self.minutes:g} min are {at_once:,.0f} at once"
                f" all day and night, more than --calls {self.calls}"
            )


def retention_days(text: str) -> int:
    """Return the days of ``90d``, ``12m`` or ``10y``. Raises ValueError naming ``--retain``."""
    found = re.fullmatch(r"([1-9][0-9]{0,4})([dmy])", text)
    if found is None:
        raise ValueError(f"--retain {text!r}: a number and d, m or y, such as 90d, 12m, 10y")
    return math.ceil(int(found.group(1)) * {"d": 1, "m": 365.25 / 12, "y": 365.25}[found.group(2)])


@dataclass(frozen=True)
class Figure:
    """A measured value and where it comes from."""

    value: float
    unit: str
    where: str


@dataclass(frozen=True)
class Row:
    """One need: of what, how much, how many machines that alone takes, and from which figures."""

    name: str
    value: float
    unit: str
    machines: int | None
    figures: tuple[str, ...]


@dataclass(frozen=True)
class Policy:
    """A way of composing, when it is done, and the figures whose product is its cost and its size."""

    title: str
    cost: tuple[str, ...] = ()
    bytes: tuple[str, ...] = ()
    at_night: bool = False
    singles: bool = False
    """Files of what was sent, without encoding again: their size is that of the media."""


COST: Final = "composite_standard_cpu_s_per_min"
BYTES: Final = "composite_standard_bytes_per_min"
_EVIDENCE: Final = (COST, "evidence_cpu_share"), (BYTES, "evidence_bytes_share")
POLICIES: Final = {
    "live_standard": Policy("composed live, standard", (COST,), (BYTES,)),
    "live_evidence": Policy("composed live, evidence", *_EVIDENCE),
    "night_standard": Policy("composed at night, standard", (COST,), (BYTES,), at_night=True),
    "night_evidence": Policy("composed at night, evidence", *_EVIDENCE, at_night=True),
    "singles": Policy("single pictures only", (COST, "singles_cpu_share"), singles=True),
    "none": Policy("nothing composed"),
}


def size(wanted: Wanted, measured: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return cores, memory, disk, IOPS, network and machines for every composing policy.

    ``measured``: (name, report) pairs; later ones win. What they do not have comes from ``baseline.json``.
    Raises ValueError when a figure is nowhere.
    """
    figures = gather(measured)
    policies = {name: _plan(policy, wanted, figures) for name, policy in POLICIES.items()}
    worst = max(policies, key=lambda name: policies[name]["machines"])
    return {
        "scenario": "size",
        "wanted": {**asdict(wanted), "retain_days": retention_days(wanted.retain)},
        "figures": {name: asdict(figure) for name, figure in figures.items()},
        "policies": policies,
        "worst": {"policy": worst, "row": policies[worst]["worst"], "machines": policies[worst]["machines"]},
    }


# --- what was measured


def load(paths: Sequence[Path]) -> list[tuple[str, Mapping[str, Any]]]:
    """Read reports for `size`. Raises ValueError naming the file."""
    from bench.everything import read

    return [(str(path), report) for path in paths for report in read([path])]


def gather(measured: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Figure]:
    """Take from the reports what sizing needs; the baseline fills what is missing."""
    baseline = json.loads(BASELINE.read_text(encoding="utf-8"))
    known = {name: Figure(**figure) for name, figure in baseline["figures"].items()}
    known.update(_taken([(f"bench/{BASELINE.name}", report) for report in baseline["reports"]]))
    known.update(_taken(measured))
    if missing := [name for name in NEEDED if name not in known]:
        raise ValueError(f"no report and no baseline has {', '.join(missing)}")
    return {name: known[name] for name in NEEDED}


NEEDED: Final = (
    "packets_per_s_per_call",
    "bytes_per_s_per_call",
    "video_kbps",
    "forward_us_per_packet",
    "record_us_per_packet",
    "join_ms_per_participant",
    "recorded_rooms_per_core",
    "kib_per_participant",
    "idle_mib_per_machine",
    "idle_mib_per_worker",
    "composer_mib",
    COST,
    BYTES,
    "evidence_cpu_share",
    "evidence_bytes_share",
    "singles_cpu_share",
    "seal_mb_per_cpu_s",
)


def _taken(measured: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    loads: dict[bool, dict[int, tuple[str, Mapping[str, Any]]]] = {False: {}, True: {}}
    for source, report in measured:
        if "failed" in report:
            continue
        scenario = report.get("scenario")
        if scenario == "forward":
            for one in _loads(report):
                if one["parties"] == 2 and "ours" in one["servers"]:
                    loads[one["record"]][one["rooms"]] = source, one
        elif scenario in _READERS:
            found.update(_READERS[scenario](source, report))
    found.update(_forwarded(loads))
    return found


def _loads(report: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a forward report's loads, each with the machine it was measured on."""
    for load in report.get("loads", [report]):
        yield {"machine": report.get("machine", {}), **load}


def _forwarded(loads: Mapping[bool, Mapping[int, tuple[str, Mapping[str, Any]]]]) -> dict[str, Figure]:
    """Read the heaviest load; recording is the difference at the heaviest load measured both ways."""
    found: dict[str, Figure] = {}
    plain, recorded = loads[False], loads[True]
    if plain:
        rooms = max(plain)
        source, report = plain[rooms]
        ours, where = report["servers"]["ours"], _where(source, report, f"{rooms} rooms")
        packets = _median(ours["packets_per_s"]) / rooms
        octets = _median(ours["mbit_per_s"]) * 1e6 / 8 / rooms
        found["packets_per_s_per_call"] = Figure(round(packets, 2), "packets/s", where)
        found["bytes_per_s_per_call"] = Figure(round(octets, 1), "bytes/s of SRTP", where)
        found["video_kbps"] = Figure(report["bitrate_bps"] / 1000, "kbit/s a party", where)
        cost = _median(ours["cpu_us_per_packet"])
        found["forward_us_per_packet"] = Figure(cost, "µs of CPU", where)
        kib = _median(ours["kib_per_participant"])
        found["kib_per_participant"] = Figure(kib, "KiB", where)
    if both := sorted(plain.keys() & recorded.keys()):
        source, report = recorded[both[-1]]
        without, with_ = (
            _median(one[both[-1]][1]["servers"]["ours"]["cpu_us_per_packet"]) for one in (plain, recorded)
        )
        where = _where(source, report, f"{both[-1]} rooms, with − without recording")
        found["record_us_per_packet"] = Figure(round(max(with_ - without, 0), 2), "µs of CPU", where)
    if recorded:
        source, report = recorded[max(recorded)]
        kib = _median(report["servers"]["ours"]["kib_per_participant"])
        found["kib_per_participant"] = Figure(kib, "KiB", _where(source, report, "recorded"))
    return found


def _joined(source: str, report: Mapping[str, Any]) -> dict[str, Figure]:
    cost = _median(report["servers"]["ours"]["cpu_ms_per_participant"])
    return {"join_ms_per_participant": Figure(cost, "ms of CPU", _where(source, report))}


def _capacity(source: str, report: Mapping[str, Any]) -> dict[str, Figure]:
    if not report["record"] or not report["servers"]["ours"]["rooms_per_core"]:
        return {}
    ours = report["servers"]["ours"]
    where = _where(source, report, f"stopped by: {ours['stopped']}")
    return {"recorded_rooms_per_core": Figure(ours["rooms_per_core"], "rooms", where)}


def _composed(source: str, report: Mapping[str, Any]) -> dict[str, Figure]:
    call, where = report["call"], _where(source, report)
    octets = round(call["ours_bytes"] * 60 / report["seconds"])
    found = {
        COST: Figure(call["ours_cpu_s_per_min"], "CPU-s", where),
        BYTES: Figure(octets, "bytes", where),
    }
    if evidence := report.get("call_evidence"):
        for name, key in (("cpu", "ours_cpu_s_per_min"), ("bytes", "ours_bytes")):
            share = Figure(round(evidence[key] / call[key], 3), "of a standard minute", where)
            found[f"evidence_{name}_share"] = share
    return found


def _sealed(source: str, report: Mapping[str, Any]) -> dict[str, Figure]:
    return {"seal_mb_per_cpu_s": Figure(report["seal_mb_per_cpu_s"], "MB per CPU-s", _where(source, report))}


_READERS: Final = {"join": _joined, "capacity": _capacity, "compose": _composed, "seal": _sealed}


def _median(figure: object) -> float:
    if isinstance(figure, Mapping):
        return float(figure["median"])
    if isinstance(figure, int | float):
        return float(figure)
    raise ValueError(f"not a measured figure: {figure!r}")


def _where(source: str, report: Mapping[str, Any], note: str = "") -> str:
    about = report.get("machine", {})
    parts = [
        note,
        f"commit {about['commit']}" if about.get("commit") else "",
        str(about.get("at", ""))[:10],
        str(about.get("cpu", "")),
    ]
    return f"{source} ({', '.join(part for part in parts if part)})"


# --- what is needed


def _plan(policy: Policy, wanted: Wanted, figures: Mapping[str, Figure]) -> dict[str, Any]:
    """Fill one policy's rows, count its machines, and name the row that decides."""
    rows = [
        *_cores(policy, wanted, figures),
        *_memory(policy, wanted, figures),
        *_stored(policy, wanted, figures),
    ]
    deciding = [row for row in rows if row.machines is not None]
    worst = max(deciding, key=lambda row: (row.machines or 0, row.name == "cores to buy"))
    machines = max(worst.machines or 1, 1)
    if worst.name == "cores to buy":  # say which of them
        worst = max(
            (row for row in rows if row.unit == "cores" and row is not worst), key=lambda row: row.value
        )
    rows += [_rejoin(machines, wanted, figures), _sync(machines, wanted)]
    return {
        "title": policy.title,
        "rows": [{**asdict(row), "value": round(row.value, 3)} for row in rows],
        "machines": machines,
        "with_spare": machines + 1,
        "worst": worst.name,
    }


def _traffic(wanted: Wanted, figures: Mapping[str, Figure]) -> tuple[float, float]:
    """Return packets/s and SRTP bytes/s of one call (both directions), at the wanted bitrate.

    Sound stays as it was measured; video's packets grow with its bytes, for they are full.
    """
    packets, octets = figures["packets_per_s_per_call"].value, figures["bytes_per_s_per_call"].value
    if wanted.bitrate_kbps is None:
        return packets, octets
    times = wanted.bitrate_kbps / figures["video_kbps"].value
    sound_packets = min(2 * AUDIO_PER_S, packets)
    sound_octets = min(2 * AUDIO_BPS / 8 + sound_packets * (12 + TAG_BYTES), octets)
    return sound_packets + (packets - sound_packets) * times, sound_octets + (octets - sound_octets) * times


def _cores(policy: Policy, wanted: Wanted, figures: Mapping[str, Figure]) -> Iterator[Row]:
    packets, _ = _traffic(wanted, figures)
    rate = wanted.calls * packets / 1e6
    forwarding = rate * figures["forward_us_per_packet"].value
    recording = rate * figures["record_us_per_packet"].value
    joins = 2 * wanted.calls / (wanted.minutes * 60)
    joining = joins * figures["join_ms_per_participant"].value / 1000
    composing = night = 0.0
    if policy.cost:
        a_minute = _product(policy.cost, figures)
        if policy.at_night:
            night = wanted.per_day * wanted.minutes * a_minute / (wanted.night_hours * 3600)
        else:
            composing = wanted.calls * a_minute / 60
    by_rooms = wanted.calls / figures["recorded_rooms_per_core"].value
    most = max(forwarding + recording + joining + composing, night)
    used = ("packets_per_s_per_call", "forward_us_per_packet")
    cost = policy.cost
    yield Row("forwarding", forwarding, "cores", None, used)
    yield Row("recording", recording, "cores", None, (used[0], "record_us_per_packet"))
    yield Row("joining", joining, "cores", None, ("join_ms_per_participant",))
    yield Row("composing", composing, "cores", None, () if policy.at_night else cost)
    yield Row("composing at night", night, "cores", None, cost if policy.at_night else ())
    yield Row(
        "cores to buy",
        most / wanted.busy,
        "cores to buy",
        _ceil(most / wanted.busy, wanted.machine.cores),
        (),
    )
    yield Row(
        "rooms a core carries",
        by_rooms + composing,
        "cores to buy",
        _ceil(by_rooms + composing, wanted.machine.cores),
        ("recorded_rooms_per_core", *(() if policy.at_night else cost)),
    )


def _memory(policy: Policy, wanted: Wanted, figures: Mapping[str, Figure]) -> Iterator[Row]:
    parties = 2 * wanted.calls * figures["kib_per_participant"].value * 1024
    composers = 0.0
    if policy.cost and policy.at_night:
        seconds = wanted.per_day * wanted.minutes * _product(policy.cost, figures)
        composers = seconds / (wanted.night_hours * 3600)
    elif policy.singles:
        composers = wanted.calls * _product(policy.cost, figures) / 60
    elif policy.cost:
        composers = wanted.calls  # one process a call, as long as the call
    each = figures["composer_mib"].value / 1024
    standing = parties / GIB, math.ceil(composers) * each
    need = max(standing) if policy.at_night else sum(standing)
    own = figures["idle_mib_per_machine"].value / 1024
    own += wanted.machine.cores * figures["idle_mib_per_worker"].value / 1024
    room = wanted.machine.memory_gib * wanted.busy - own
    if room <= 0:
        raise ValueError(
            f"--machine-memory-gib {wanted.machine.memory_gib}: the idle server alone takes {own:.1f} GiB"
            f" with a worker on each of {wanted.machine.cores} cores"
        )
    machines = _ceil(need, room)
    used = (
        "kib_per_participant",
        "idle_mib_per_machine",
        "idle_mib_per_worker",
        *(("composer_mib",) if policy.cost else ()),
    )
    yield Row("memory", need + own * machines, "GiB", machines, used)


def _stored(policy: Policy, wanted: Wanted, figures: Mapping[str, Figure]) -> Iterator[Row]:
    packets, octets = _traffic(wanted, figures)
    journal = (octets + packets * (ENTRY_BYTES - TAG_BYTES)) * CONTAINER
    extra = _product(policy.bytes, figures) / 60 if policy.bytes else 0.0
    a_day = wanted.per_day * wanted.minutes * 60
    used = ("bytes_per_s_per_call", "packets_per_s_per_call")
    more = policy.bytes
    if policy.singles:
        extra, more = octets - packets * (TAG_BYTES + RTP_BYTES), used
    yield Row("journals a day", a_day * journal / 1e12, "TB", None, used)
    yield Row("composed files a day", a_day * extra / 1e12, "TB", None, more)
    kept = a_day * (journal + extra) * retention_days(wanted.retain)
    yield Row(f"kept for {wanted.retain}", kept / 1e12, "TB", None, (*used, *more))

    machine = wanted.machine
    by_day = wanted.calls * (journal + (0 if policy.at_night else extra)) / 1e6
    by_night = a_day * extra / (wanted.night_hours * 3600) / 1e6 if policy.at_night else 0.0
    written = max(by_day, by_night)
    yield Row(
        "written to disk", written, "MB/s", _ceil(written, machine.write_mb_s * wanted.busy), (*used, *more)
    )
    chunks = wanted.calls * (max(1 / CHUNK_S, journal / CHUNK_BYTES) + CHECKPOINTS_PER_S)
    yield Row("write calls", chunks, "a second", None, used)
    syncs = wanted.calls * SYNCS_PER_S
    yield Row(
        "disk operations",
        syncs * IO_PER_SYNC,
        "a second",
        _ceil(syncs * IO_PER_SYNC, machine.iops * wanted.busy),
        (),
    )
    wire = wanted.calls * (octets + packets * WIRE_BYTES) * 8 / 1e6
    links = _ceil(wire, machine.network_gbit * 1000 * wanted.busy)
    yield Row("network in", wire, "Mbit/s", links, used)
    yield Row("network out", wire, "Mbit/s", links, used)


def _product(names: Sequence[str], figures: Mapping[str, Figure]) -> float:
    return math.prod(figures[name].value for name in names)


def _rejoin(machines: int, wanted: Wanted, figures: Mapping[str, Figure]) -> Row:
    """Return how long the others, and a spare one, need to take a dead machine's calls.

    Joins get the cores' unplanned share, and what composing leaves them: it runs at low priority.
    """
    work = 2 * wanted.calls / machines * figures["join_ms_per_participant"].value / 1000
    free = machines * wanted.machine.cores * max(1 - wanted.busy, 0.05)
    return Row("back after a machine's death", work / free, "s", None, ("join_ms_per_participant",))


def _sync(machines: int, wanted: Wanted) -> Row:
    """Return how long one fdatasync may take: a worker does those of its journals one after the other."""
    journals = wanted.calls / (machines * wanted.machine.cores)
    return Row("time for one disk sync", 1000 / SYNCS_PER_S / journals, "ms", None, ())


def _ceil(need: float, one: float) -> int:
    return max(math.ceil(round(need / one, 9)), 1)
