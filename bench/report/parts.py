"""Sections of the scenarios that measure one part: floor, compose, seal; and of the sizing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from bench.report.charts import Bar, bars, grouped, stacked
from bench.report.figures import Measure, label, measured, number
from bench.report.section import Chart, Mood, Section, Tile, checks, table
from bench.scenarios.compose import CASES

Report = Mapping[str, Any]
BUSY_SHARE = 0.1
"""Others kept the forwarder's core from it for longer than this: the run is theirs."""


def floor(report: Report) -> Section:
    """Show the packet loop beside the same loop without crypto, extensions, cache and feedback."""
    rows: Sequence[Report] = report["rows"]
    made = Section(
        "The packet loop beside its floor",
        "CPU of the forwarder’s process for each packet it sends, one publisher to 1, 3 and 10 subscribers."
        " The floor is the same loop with crypto, header extensions, resend cache and feedback switched off:"
        f" what moving datagrams costs. Packets of {report['payload_bytes']} bytes,"
        f" {report['profile'].replace('_', ' ')}.",
        report.get("machine") or {},
    )
    fan_outs = sorted({row["fan_out"] for row in rows})
    native = {
        row["fan_out"]: row["times_floor"] for row in rows if row["kind"] == "native" and "times_floor" in row
    }
    if native:
        shown = ", ".join(f"{value:g} × at 1 → {fan_out}" for fan_out, value in native.items())
        made.verdicts.append(("good", f"The whole loop costs {shown} of its floor."))
    for row in rows:
        which = f"{label(row['kind'])}, 1 → {row['fan_out']}"
        if row["bad"]:
            made.verdicts.append(("bad", f"{which}: {row['bad']:g} packets arrived wrong."))
        if row["waited_share"] > BUSY_SHARE:
            share = f"{row['waited_share'] * 100:.0f} %"
            made.verdicts.append(("fair", f"{which}: other programs had its core for {share} of the time."))
        elif row["lost"]:
            made.verdicts.append(("fair", f"{which}: {row['lost']:g} packets lost."))
    made.tiles = [
        Tile(
            f"1 → {fan_out}, beside the floor",
            f"{value:g} ×",
            _of(rows, "native", fan_out).text("µs a packet"),
        )
        for fan_out, value in native.items()
    ]

    def some(fan_out: int, path: str) -> list[Bar]:
        return [
            Bar(label(row["kind"]), row["kind"], _row(row) if path == "µs" else _exact(row["times_floor"]))
            for row in rows
            if row["fan_out"] == fan_out and (path == "µs" or "times_floor" in row)
        ]

    made.charts = [
        Chart(
            "CPU for each packet sent",
            grouped("CPU per packet sent", "µs", [(f"1 → {one}", some(one, "µs")) for one in fan_outs]),
        ),
        Chart(
            "Times the floor",
            grouped("Times the floor", "× floor", [(f"1 → {one}", some(one, "×")) for one in fan_outs]),
            "1 would be a loop that does nothing but move datagrams.",
        ),
    ]
    head = [
        "loop, fan-out",
        "crypto",
        "µs a packet",
        "least–greatest",
        "user",
        "system",
        "times floor",
        "lost",
    ]
    body = [
        [
            f"{label(row['kind'])}, 1 → {row['fan_out']}",
            row["crypto"],
            number(row["us_per_packet_sent"]),
            "–".join(map(number, row["spread_us"])),
            number(row["user_us"]),
            number(row["system_us"]),
            number(row["times_floor"]) if "times_floor" in row else "1",
            number(row["lost"]),
        ]
        for row in rows
    ]
    made.tables = [table(head, body, title="All figures", folded=True)]
    return made


