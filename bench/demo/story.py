"""The call itself: server, two browsers, recording, fetching. Everything that happens goes through public
doors.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.demo.cast import AGENT, CUSTOMER, FPS, HEIGHT, WIDTH, Role
from tests.e2e.api import Api
from tests.e2e.browser import Participant, participant
from tests.e2e.stage import Stage

ROOM = "counter-8"
BUSINESS_NO = "LOAN-2026-000088"
CALL_S = 20.0
TEMPLATE = {
    "layout": {"name": "side_by_side", "fit": "crop"},
    "overlays": [
        {"kind": "tile", "text": "双录存证 {business_no}"},
        {"kind": "label"},
        {"kind": "clock"},
        {"kind": "text", "text": "{business_no}", "x": 0.98, "y": 0.02, "anchor": "top_right", "size": 0.03},
        {"kind": "caption"},
    ],
}
STEPS = (
    (0.3, 6.2, "identity", "身份核实", "passed"),
    (6.2, 10.7, "risk", "风险揭示", "disclosed"),
    (10.7, 19.5, "consent", "客户确认", "accepted"),
)
"""(from s, to s, code, name, result) of the recording."""


@dataclass
class Story:
    """What happened in the call."""

    recording: dict[str, Any] = field(default_factory=dict)
    joins_s: list[float] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    decoded: dict[str, int] = field(default_factory=dict)
    ready_s: float = 0.0
    """From stop to a composite that can be fetched."""
    fetched_s: float = 0.0
    composite: bytes = b""
    ranges: int = 0
    report: dict[str, Any] = field(default_factory=dict)


async def run(
    stage: Stage,
    devices: dict[str, tuple[Path, Path]],
    tell: Callable[[str], None],
    progress: Callable[[float, str], None],
) -> Story:
    """Make the call. ``tell`` hears of each step, ``progress`` (s of the call, text) of the running call."""
    story = Story()
    async with Api(stage.base, stage.key()) as api:
        await api.room(ROOM)
        tokens = {
            role.identity: await api.token(ROOM, role.identity, role.role, role.name)
            for role in (AGENT, CUSTOMER)
        }
        async with (
            participant(stage.base, *devices[AGENT.identity]) as agent,
            participant(stage.base, *devices[CUSTOMER.identity]) as customer,
        ):
            people = {AGENT.identity: agent, CUSTOMER.identity: customer}
            await asyncio.gather(
                *(_publish(people[role.identity], role, tokens) for role in (AGENT, CUSTOMER))
            )
            tell("both publish by WHIP: VP8 and Opus over ICE, DTLS, SRTP")
            story.recording = await api.record(
                ROOM,
                BUSINESS_NO,
                "both",
                template=TEMPLATE,
                metadata={"product": "个人消费贷款", "branch": "0571"},
            )
            tell(f"recording {story.recording['id']} is armed: its first record is on disk")
            begin = time.monotonic()
            steps = asyncio.create_task(_steps(api, story.recording["id"], begin))
            story.joins_s = [
                await agent.subscribe(ROOM, CUSTOMER.identity, tokens[AGENT.identity]),
                await customer.subscribe(ROOM, AGENT.identity, tokens[CUSTOMER.identity]),
            ]
            joins = ", ".join(f"{join * 1000:.0f} ms" for join in story.joins_s)
            tell(f"each sees the other by WHEP: {joins} from request to first picture")
            before = await _counts(people)
            while (passed := time.monotonic() - begin) < CALL_S:
                counts = await _counts(people)
                decoded = sum(counts[f"decoded {name}"] for name in people)
                progress(passed, f"{decoded} pictures decoded by the two browsers")
                await asyncio.sleep(min(0.5, max(CALL_S - passed, 0.01)))
            after = await _counts(people)
            await steps
            await api.stop(story.recording["id"])
            composing = asyncio.create_task(api.composed(story.recording["id"], 90))
            progress(CALL_S, "")
            for name in people:
                story.sent[name] = after[f"sent {name}"] - before[f"sent {name}"]
                story.decoded[name] = after[f"decoded {name}"] - before[f"decoded {name}"]
            await agent.leave()
            await customer.leave()
        story.recording, story.ready_s = await composing
        tell(f"the composite is ready, {story.ready_s:.1f} s after stop")
        await _fetch(api, story)
        tell(f"fetched {len(story.composite):,} bytes over HTTP in {story.ranges} ranges")
        story.report = await api.call("POST", f"/v1/recordings/{story.recording['id']}/verify")
        story.recording = await api.recording(story.recording["id"])
    return story


async def _publish(person: Participant, role: Role, tokens: dict[str, str]) -> None:
    await person.publish(ROOM, tokens[role.identity], width=WIDTH, height=HEIGHT, fps=FPS)
    deadline = time.monotonic() + 15
    while not await person.count("publish camera", "video", "framesSent"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{role.identity} sent no picture within 15 s")
        await asyncio.sleep(0.05)


async def _counts(people: dict[str, Participant]) -> dict[str, int]:
    """Return what each sent and how many of its pictures the other decoded."""
    counts: dict[str, int] = {}
    for name, person in people.items():
        (other,) = (one for one in people if one != name)
        counts[f"sent {name}"] = await person.count("publish camera", "video", "framesSent")
        counts[f"decoded {other}"] = await person.count(f"subscribe {other}", "video", "framesDecoded")
    return counts


async def _steps(api: Api, recording: str, begin: float) -> None:
    """Mark the steps of the business flow at their times."""
    moments: list[tuple[float, Callable[[], Awaitable[Any]]]] = []
    path = f"/v1/recordings/{recording}/markers"
    for from_s, to_s, code, name, result in STEPS:
        start = {"step": {"code": code, "name": name}, "action": "start"}
        end = {"step": {"code": code, "name": name}, "action": "end", "result": result}
        moments.append((from_s, lambda body=start: api.call("POST", path, body)))  # type: ignore[misc]
        moments.append((to_s - 0.1, lambda body=end: api.call("POST", path, body)))  # type: ignore[misc]
    for at_s, mark in moments:
        await asyncio.sleep(max(begin + at_s - time.monotonic(), 0))
        await mark()


async def _fetch(api: Api, story: Story) -> None:
    """Fetch the composite as a player does: by ranges."""
    begin, block = time.monotonic(), 1 << 20
    parts: list[bytes] = []
    size: int | None = None
    while size is None or sum(len(part) for part in parts) < size:
        at = sum(len(part) for part in parts)
        answer = await api.file(story.recording["id"], "composite.mp4", Range=f"bytes={at}-{at + block - 1}")
        if answer.status != 206:
            raise RuntimeError(f"the server answered {answer.status} to a range: {answer.body[:200]!r}")
        size = int(answer.headers["Content-Range"].rsplit("/", 1)[1])
        parts.append(answer.body)
    story.composite, story.ranges = b"".join(parts), len(parts)
    story.fetched_s = time.monotonic() - begin
