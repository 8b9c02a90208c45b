"""Benchmarks: this server beside others on this machine. Everything is bounded in time and stays on it."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from bench.load.connection import JoinError
from bench.report import html, table
from bench.scenarios import capacity, compose, floor, forward, join, seal, soak
from bench.servers import ServerError
from bench.size import Wanted, size

ROOT = Path(__file__).resolve().parents[1]
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
    rooms: Annotated[int, typer.Option(min=1, max=500, help="Rooms at once.")] = 5,
    parties: Annotated[
        int, typer.Option(min=2, max=9, help="Parties of a room; each watches all others.")
    ] = 2,
    seconds: Annotated[float, typer.Option(min=1, max=300, help="Length of a measured window.")] = 10.0,
    runs: RunsOption = 3,
    codec: CodecOption = "video/VP8",
    bitrate: BitrateOption = 1000,
    record: RecordOption = False,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Workers of ours, each on a core.")] = 1,
    peers: PeersOption = "",
    json_path: JsonOption = None,
    html_path: HtmlOption = None,
) -> None:
    """CPU per forwarded packet, delay, loss and memory; `ratio.<peer>` is ours over theirs."""
    plan = forward.Plan(rooms, parties, seconds, runs, codec, bitrate * 1000, names(peers), record, workers)
    finish(lambda progress: asyncio.run(forward.run(plan, progress)), json_path, html_path)


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
def compose_command(json_path: JsonOption = None, html_path: HtmlOption = None) -> None:
    """CPU of composing a recorded minute beside the ffmpeg command that draws the same."""
    finish(lambda _: {"scenario": "compose", **compose.run()}, json_path, html_path)


@app.command("seal")
def seal_command(json_path: JsonOption = None, html_path: HtmlOption = None) -> None:
    """MB per CPU-second of sealing, opening and hashing."""
    finish(lambda _: {"scenario": "seal", **seal.run()}, json_path, html_path)


@app.command("size")
def size_command(
    calls: Annotated[int, typer.Option(min=1, help="Two-party calls at the busiest time.")],
    measured: Annotated[
        list[Path] | None,
        typer.Option(help="Reports of this machine (JSON); without any, the README's figures."),
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="Length of a call.")] = 4.0,
    per_day: Annotated[int, typer.Option(min=1, help="Calls a day.")] = 100_000,
    retain: Annotated[str, typer.Option(help="How long recordings are kept: 90d, 12m, 10y.")] = "10y",
    json_path: JsonOption = None,
    html_path: HtmlOption = None,
) -> None:
    """Cores, memory, disk and network for a number of calls, by composing policy, from measured figures."""
    wanted = Wanted(calls, minutes, per_day, retain)
    finish(lambda _: {"scenario": "size", **size(wanted, measured or [])}, json_path, html_path)


def names(peers: str) -> tuple[str, ...]:
    """Split the names of peers."""
    return tuple(name.strip() for name in peers.split(",") if name.strip())


def machine() -> dict[str, Any]:
    """Describe what was measured on, and what."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit.stdout.strip() or None,
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": [round(value, 1) for value in os.getloadavg()],
    }


def finish(
    work: Callable[[Callable[[str], None]], dict[str, Any]], json_path: Path | None, html_path: Path | None
) -> None:
    """Do the work behind a progress line, then print the table and write the files."""
    before = machine()
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    try:
        with Bar(*columns, console=errors, transient=True) as bar:
            task = bar.add_task("begins", total=None)

            def progress(line: str) -> None:
                bar.update(task, description=line)
                if not errors.is_terminal:
                    errors.print(line)

            report = {"machine": before, **work(progress)}
    except (ServerError, JoinError, ValueError) as error:
        errors.print(f"[red]{error}[/red]")
        raise typer.Exit(1) from None
    text = json.dumps(report, indent=2, ensure_ascii=False)
    if json_path:
        json_path.write_text(text + "\n", encoding="utf-8")
    if html_path:
        html_path.write_text(html(report), encoding="utf-8")
    if sys.stdout.isatty() or json_path:
        Console().print(table(report))
    else:
        print(text)


if __name__ == "__main__":
    app()