def compose(report: Report) -> Section:
    """Show what a composed minute costs beside ffmpeg."""
    cases = {name: case.title for name, case in CASES.items()}
    found = {name: report[name] for name in cases if name in report}
    call = report["call"]
    made = Section(
        "Composing a recorded minute",
        "Two parties become one 1280 × 720 picture with a clock and a line of text. Ours is the whole job:"
        " start, unsealing, decoding, drawing, encoding, sealing; ffmpeg reads the same packets from plain"
        f" files and draws the same (x264 veryfast). {_medians(report['repetitions'])}, over"
        f" {report['seconds']} s of call.",
        report.get("machine") or {},
    )
    if ratio := report.get("ratio", {}).get("ffmpeg"):
        mood: Mood = "good" if ratio <= 1.1 else "fair"
        made.verdicts.append((mood, f"{ratio:.2f} × the CPU of the ffmpeg command that draws the same."))
    else:
        made.verdicts.append(("fair", "ffmpeg is not installed here: nothing to compare with."))
    cost = call["ours_cpu_s_per_min"]
    made.tiles = [
        Tile("CPU of a composed minute", f"{number(cost)} s", "one two-party call"),
        Tile("calls a core composes live", f"{60 / cost:.1f}", "60 s ÷ CPU of a minute"),
        Tile(
            "size of a minute", f"{call['ours_bytes'] / report['seconds'] * 60 / 1e6:.1f} MB", "H.264 and AAC"
        ),
    ]
    groups = []
    for name, one in found.items():
        pair = [Bar("this server", "ours", _exact(one["ours_cpu_s_per_min"]))]
        if "ffmpeg_cpu_s_per_min" in one:
            pair.append(Bar("ffmpeg", "ffmpeg", _exact(one["ffmpeg_cpu_s_per_min"])))
        if "floor_cpu_s_per_min" in one:
            pair.append(Bar("floor", "floor", _exact(one["floor_cpu_s_per_min"])))
        groups.append((cases[name].replace(" ", "\n", 1), pair))
    made.charts = [Chart("CPU for a minute", grouped("CPU for a composed minute", "CPU-seconds", groups))]
    names = list(dict.fromkeys(name for one in found.values() for name in one))
    body = [[name, *(number(one[name]) if name in one else "–" for one in found.values())] for name in names]
    made.tables = [
        table(
            ["recorder", "cores for one composite", "which", "source"],
            [["this server", f"{cost / 60:.2f}", "2 parties, 1280x720 at 25, measured here", ""], *PUBLISHED],
            title="Beside what others publish",
        ),
        table(["figure", *(cases[name] for name in found)], body, title="All figures", folded=True),
    ]
    return made


PUBLISHED = (
    (
        "LiveKit Egress",
        "4",
        "a room composite: declared cost, and the least a machine must have",
        "docs.livekit.io, self-hosting, egress",
    ),
    ("Jibri", "a machine", "one recording at a time, 2 cores and more", "github.com/jitsi/jibri"),
    (
        "Agora On-Premise Recording",
        "0.20",
        "2 parties of 320x240, 640x480 at 15: 60 channels at 75 % of 16 cores",
        "docs.agora.io, recording concurrency",
    ),
)
"""What a composite costs elsewhere, by its makers' own words; nothing of it was measured here."""


def live(report: Report) -> Section:
    """Show what a minute of a call costs with everything that is done for it."""
    figures = report["servers"]["ours"]
    cost = figures["cpu_s_per_call_minute"]
    off = ", one camera off" if report["one_camera_off"] else ""
    made = Section(
        f"A call with everything: {report['rooms']} rooms, {report['profile']}{off}, {report['when']}",
        "Two-party calls on one core are forwarded, recorded, sealed and composed while they go on. CPU of"
        " all the server's processes for a minute of one call.",
        report.get("machine") or {},
        versions=[str(figures["version"])],
    )
    made.verdicts += checks(report, {})
    lag = figures["lag_s"]["most"]
    if lag is not None:
        mood: Mood = "good" if lag <= 3 else "bad"
        made.verdicts.append((mood, f"No composite was ever more than {number(lag)} s behind its call."))
    made.tiles = [Tile("CPU of a call minute", f"{number(cost['all'])} s", "forward, record, seal, compose")]
    if "ready_s" in figures:
        made.tiles.append(Tile("ready after the stop", f"{number(figures['ready_s']['last'])} s", "the last"))
    parts = [Bar(kind, kind, _exact(value)) for kind, value in cost.items() if kind != "all"]
    made.charts = [Chart("Where it goes", bars("CPU of a call minute", "CPU-seconds", parts))]
    return made


def seal(report: Report) -> Section:
    """Show how fast recordings are sealed, opened and hashed, and which goals are reached."""
    names = {"seal_mb_per_cpu_s": "sealing", "open_mb_per_cpu_s": "opening", "sm3_mb_per_cpu_s": "SM3 alone"}
    made = Section(
        "Sealing",
        "Recordings are encrypted with SM4-GCM and chained with SM3. MB that one second of one core’s CPU"
        " seals, opens and hashes, in chunks of 256 KiB; the best of the runs. More is better. (Sealing a"
        " finished film takes the digest of its plain text too; a journal’s is not taken.)",
        report.get("machine") or {},
    )
    rate = report["seal_mb_per_cpu_s"]
    made.tiles = [
        Tile(title, f"{number(report[name])} MB", "per CPU-second") for name, title in names.items()
    ]
    note = f"A core that did nothing else could seal {rate * 8 / 2.1:,.0f} calls of 2.1 Mbit/s."
    made.verdicts = [("good", note)]
    goals: Sequence[Report] = report.get("goals", ())
    for goal in goals:
        if not goal["reached"]:
            text = f"Not reached: {goal['what']}: {goal['measured']:g}, wanted {goal['goal']}."
            made.verdicts.append(("fair", text))
    if goals:
        cells = [[goal["what"], goal["goal"], f"{goal['measured']:g}"] for goal in goals]
        made.tables = [table(("what", "goal", "measured"), cells)]
    rows = [Bar(title, "ours", _exact(report[name])) for name, title in names.items()]
    made.charts = [Chart("MB per CPU-second", bars("MB per CPU-second", "MB per CPU-second", rows))]
    return made


