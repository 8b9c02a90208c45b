"""Benchmarks: this server beside others on this machine. Everything is bounded in time and stays on it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress as Bar
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from bench.everything import FULL, QUICK, everything, forward_loads, own_cores, read, usual_peers
from bench.load.connection import JoinError
from bench.machine import machine
from bench.report import html, tables
from bench.scenarios import (
    audit,
    capacity,
    compose,
    crash,
    floor,
    forward,
    join,
    live,
    lost_node,
    seal,
    soak,
    sync,
    tamper,
)
from bench.servers import ServerError
from bench.size import Machine, Wanted, load, size

MOST_ROOMS = 500
app = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
errors = Console(stderr=True)

JsonOption = Annotated[Path | None, typer.Option("--json", help="Write the report to this file as JSON.")]
HtmlOption = Annotated[
    Path | None, typer.Option("--html", help="Write the report to this file as one HTML page.")
]
PeersOption = Annotated[
    str,
    typer.Option(
        help="Others to measure in the same run, with commas: janus, stock (aiortc), ours-python, or a WHIP"
        " address with {room} and {identity}."
    ),
]
RunsOption = Annotated[int, typer.Option(min=1, max=20, help="Runs of which the median counts.")]
CodecOption = Annotated[str, typer.Option(help="video/VP8 or video/H264.")]
RecordOption = Annotated[bool, typer.Option("--record", help="Record every track of every room on top.")]
BitrateOption = Annotated[int, typer.Option(min=100, max=4000, help="Video bitrate in kbit/s.")]


@app.command("forward")
def forward_command(
    rooms: Annotated[
        str, typer.Option(help="Rooms at once; with commas (5,20,40) one load after the other.")
    ] = "5",
    parties: Annotated[
        int, typer.Option(min=2, max=9, help="Parties of a room; each watches all others.")
    ] = 2,
    seconds: Annotated[float, typer.Option(min=1, max=300, help="Length of a measured window.")] = 10.0,
    runs: RunsOption = 3,
    codec: CodecOption = "video/VP8",
    bitrate: BitrateOption = 1000,
    record: RecordOption = False,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Workers of ours, each on a core.")] = 1,
    layered: Annotated[
        bool, typer.Option("--layered", help="Publishers offer layers: subscribers' lines are measured.")
    ] = False,
    peers: PeersOption = "",
    json_path: JsonOption = None,
    html_path: HtmlOption = None,
) -> None:
    """CPU per forwarded packet, delay, loss and memory; `ratio.<peer>` is ours over theirs."""
    loads = counts(rooms, "--rooms")
    plan = forward.Plan(
        loads[0], parties, seconds, runs, codec, bitrate * 1000, names(peers), record, workers, layered
    )
    finish(lambda progress: forward_loads(plan, loads, progress), json_path, html_path)


@app.command("join")
def join_command(
    rooms: Annotated[int, typer.Option(min=1, max=200, help="Two-party rooms that join.")] = 20,
    over_s: Annotated[float, typer.Option(min=0, max=60, help="They come within so many seconds.")] = 1.0,
    runs: RunsOption = 3,
    codec: CodecOption = "video/VP8",
    peers: PeersOption = "",
    json_path: JsonOption = None,
    html_path: HtmlOption = None,
) -> None:
    """Server CPU per joining participant, and the time from the request to the first whole picture."""
    plan = join.Plan(rooms, runs, over_s, codec, names(peers))
    finish(lambda progress: asyncio.run(join.run(plan, progress)), json_path, html_path)


@app.command("capacity")
def capacity_command(
    start: Annotated[int, typer.Option(min=1, max=500, help="Rooms of the first step.")] = 20,
    step: Annotated[int, typer.Option(min=1, max=100, help="Rooms added each step.")] = 20,
    most: Annotated[int, typer.Option(min=1, max=1000, help="Rooms at most.")] = 200,
    seconds: Annotated[float, typer.Option(min=1, max=60, help="Length of a measured window.")] = 6.0,
    codec: CodecOption = "video/VP8",
    bitrate: BitrateOption = 1000,
    record: RecordOption = False,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Workers of ours, each on a core.")] = 1,
    peers: PeersOption = "",
    json_path: JsonOption = None,
    html_path: HtmlOption = None,
) -> None:
    """Rooms one core carries before packets are lost (0.1 %) or late (p99 over 20 ms)."""
    plan = capacity.Plan(start, step, most, seconds, codec, bitrate * 1000, record, workers, names(peers))
    finish(lambda progress: asyncio.run(capacity.run(plan, progress)), json_path, html_path)


@app.command("soak")
def soak_command(
    rooms: Annotated[int, typer.Option(min=1, max=500, help="Rooms all the time.")] = 40,
    minutes: Annotated[float, typer.Option(min=0.5, max=600, help="How long.")] = 60.0,
    codec: CodecOption = "video/VP8",
    record: RecordOption = False,
    churn: Annotated[bool, typer.Option(help="Every 10 s one room's parties leave and come again.")] = True,
    json_path: JsonOption = None,
    html_path: HtmlOption = None,
) -> None:
    """Whether memory grows and packets are lost over a long time."""
    plan = soak.Plan(rooms, minutes, codec, record, churn)
    finish(lambda progress: asyncio.run(soak.run(plan, progress)), json_path, html_path)


@app.command("floor")
def floor_command(
    seconds: Annotated[float, typer.Option(min=0.2, max=60, help="Length of one run.")] = 2.0,
    runs: RunsOption = 3,
    json_path: JsonOption = None,
    html_path: HtmlOption = None,
) -> None:
    """The packet loop alone beside its floor: crypto, extensions, cache and feedback switched off."""
    finish(lambda progress: floor.run(floor.Plan(seconds, runs), progress), json_path, html_path)


@app.command("compose")
def compose_command(
    cases: Annotated[
        str, typer.Option(help=f"Which, with commas: {', '.join(compose.CASES)}. Default: all.")
    ] = "",
    runs: RunsOption = compose.REPETITIONS,
    seconds: Annotated[int, typer.Option(min=10, max=600, help="Length of the call, in tens.")] = 60,
    json_path: JsonOption = None,
    html_path: HtmlOption = None,
) -> None:
    """CPU of composing a recorded minute beside the ffmpeg command that draws the same.

    With --json FILE the middle frame of what each side made is kept in FILE-frames.
    """
    chosen = names(cases) or tuple(compose.CASES)
    samples = None if json_path is None else json_path.with_name(f"{json_path.stem}-frames")
    if unknown := set(chosen) - set(compose.CASES):
        raise typer.BadParameter(f"no case {sorted(unknown)[0]}", param_hint="--cases")
    finish(
        lambda progress: {
            "scenario": "compose",
            **compose.run(runs, seconds=seconds // 10 * 10, cases=chosen, samples=samples, progress=progress),
        },
        json_path,
        html_path,
    )


@app.command("live")
def live_command(
    rooms: Annotated[int, typer.Option(min=1, max=64, help="Two-party calls at once, on one core.")] = 4,
    seconds: Annotated[float, typer.Option(min=5, max=3600, help="Length of the measured window.")] = 60.0,
    profile: Annotated[str, typer.Option(help="evidence, standard or hd.")] = "evidence",
    muted: Annotated[bool, typer.Option("--muted", help="One camera of each call is off.")] = False,
    when: Annotated[str, typer.Option(help="live, or on_demand: nothing is composed.")] = "live",
    json_path: JsonOption = None,
    html_path: HtmlOption = None,
) -> None:
    """Everything at once: CPU for a minute of a call that is forwarded, recorded and composed live."""
    plan = live.Plan(rooms, seconds, profile, muted, when)
    finish(lambda progress: asyncio.run(live.run(plan, progress)), json_path, html_path)


@app.command("lost-node")
def lost_node_command(
    rounds: Annotated[int, typer.Option(min=1, max=200, help="Nodes destroyed, one after the other.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the moments of death. 0: a new one.")] = 0,
    json_path: JsonOption = None,
    html_path: HtmlOption = None,
) -> None:
    """Nodes and their disks destroyed in mid-call: what is lost, recovered from the object store alone."""
    plan = lost_node.Plan(rounds, seed)
    finish(lambda progress: asyncio.run(lost_node.run(plan, progress)), json_path, html_path)


@app.command("audit")
def audit_command(json_path: JsonOption = None, html_path: HtmlOption = None) -> None:
    """What the audit log costs at 150 recordings, in shares of a core."""
    finish(lambda _: {"scenario": "audit", **audit.run()}, json_path, html_path)


@app.command("seal")
def seal_command(
    mebibytes: Annotated[int, typer.Option(min=8, max=16384, help="Size of the file in suite 1.")] = 1024,
    runs: RunsOption = 3,
    directory: Annotated[
        Path | None, typer.Option(help="Where it lies. Without: in memory, if there is room for three.")
    ] = None,
    json_path: JsonOption = None,
    html_path: HtmlOption = None,
) -> None:
    """CPU of sealing, opening, byte ranges, verifying and signing, with libgcrypt and without."""
    plan = seal.Plan(mebibytes, runs, directory=directory)
    finish(lambda progress: seal.run(plan, progress), json_path, html_path)


@app.command("sync")
def sync_command(
    journals: Annotated[int, typer.Option(min=1, max=1000, help="Recordings of one worker.")] = 40,
    seconds: Annotated[float, typer.Option(min=2, max=300, help="Length of one run.")] = 10.0,
    runs: RunsOption = 3,
    json_path: JsonOption = None,
) -> None:
    """What recording.fsync costs: CPU and disk operations with and without."""
    finish(lambda progress: sync.run(sync.Plan(journals, seconds, runs), progress), json_path, None)


@app.command("crash")
def crash_command(
    recordings: Annotated[int, typer.Option(min=1, max=1000, help="Recordings in all.")] = 100,
    rooms: Annotated[int, typer.Option(min=1, max=50, help="Two-party calls at a time.")] = 4,
    minutes: Annotated[float, typer.Option(min=1, max=600, help="No round begins later.")] = 30.0,
    seed: Annotated[int, typer.Option(help="Of what is killed and when.")] = 1,
    keep: Annotated[Path | None, typer.Option(help="Leave the server's data in this directory.")] = None,
    json_path: JsonOption = None,
    html_path: HtmlOption = None,
) -> None:
    """Kill -9 of worker, control and compositors during recordings: all end signed, whole and composed.

    Exit code 1 if anything is lost, changed, readable or used twice that must not be.
    """
    plan = crash.Plan(recordings, rooms, minutes, seed, keep)
    report = finish(lambda progress: asyncio.run(crash.run(plan, progress)), json_path, html_path)
    if report["failures"] or report["recordings"] < recordings:
        raise typer.Exit(1)


@app.command("tamper")
def tamper_command(
    count: Annotated[int, typer.Option(min=1, max=1_000_000, help="Tamperings in all.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of what is changed and where.")] = 1,
    json_path: JsonOption = None,
    html_path: HtmlOption = None,
) -> None:
    """Random tamperings through `recorder verify`: found where they are, and nothing found where none is.

    Exit code 1 for a miss or a false alarm.
    """
    plan = tamper.Plan(count, seed)
    report = finish(lambda progress: tamper.run(plan, progress), json_path, html_path)
    if report["found"] < report["tampered"] or report["false_alarms"]:
        raise typer.Exit(1)


@app.command("size")
def size_command(
    calls: Annotated[int, typer.Option(help="Two-party calls at the busiest time.")],
    measured: Annotated[
        list[Path] | None,
        typer.Option(
            help="A report of this benchmark (JSON); may be given again. What it lacks is taken from"
            " bench/baseline.json."
        ),
    ] = None,
    minutes: Annotated[float, typer.Option(help="Length of a call.")] = 4.0,
    per_day: Annotated[int, typer.Option(help="Calls a day.")] = 100_000,
    retain: Annotated[str, typer.Option(help="How long recordings are kept: 90d, 12m, 10y.")] = "10y",
    bitrate: Annotated[
        int | None, typer.Option(help="Video of one party in kbit/s. Without: as it was measured.")
    ] = None,
    night_hours: Annotated[float, typer.Option(help="Hours for composing at night.")] = 10.0,
    busy: Annotated[float, typer.Option(help="Share of a machine that is planned for.")] = 0.7,
    machine_cores: Annotated[int, typer.Option(help="Cores of a machine.")] = 32,
    machine_memory_gib: Annotated[int, typer.Option(help="Memory of a machine.")] = 128,
    json_path: JsonOption = None,
    html_path: HtmlOption = None,
) -> None:
    """Cores, memory, disk and network for a number of calls, by composing policy, from measured figures."""

    def work(_: Callable[[str], None]) -> dict[str, Any]:
        one = Machine(cores=machine_cores, memory_gib=machine_memory_gib)
        wanted = Wanted(calls, minutes, per_day, retain, bitrate, night_hours, busy, one)
        return size(wanted, load(measured or []))

    finish(work, json_path, html_path)


@app.command("all")
def all_command(
    quick: Annotated[
        bool, typer.Option("--quick", help="One short run of each: under 10 minutes. Without: some 2 hours.")
    ] = False,
    peers: Annotated[
        str | None, typer.Option(help="As for forward. Without: janus if it is installed.")
    ] = None,
    directory: Annotated[
        Path, typer.Option("--out", help="report.html and report.json are written here.")
    ] = Path("out/bench"),
) -> None:
    """Every scenario, one page. A scenario that fails is reported and the others go on; exit code 1 then."""
    directory.mkdir(parents=True, exist_ok=True)
    chosen = usual_peers() if peers is None else names(peers)
    report = finish(
        lambda progress: everything(
            chosen, QUICK if quick else FULL, progress, lambda some: write(some, directory / "report.json")
        ),
        directory / "report.json",
        directory / "report.html",
    )
    errors.print(f"{directory}/report.html")
    if any("failed" in one or one.get("failures") or one.get("missed") for one in report["reports"]):
        raise typer.Exit(1)


@app.command("report")
def report_command(
    files: Annotated[list[Path], typer.Argument(help="Reports that were saved with --json.")],
    html_path: Annotated[Path, typer.Option("--html", help="The page to write.")],
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write all reports to this one file, too.")
    ] = None,
) -> None:
    """Draw one page from saved reports; forward reports of different load become lines by load."""
    finish(lambda _: {"scenario": "all", "reports": read(files)}, json_path, html_path, measuring=False)


def names(peers: str) -> tuple[str, ...]:
    """Split the names of peers."""
    return tuple(name.strip() for name in peers.split(",") if name.strip())


def counts(text: str, option: str) -> list[int]:
    """Read ``5`` or ``5,20,40``: ascending, each once. Raises ``typer.BadParameter`` naming the option."""
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no number, nor numbers with commas", param_hint=option
        ) from None
    if not 1 <= found[0] <= found[-1] <= MOST_ROOMS:
        raise typer.BadParameter(f"{text}: from 1 to {MOST_ROOMS}", param_hint=option)
    return found


def finish(
    work: Callable[[Callable[[str], None]], dict[str, Any]],
    json_path: Path | None,
    html_path: Path | None,
    *,
    measuring: bool = True,
) -> dict[str, Any]:
    """Do the work behind a progress line, then print the table, write the files and return the report."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    try:
        with Bar(*columns, console=errors, transient=True) as bar, own_cores():
            task = bar.add_task("begins", total=None)

            def progress(line: str) -> None:
                bar.update(task, description=line)
                if not errors.is_terminal:
                    errors.print(line)

            about = {"machine": machine()} if measuring else {}
            report = {**about, **work(progress)}
    except (ServerError, JoinError, ValueError) as error:
        errors.print(f"[red]{escape(str(error))}[/red]")
        raise typer.Exit(1) from None
    if json_path:
        write(report, json_path)
    if html_path:
        html_path.write_text(html(report), encoding="utf-8")
    if sys.stdout.isatty() or json_path or html_path:
        for one in tables(report):
            Console().print(one)
    else:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    return report


def write(report: dict[str, Any], path: Path) -> None:
    """Write a report as JSON."""
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app()
