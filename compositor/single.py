"""Single-picture files: one seat's source as it was sent, without encoding its video again.

H.264, AV1 and VP9 go into MP4, VP8 into WebM (no MP4 player takes it). A camera's file carries the seat's
sound: Opus packets as sent, gaps filled with Opus silence. A seat that reconnected has several tracks; they
follow each other in one file when their codec is the same, what differs is left to the composite and listed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from compositor.boxes import av1_config, avc_config, length_prefixed, opus_head, vp9_config
from compositor.compose import NothingRecorded
from compositor.mp4 import write_mp4
from compositor.pictures import picture_size
from compositor.sealing import Write, seal_file
from compositor.spool import SampleTable, Spool
from compositor.timeline import HORIZON_NS, Frame, Timeline
from compositor.webm import write_webm
from recorder.clock import rfc3339
from recorder.records import ClockRecord, EndRecord, Record, RtcpRecord, RtpRecord, SessionRecord, TrackInfo
from recorder.sealed import DataKey
from recorder.template import Source

VIDEO_TIMESCALE = 90_000
OPUS_RATE = 48_000
OPUS_SILENCE = b"\xf8\xff\xfe"
"""One 20 ms CELT frame of silence, stereo (what WebRTC senders and decoders use for it)."""
_SILENCE_TICKS = 960
_CODECS = {"video/h264": "h264_inband", "video/av1": "av1", "video/vp9": "vp9", "video/vp8": "vp8"}
PRE_SKIP = 312


class SingleWanted(BaseModel):
    """A seat's source to be written as a file of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seat: str = Field(min_length=1)
    source: Source = "camera"


@dataclass(slots=True)
class _File:
    """One file being gathered: table 0 is video, table 1 the sound."""

    seat: str
    source: str
    mime: str
    spool: Spool
    left: list[str] = field(default_factory=list)
    """What could not go into it."""
    has_key: bool = False


