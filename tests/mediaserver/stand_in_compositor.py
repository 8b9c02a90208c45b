"""A program that speaks the compositor's lines, to test how its processes are kept running.

Its first argument says what it does: ``done``, ``dies`` (always), ``dies_once`` and ``hangs_once`` (then
is done; the second argument is a file that remembers), ``fails``, ``follows`` (is done when told that the
journal has ended), ``chatters``, ``composes`` (seals PLAIN as the composite it is asked for).
"""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from recorder.sealed import DataKey, SealedWriter

PLAIN = bytes(range(256)) * 3000
"""What ``composes`` makes: 750 KiB, three chunks of a sealed file."""


def compose(job: dict[str, Any]) -> dict[str, Any]:
    key = DataKey(job["data_key_id"], base64.b64decode(job["data_key"]), job["suite"])
    folder = Path(job["recording_dir"]) / "files"
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / "composite.mp4.00000000000000000000000000000000.sealed").write_bytes(b"left by a dead one")
    path = folder / f"{job['name']}.{{file_id}}.sealed"
    writer = SealedWriter(path, key, kind=job["kind"], media_type="video/mp4")
    writer.write(PLAIN)
    return {"file": writer.close().to_json(), "duration_ms": 1234, "frames": 30}


def say(message: dict[str, object]) -> None:
    print(json.dumps(message), flush=True)


def main() -> None:
    what = sys.argv[1]
    job = json.loads(sys.stdin.readline())
    if what in ("dies_once", "hangs_once"):
        marker = Path(sys.argv[2])
        if not marker.exists():
            marker.touch()
            if what == "hangs_once":
                signal.pause()
            os._exit(9)
    elif what == "dies":
        os._exit(9)
    elif what == "fails":
        say({"failed": {"code": "disk_full", "detail": "no space"}})
        return
    elif what == "follows":
        say({"progress": {"composed_ms": 2500, "of_ms": 10000}})
        line = sys.stdin.readline()
        if not line:
            os._exit(3)
        assert json.loads(line) == {"ended": True}
    elif what == "chatters":
        print("this is not JSON", flush=True)
        say({"event": {"type": "overlay.glyph_missing", "data": {"code_point": "U+3400"}}})
    elif what == "composes":
        say({"done": compose(job)})
        return
    say({"done": {"file": None, "live": job["live"]}})


if __name__ == "__main__":
    main()
