"""A control process dies: the next one takes over what runs, and seals what nobody writes any more."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from tests.mediaserver.running import Client, make_keys, running, settings_in


async def start(api: Client, number: str) -> dict[str, Any]:
    result: dict[str, Any] = await api.ok("POST", "/v1/rooms/long/recordings", {"business_no": number})
    return result


async def test_the_next_control_process_takes_over(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    make_keys(settings)
    async with running(settings, leave_workers=True) as first:
        await first.ok("POST", "/v1/rooms", {"name": "long"})
        await first.ok("POST", "/v1/rooms/long/tokens", {"identity": "li", "role": "customer"})
        one = await start(first, "survivor")
        pid = first.control.workers.all()[0].pid
    async with running(settings, leave_workers=True) as second:
        assert second.control.workers.all()[0].pid == pid
        shown = await second.ok("GET", f"/v1/recordings/{one['id']}")
        assert (shown["state"], shown["parts"]) == ("recording", 1)
        seat = await second.ok("POST", "/v1/rooms/long/tokens", {"identity": "wang", "role": "customer"})
        assert seat["seat"] == "customer#2"
        ended = await second.ok("POST", f"/v1/recordings/{one['id']}/stop")
        assert ended["state"] == "sealed"
        lost = await start(second, "orphan")
    os.kill(pid, signal.SIGKILL)
    # The index may be lost as well: it is built again from the recordings, the unfinished one included.
    for path in settings.data_dir.glob("index.sqlite*"):
        path.unlink()
    async with running(settings) as third:
        again = await third.ok("GET", f"/v1/recordings/{one['id']}")
        for member in ("state", "business_no", "armed_at", "stopped_at", "template", "participants"):
            assert again[member] == ended[member], member
        stopped = await third.ok("POST", f"/v1/recordings/{lost['id']}/stop")
        assert (stopped["state"], stopped["business_no"]) == ("recovered", "orphan")
        assert (await third.ok("POST", f"/v1/recordings/{lost['id']}/verify"))["ok"]