class SingleWriter:
    """Gather the frames of the wanted seats, then write their files into ``files/``."""

    def __init__(
        self, recording_dir: Path, data_key: DataKey, wanted: list[SingleWanted], *, end_ns: int | None = None
    ) -> None:
        self._files_dir = recording_dir / "files"
        self._files_dir.mkdir(mode=0o700, exist_ok=True)
        self._key = data_key
        self._wanted = {(one.seat, one.source) for one in wanted}
        self._timeline = Timeline()
        self._files: dict[tuple[str, str], _File] = {}
        self._start_ns: int | None = None
        self._known_ns = 0
        self._end_ns = end_ns
        self._offset_ns: int | None = None
        for orphan in self._files_dir.glob(".single-*.spool"):  # of an attempt that was killed
            orphan.unlink(missing_ok=True)

    def feed(self, record: Record) -> None:
        """Take the next record of the journal."""
        if isinstance(record, SessionRecord) and self._start_ns is None:
            self._start_ns = int(record.info.get("armed_ns", record.at_ns))
        elif isinstance(record, EndRecord) and record.final:
            self._end_ns = record.at_ns
        elif isinstance(record, ClockRecord) and self._offset_ns is None:
            self._offset_ns = record.utc_ns - record.at_ns
        self._timeline.feed(record)
        packet = isinstance(record, RtpRecord | RtcpRecord)
        at_ns = getattr(record, "arrival_ns" if packet else "at_ns", self._known_ns)
        if at_ns - self._known_ns > HORIZON_NS // 4:
            self._take(at_ns - HORIZON_NS)
        self._known_ns = max(self._known_ns, at_ns)

    def _take(self, until_ns: int) -> None:
        for frame in self._timeline.ready(until_ns):
            info = self._timeline.tracks.get(frame.track)
            if info is None or not frame.data or frame.in_band:
                continue  # what is repeated inside another packet cannot be copied
            if info.kind == "video":
                self._video(info, frame)
            else:
                self._audio(info, frame)

    def _file(self, info: TrackInfo) -> _File | None:
        key = (info.seat, info.source)
        if (self._wanted and key not in self._wanted) or info.mime.lower() not in _CODECS:
            return None
        if key not in self._files:
            codec = _CODECS[info.mime.lower()]
            tables = [
                SampleTable("video", codec, Fraction(1, VIDEO_TIMESCALE)),
                SampleTable(
                    "audio",
                    "opus",
                    Fraction(1, OPUS_RATE),
                    opus_head(2, PRE_SKIP),
                    sample_rate=OPUS_RATE,
                    channels=2,
                    skip=PRE_SKIP,
                ),
            ]
            path = self._files_dir / f".single-{_plain(info.seat)}-{info.source}.{{file_id}}.spool"
            self._files[key] = _File(info.seat, info.source, info.mime, Spool(path, self._key, tables))
        file = self._files[key]
        if file.mime != info.mime:
            note = f"track {info.track} is {info.mime}, the file {file.mime}"
            if note not in file.left:
                file.left.append(note)
            return None
        return file

    def _video(self, info: TrackInfo, frame: Frame) -> None:
        file = self._file(info)
        if file is None:
            return
        table = file.spool.tables[0]
        data = frame.data
        if not file.has_key:
            if not frame.keyframe:
                return
            size = picture_size(info.mime, data)
            config = {
                "h264_inband": avc_config(data),
                "av1": av1_config(data),
                "vp9": vp9_config(),
                "vp8": b"",
            }[table.codec]
            if size is None or config is None:
                return  # a keyframe without its parameters: wait for the next
            table.width, table.height = size
            table.config, table.rotation = config, frame.rotation
            file.has_key = True
        if table.codec == "h264_inband":
            data = length_prefixed(data)
        pts = self._ticks(frame.at_ns, VIDEO_TIMESCALE)
        if len(table) and pts <= table.dts[-1]:
            pts = table.dts[-1] + 1
        file.spool.add(0, data, pts=pts, dts=pts, duration=VIDEO_TIMESCALE // 25, key=frame.keyframe)
        file.spool.flush_if(256 * 1024)

    def _audio(self, info: TrackInfo, frame: Frame) -> None:
        file = next(
            (f for f in self._files.values() if f.seat == info.seat and f.source == _picture_of(info.source)),
            None,
        )
        if file is None and _picture_of(info.source) == "camera":
            return  # sound before the first picture: the composite has it
        if file is None:
            return
        if info.mime.lower() != "audio/opus":
            note = f"track {info.track} is {info.mime}: only Opus is copied"
            if note not in file.left:
                file.left.append(note)
            return
        table = file.spool.tables[1]
        at = self._ticks(frame.at_ns, OPUS_RATE)
        ticks = max(120, round(frame.duration_ns * OPUS_RATE / 1_000_000_000))
        position = table.end if len(table) else 0
        while at - position >= _SILENCE_TICKS:
            file.spool.add(1, OPUS_SILENCE, pts=position, dts=position, duration=_SILENCE_TICKS, key=True)
            position += _SILENCE_TICKS
        if at - position < -_SILENCE_TICKS * 5:
            return  # overlaps what is there by more than 100 ms: a second microphone
        file.spool.add(1, frame.data, pts=position, dts=position, duration=ticks, key=True)

    def _ticks(self, at_ns: int, rate: int) -> int:
        return max(0, round((at_ns - (self._start_ns or 0)) * rate / 1_000_000_000))

    def finish(self) -> list[dict[str, Any]]:
        """Write the files. Returns for each its summary and what could not go into it."""
        if self._start_ns is None:
            raise NothingRecorded("the journal holds no session")
        self._timeline.end()
        end_ns = self._end_ns if self._end_ns is not None else self._known_ns
        self._take(end_ns + 1)
        return [self._write(file, end_ns) for file in self._files.values() if file.has_key]

    def _write(self, file: _File, end_ns: int) -> dict[str, Any]:
        assert self._start_ns is not None
        webm = file.spool.tables[0].codec == "vp8"
        name = f"single-{_plain(file.seat)}-{file.source}.{'webm' if webm else 'mp4'}"
        duration_s = Fraction(max(1, end_ns - self._start_ns), 1_000_000_000)
        video = file.spool.tables[0]
        video.end = max(video.end, round(duration_s * VIDEO_TIMESCALE))  # the last picture stands to the end
        file.spool.finish()
        duration_ms = round(duration_s * 1000)
        created = self._start_ns + self._offset_ns if self._offset_ns is not None else 0
        write_container = write_webm if webm else write_mp4

        def content(write: Write) -> None:
            write_container(
                write,
                file.spool.tables,
                file.spool.runs,
                file.spool.read(),
                duration_s=duration_s,
                created_utc_ns=created,
            )

        summary = seal_file(
            self._files_dir / f"{name}.{{file_id}}.sealed",
            self._key,
            content,
            kind="derived",
            media_type="video/webm" if webm else "video/mp4",
            public={"duration_ms": duration_ms},
        )
        return {
            "name": name,
            "seat": file.seat,
            "source": file.source,
            "duration_ms": duration_ms,
            "armed_at": rfc3339(created) if created else None,
            "left_out": file.left,
            "file": summary.to_json(),
        }

    def remove_spools(self) -> None:
        """Delete what was only needed on the way."""
        for file in self._files.values():
            file.spool.remove()


def _plain(seat: str) -> str:
    """Write a seat for a file name: ``customer#1`` becomes ``customer-1``."""
    return "".join(character if character.isalnum() and character.isascii() else "-" for character in seat)


def _picture_of(source: str) -> str:
    """Return the picture source whose file carries a sound source."""
    return {"microphone": "camera"}.get(source, source)