def size(report: Report) -> Section:
    """Show what a number of calls needs, by policy, the deciding row marked."""
    wanted, policies, worst = report["wanted"], report["policies"], report["worst"]
    machine = wanted["machine"]
    made = Section(
        f"What {wanted['calls']:,} calls need",
        f"{wanted['calls']:,} recorded two-party calls at once, {wanted['minutes']:g} min each,"
        f" {wanted['per_day']:,} a day, kept for {wanted['retain']}. Machines of {machine['cores']} cores and"
        f" {machine['memory_gib']} GiB, planned to {wanted['busy'] * 100:g} %; composing at night has"
        f" {wanted['night_hours']:g} hours. Sizes are for one copy.",
        report.get("machine") or {},
    )
    top = policies[worst["policy"]]
    text = f"Dearest: {top['title']}, {worst['machines']} machines; {worst['row']} decides."
    made.verdicts.append(("fair", text))
    made.tiles = [
        Tile(
            policy["title"],
            f"{policy['machines']} + 1",
            f"machines and a spare; {policy['worst']} decides",
            "bad" if name == worst["policy"] else None,
        )
        for name, policy in policies.items()
    ]
    rows = []
    for policy in policies.values():
        parts = [(row["name"], row["value"]) for row in policy["rows"] if row["unit"] == "cores"]
        day = [(name, value) for name, value in parts if name != "composing at night"]
        night = [(name, value) for name, value in parts if name == "composing at night"]
        # Machines that compose at night are those of the day: the greater need counts.
        rows.append((policy["title"], max((day, night), key=lambda some: sum(value for _, value in some))))
    made.charts = [
        Chart(
            "Cores in use at the busiest time",
            stacked("Cores by policy", "cores", rows),
            f"Before the {100 - wanted['busy'] * 100:g} % left free. Composed at night: the night’s need,"
            " where it is greater than the day’s.",
        ),
        Chart(
            f"Disk for {wanted['retain']}",
            stacked("Disk by policy", "TB", list(_disk(policies, wanted))),
            "One copy. Journals are the original and are always kept.",
        ),
    ]
    made.tables = [_policies(policies), _sources(report["figures"])]
    return made


def _disk(policies: Report, wanted: Report) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    for policy in policies.values():
        a_day = {row["name"]: row["value"] for row in policy["rows"]}
        parts = (("journals", "journals a day"), ("composed files", "composed files a day"))
        yield policy["title"], [(title, a_day[name] * wanted["retain_days"]) for title, name in parts]


def _policies(policies: Report) -> str:
    """Return the big table: needs down, policies across, what decides marked."""
    head = "".join(f"<th scope=col>{escape(policy['title'])}</th>" for policy in policies.values())
    lines = []
    for at, row in enumerate(next(iter(policies.values()))["rows"]):
        cells = []
        for policy in policies.values():
            one = policy["rows"][at]
            machines = f"<small>{one['machines']} machines</small>" if (one["machines"] or 0) > 1 else ""
            mark = ' class="worst"' if policy["worst"] == one["name"] else ""
            cells.append(f"<td{mark}>{number(one['value'])}{machines}</td>")
        unit = "" if row["unit"] == "cores to buy" else f" <small>{escape(row['unit'])}</small>"
        lines.append(f"<tr><th scope=row>{escape(row['name'])}{unit}</th>{''.join(cells)}</tr>")
    total = "".join(f"<td>{policy['machines']} + 1 spare</td>" for policy in policies.values())
    lines.append(f'<tr class="total"><th scope=row>machines</th>{total}</tr>')
    return (
        '<h3>Everything, by policy</h3><p class="about">Marked: what decides the number of machines.</p>'
        f'<div class="scroll"><table><thead><tr><th scope=col>need</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _sources(figures: Report) -> str:
    rows = [
        [name.replace("_", " "), f"{number(figure['value'])} {figure['unit']}", figure["where"]]
        for name, figure in figures.items()
    ]
    head = ["figure", "value", "measured"]
    return table(head, rows, title="Made from these figures", folded=True)


def _medians(runs: int) -> str:
    return f"Medians of {runs} runs" if runs > 1 else "One run"


def _row(row: Report) -> Measure:
    low, high = row["spread_us"]
    return Measure(row["us_per_packet_sent"], low, high)


def _of(rows: Sequence[Report], kind: str, fan_out: int) -> Measure:
    return next(_row(row) for row in rows if row["kind"] == kind and row["fan_out"] == fan_out)


def _exact(value: float) -> Measure:
    found = measured(value)
    assert found is not None
    return found
