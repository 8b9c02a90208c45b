"""Sections of the scenarios that load servers with calls: forward, join, capacity, soak."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.report.charts import Bar, Series, bars, grouped, lines
from bench.report.figures import Measure, at, label, number, percent
from bench.report.section import Chart, Mood, Section, Tile, all_figures, checks, table

Report = Mapping[str, Any]
MOST_LOSS = 0.001
MOST_DELAY_MS = 20.0
"""The limits of ``bench capacity``: above them a call is no good."""
PERCENTILES = ("p50", "p95", "p99")


def forward(reports: Sequence[Report]) -> Section:
    """Show loads of one kind (all with or all without recording): one as bars, several as lines by load."""
    loads = sorted(reports, key=lambda report: report["rooms"])
    last = loads[-1]
    servers: Mapping[str, Any] = last["servers"]
    what = "Forwarding while every track is recorded" if last["record"] else "Forwarding"
    made = Section(
        f"{what}: {_counts([report['rooms'] for report in loads])} rooms",
        f"Rooms of {last['parties']} parties that send {last['codec'].partition('/')[2]} at"
        f" {number(last['bitrate_bps'] / 1000)} kbit/s and Opus to each other. CPU is that of all the"
        " server's processes, divided by the packets that arrived. Less is better everywhere.",
        last.get("machine") or {},
        versions=[str(one["version"]) for one in servers.values()],
    )
    for report in loads:
        rooms = f"{report['rooms']} rooms: " if len(loads) > 1 else ""
        found = [*checks(report, {}), *((mood, rooms + text) for mood, text in _wrong(report))]
        made.verdicts += [one for one in found if one not in made.verdicts]
    made.verdicts[:0] = _forward_verdicts(loads)
    made.tiles = [
        _tile(f"CPU per packet, {last['rooms']} rooms", at(servers["ours"], "cpu_us_per_packet"), "µs"),
        *(
            Tile(
                f"CPU beside {label(peer)}", f"{value:.2f} ×", f"at {last['rooms']} rooms", _ratio_mood(value)
            )
            for peer, value in last["ratio"].items()
        ),
        _tile("delay, 99 % of packets", at(servers["ours"], "delay_ms.p99"), "ms", MOST_DELAY_MS),
        _loss(at(servers["ours"], "loss")),
        _tile("memory of a participant", at(servers["ours"], "kib_per_participant"), "KiB"),
    ]
    if len(loads) > 1:
        made.charts = list(_by_load(loads))
        rows = [
            [str(report["rooms"]), *(f"{report['ratio'][peer]:.3f}" for peer in last["ratio"])]
            for report in loads
        ]
        if last["ratio"]:
            head = ["rooms", *(f"CPU ÷ {label(peer)}’s" for peer in last["ratio"])]
            made.tables.append(table(head, rows, title="CPU per packet beside others, in the same run"))
    else:
        made.charts = list(_one_load(last))
    made.tables += [
        all_figures(report["servers"], f"All figures, {report['rooms']} rooms, medians [least–greatest]")
        for report in loads
    ]
    return made


def _forward_verdicts(loads: Sequence[Report]) -> Iterator[tuple[Mood, str]]:
    for peer in loads[-1]["ratio"]:
        ratios = [report["ratio"][peer] for report in loads]
        shown = " to ".join(dict.fromkeys(f"{value:.2f}" for value in (min(ratios), max(ratios))))
        mood: Mood = "good" if max(ratios) <= 1 else "bad"
        yield mood, f"A forwarded packet costs {shown} × the CPU that {label(peer)} takes for it."
    lost = [value for report in loads if (value := at(report["servers"]["ours"], "loss"))]
    if lost and max(value.high for value in lost) == 0:
        yield "good", "Not one packet was lost."
    elif lost:
        worst = max(value.high for value in lost)
        yield (
            ("fair" if worst <= MOST_LOSS else "bad"),
            f"Up to {percent(worst)} of packets were lost in a run.",
        )


def _one_load(report: Report) -> Iterator[Chart]:
    servers: Mapping[str, Any] = report["servers"]
    rooms = f"{report['rooms']} rooms"
    unseen = [label(name) for name in servers if at(servers[name], "cpu_us_per_packet") is None]
    yield Chart(
        "CPU per forwarded packet",
        bars(f"CPU per forwarded packet, {rooms}", "µs", _bars(servers, "cpu_us_per_packet")),
        f"Not to be seen from here: {', '.join(unseen)}." if unseen else "",
    )
    yield Chart(
        "Memory per participant",
        bars(f"Memory per participant, {rooms}", "KiB", _bars(servers, "kib_per_participant")),
        "What the calls added, caches filled.",
    )
    yield Chart(
        "One-way delay through the server",
        grouped(f"Delay, {rooms}", "ms", _percentiles(servers, "delay_ms")),
        "From the generator’s stamp to the kernel’s receive time.",
    )
    shares = {name: value.times(100) for name in servers if (value := at(servers[name], "loss"))}
    if any(value.high for value in shares.values()):
        rows = [Bar(label(name), name, value) for name, value in shares.items()]
        mark = (MOST_LOSS * 100, "limit")
        yield Chart("Packets lost", bars(f"Packets lost, {rooms}", "%", rows, mark=mark))


def _by_load(loads: Sequence[Report]) -> Iterator[Chart]:
    def drawn(title: str, path: str, unit: str, **options: Any) -> str:
        return lines(title, "rooms", unit, _series(loads, path), **options)

    yield Chart(
        "CPU per forwarded packet, by load", drawn("CPU per packet by load", "cpu_us_per_packet", "µs")
    )
    delay = drawn(
        "Delay by load",
        "delay_ms.p99",
        "ms, logarithmic",
        limit=(MOST_DELAY_MS, "limit"),
        logarithmic=True,
    )
    yield Chart("Delay of 99 % of packets, by load", delay)
    lost = [Series(one.name, [(x, y.times(100)) for x, y in one.points]) for one in _series(loads, "loss")]
    limit = (MOST_LOSS * 100, "limit")
    yield Chart("Packets lost, by load", lines("Loss by load", "rooms", "%", lost, limit=limit))
    yield Chart("Memory per participant, by load", drawn("Memory by load", "kib_per_participant", "KiB"))
    last = loads[-1]
    yield Chart(
        f"One-way delay at {last['rooms']} rooms",
        grouped(f"Delay at {last['rooms']} rooms", "ms", _percentiles(last["servers"], "delay_ms")),
        "From the generator’s stamp to the kernel’s receive time.",
    )


def join(report: Report) -> Section:
    """Show what joining costs, and how long it takes to the first picture."""
    servers: Mapping[str, Any] = report["servers"]
    ours = servers["ours"]
    made = Section(
        f"Joining: {report['rooms']} rooms within {report['over_s']:g} s",
        "Two parties join each room, publish and watch each other: ICE, DTLS, and the first picture. CPU is"
        " what the server spends for one participant; the time runs to the first whole picture.",
        report.get("machine") or {},
        versions=[str(one["version"]) for one in servers.values()],
    )
    for peer, value in report["ratio"].items():
        mood: Mood = "good" if value <= 1 else "bad"
        made.verdicts.append((mood, f"A participant costs {value:.2f} × the CPU it costs {label(peer)}."))
    for name in servers:
        missing = at(servers[name], "without_picture")
        if missing and missing.high:
            count = number(missing.high)
            text = f"{label(name)}: up to {count} participants of a run saw no picture within 10 s."
            made.verdicts.append(("bad", text))
    made.verdicts += checks(report, {})
    made.tiles = [
        _tile("CPU per participant", at(ours, "cpu_ms_per_participant"), "ms"),
        _tile("first picture, half of them", at(ours, "first_frame_ms.p50"), "ms"),
        _tile("first picture, 99 %", at(ours, "first_frame_ms.p99"), "ms"),
        _tile("connections a second", at(ours, "joins_per_s"), ""),
    ]
    made.charts = [
        Chart(
            "Server CPU per participant",
            bars("CPU per participant", "ms", _bars(servers, "cpu_ms_per_participant")),
            "Publish and subscribe; forwarding meanwhile is taken off.",
        ),
        Chart(
            "Request to first picture",
            grouped("Time to first picture", "ms", _percentiles(servers, "first_frame_ms")),
            "The generator’s own handshakes are part of it.",
        ),
    ]
    made.tables = [all_figures(servers, "All figures, medians [least–greatest]")]
    return made


def capacity(report: Report) -> Section:
    """Show how many rooms a core carries, and what gives way first."""
    servers: Mapping[str, Any] = report["servers"]
    recorded = ", every track recorded" if report["record"] else ""
    limits = report["limits"]
    made = Section(
        f"Capacity of one core{recorded}",
        f"Two-party rooms are added until more than {percent(limits['loss'])} of packets are lost or 1 % of"
        f" them come later than {limits['delay_p99_ms']:g} ms. One run a step.",
        report.get("machine") or {},
        versions=[str(one["version"]) for one in servers.values()],
    )
    for peer, value in report["ratio"].items():
        if servers["ours"]["rooms"] and servers[peer]["rooms"]:
            mood: Mood = "good" if value >= 1 else "bad"
            made.verdicts.append((mood, f"{value:g} × the rooms that {label(peer)} carries."))
    for name, one in servers.items():
        ended = not one["stopped"].startswith(("loss", "delay"))  # something else than the limits did it
        text = f"{label(name)}: {one['rooms']} rooms; then: {one['stopped']}."
        made.verdicts.append(("fair" if ended else "good", text + (" It may carry more." if ended else "")))
    made.verdicts += checks(
        report, {name: {"bad": _sum(one["steps"], "bad")} for name, one in servers.items()}
    )
    made.tiles = [
        Tile(f"rooms a core, {label(name)}", f"{one['rooms_per_core']:g}", one["stopped"])
        for name, one in servers.items()
    ]

    def drawn(path: str, factor: float = 1.0) -> list[Series]:
        return [
            Series(name, [(step["rooms"], v.times(factor)) for step in one["steps"] if (v := at(step, path))])
            for name, one in servers.items()
        ]

    loss, delay = limits["loss"] * 100, limits["delay_p99_ms"]
    made.charts = [
        Chart(
            "Packets lost", lines("Loss by rooms", "rooms", "%", drawn("loss", 100), limit=(loss, "limit"))
        ),
        Chart(
            "Delay of 99 % of packets",
            lines(
                "Delay by rooms",
                "rooms",
                "ms, logarithmic",
                drawn("delay_ms.p99"),
                limit=(delay, "limit"),
                logarithmic=True,
            ),
        ),
        Chart("CPU of the server", lines("CPU by rooms", "rooms", "cores", drawn("cpu_cores"))),
        Chart("CPU per packet", lines("CPU per packet by rooms", "rooms", "µs", drawn("cpu_us_per_packet"))),
    ]
    for name, one in servers.items():
        rows = [
            [
                str(step["rooms"]),
                percent(step["loss"]),
                *(number(step["delay_ms"].get(at, float("nan"))) for at in PERCENTILES),
                number(step["cpu_cores"]),
                number(step["cpu_us_per_packet"] or float("nan")),
                number(step["kib_per_participant"]),
                number(step["skipped_ticks"]),
            ]
            for step in one["steps"]
        ]
        head = ["rooms", "lost", "p50 ms", "p95 ms", "p99 ms", "cores", "µs a packet", "KiB a participant"]
        made.tables.append(
            table([*head, "skipped ticks"], rows, title=f"Steps of {label(name)}", folded=True)
        )
    return made


def soak(report: Report) -> Section:
    """Show memory and loss over a long time."""
    ours = report["servers"]["ours"]
    samples: Sequence[Report] = ours["samples"]
    grown = ours["growth_kib_per_hour"]
    recorded = ", recorded" if report["record"] else ""
    made = Section(
        f"Soak: {report['rooms']} rooms for {report['minutes']:g} min{recorded}",
        f"Calls all the time; {report['rejoins']} times all parties of a room left and came again. Memory"
        " must not grow after the first five minutes (half of a shorter run), nothing may be lost.",
        report.get("machine") or {},
        versions=[str(ours["version"])],
    )
    lost, sent = ours["lost_packets"], ours["packets"]
    text = f"{number(lost)} of {sent:,} packets lost."
    made.verdicts = [("good" if not lost else "bad", "No packet was lost." if not lost else text)]
    made.verdicts += checks(report, {"ours": ours})
    if report["minutes"] < 15:
        note = "A run this short says little about growth: caches still fill. An hour does."
        made.verdicts.append(("fair", note))
    memory = ours["rss_bytes"]
    made.tiles = [
        Tile(
            "memory at the end",
            f"{memory['end'] / 2**20:,.0f} MiB",
            f"most: {memory['most'] / 2**20:,.0f} MiB",
        ),
        Tile("growth after the warm-up", f"{number(grown / 1024)} MiB/h", "a line through the samples"),
        Tile("packets forwarded", f"{sent:,}", f"{number(lost)} lost"),
    ]
    points = [(sample["at_s"] / 60, sample) for sample in samples]
    made.charts = [
        Chart(
            "Resident memory of all processes",
            lines(
                "Memory over time",
                "minutes",
                "MiB",
                [Series("ours", [(x, _exact(one["rss_bytes"] / 2**20)) for x, one in points])],
            ),
        ),
        Chart(
            "Packets lost",
            lines(
                "Loss over time",
                "minutes",
                "%",
                [Series("ours", [(x, _exact((one["loss"] or 0) * 100)) for x, one in points])],
                limit=(MOST_LOSS * 100, "limit"),
            ),
        ),
    ]
    delays = [(x, value) for x, one in points if (value := at(one, "delay_ms.p99"))]
    costs = [(x, value) for x, one in points if (value := at(one, "cpu_us_per_packet"))]
    made.charts += [
        Chart(
            "Delay of 99 % of packets", lines("Delay over time", "minutes", "ms", [Series("ours", delays)])
        ),
        Chart("CPU per packet", lines("CPU over time", "minutes", "µs", [Series("ours", costs)])),
    ]
    made.tables = [all_figures({"ours": ours})]
    return made


# --- shared


def _bars(servers: Report, path: str) -> list[Bar]:
    return [Bar(label(name), name, value) for name in servers if (value := at(servers[name], path))]


def _percentiles(servers: Report, name: str) -> list[tuple[str, list[Bar]]]:
    shown = {"p50": "median", "p95": "95 %", "p99": "99 %"}
    return [
        (
            shown[one],
            [
                Bar(label(server), server, value)
                for server in servers
                if (value := at(servers[server], f"{name}.{one}"))
            ],
        )
        for one in PERCENTILES
    ]


def _series(loads: Sequence[Report], path: str) -> list[Series]:
    names = dict.fromkeys(name for report in loads for name in report["servers"])
    return [
        Series(
            name,
            [
                (report["rooms"], value)
                for report in loads
                if name in report["servers"] and (value := at(report["servers"][name], path))
            ],
        )
        for name in names
    ]


def _wrong(report: Report) -> Iterator[tuple[Mood, str]]:
    """Say when packets arrived changed, and when the generator could not send in time."""
    yield from checks({}, report["servers"])
    for name, one in report["servers"].items():
        skipped = at(one, "skipped_ticks")
        if skipped and skipped.high > report["seconds"] * 1000 * 0.01:
            share = skipped.high / (report["seconds"] * 1000)
            yield (
                "bad" if share > 0.05 else "fair",
                f"the generator lacked CPU for {percent(share)} of a run beside {label(name)}: its delays and"
                " losses are not all the server’s.",
            )


def _tile(title: str, value: Measure | None, unit: str, most: float | None = None) -> Tile:
    if value is None:
        return Tile(title, "–", "not measured")
    mood: Mood | None = None if most is None else "good" if value.median <= most else "bad"
    return Tile(title, value.text(unit), value.spread(), mood)


def _loss(value: Measure | None) -> Tile:
    if value is None:
        return Tile("packets lost", "–", "not measured")
    mood: Mood = "good" if value.median <= MOST_LOSS else "bad"
    return Tile("packets lost", percent(value.median), value.times(100).spread(), mood)


def _ratio_mood(value: float) -> Mood:
    return "good" if value <= 1 else "bad"


def _sum(steps: Sequence[Report], name: str) -> float:
    return float(sum(step[name] for step in steps))


def _exact(value: float) -> Measure:
    return Measure(value, value, value)


def _counts(rooms: Sequence[int]) -> str:
    if len(rooms) == 1:
        return str(rooms[0])
    return f"{', '.join(map(str, rooms[:-1]))} and {rooms[-1]}"
