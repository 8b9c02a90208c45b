"""How a composite is to look and sound: the template, frozen in the manifest when the recording starts.

Strict pydantic models: unknown keys, wrong types and unknown variables are refused with the place of the
fault. ``Template.model_json_schema()`` describes them for the API. Geometry is in 0–1 units of the canvas
(x, w of its width; y, h of its height; text sizes of its height), so one template serves every canvas size.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta, timezone, tzinfo
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from recorder.png import PngError, check_png

TEXT_VARIABLES = frozenset(
    [
        "business_no",
        "identity",
        "room",
        "name",
        "role",
        "seat",
        "tenant",
        "recording",
        "attempt",
        "date",
        "step",
    ]
)
"""Variables of texts. ``identity, name, role, seat`` are the tile's own in a label; elsewhere those of all
present parties, joined by a middle dot. ``{metadata.KEY}`` is a value of the recording's metadata. ``{{`` is
a brace."""

IMAGE_BYTES_LIMIT = 512 * 1024
IMAGE_PIXELS_LIMIT = 1920 * 1080
_VARIABLE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_METADATA = re.compile(r"metadata\.[A-Za-z0-9_.-]{1,64}\Z")
_OFFSET = re.compile(r"([+-])(\d{2}):(\d{2})\Z")

Unit = Annotated[float, Field(ge=0.0, le=1.0)]
Extent = Annotated[float, Field(gt=0.0, le=1.0)]
Colour = Annotated[str, Field(pattern=r"^#[0-9A-Fa-f]{6}$")]
Anchor = Literal[
    "top_left", "top", "top_right", "left", "center", "right", "bottom_left", "bottom", "bottom_right"
]
Fit = Literal["crop", "contain", "stretch"]
Source = Literal["camera", "screen", "document"]
LayoutName = Literal[
    "side_by_side",
    "pip",
    "grid",
    "screen_main",
    "document",
    "single",
    "top_bottom",
    "1+2",
    "1+3",
    "custom",
]


def text_variables(text: str) -> list[str]:
    """Names of the variables in ``text``, in order. Raises ValueError on a stray brace or an unknown name."""
    names: list[str] = []
    for match in _VARIABLE.finditer(text):
        if match[0] in ("{{", "}}"):
            continue
        name = match[1]
        if name is None:
            raise ValueError(
                f"stray {match[0]!r} at character {match.start()}; write it twice to mean itself"
            )
        if name not in TEXT_VARIABLES and not _METADATA.match(name):
            known = " ".join(f"{{{known}}}" for known in sorted(TEXT_VARIABLES))
            raise ValueError(f"unknown variable {{{name}}}; known are {known} {{metadata.KEY}}")
        names.append(name)
    return names


def fill_text(text: str, values: Mapping[str, str]) -> str:
    """Replace the variables of a validated ``text``; what has no value becomes empty."""

    def one(match: re.Match[str]) -> str:
        return match[0][0] if match[0] in ("{{", "}}") else values.get(match[1] or "", "")

    return _VARIABLE.sub(one, text)


def time_zone(name: str) -> tzinfo:
    """Zone of ``+08:00``, ``UTC`` or an IANA name. Raises ValueError when there is no such zone."""
    if name == "UTC":
        return timezone(timedelta(0))
    if match := _OFFSET.match(name):
        minutes = int(match[2]) * 60 + int(match[3])
        if minutes >= 24 * 60 or int(match[3]) > 59:
            raise ValueError(f"no such offset: {name}")
        return timezone(timedelta(minutes=-minutes if match[1] == "-" else minutes))
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"no such time zone: {name!r} (give +08:00, UTC or an IANA name)") from error


def _checked_png(value: str) -> str:
    """Return base64 that holds a PNG within the limits. Raises ValueError saying what it is instead."""
    try:
        data = base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error
    if len(data) > IMAGE_BYTES_LIMIT:
        raise ValueError(f"the image has {len(data)} bytes, more than {IMAGE_BYTES_LIMIT}")
    try:
        check_png(data, pixels_limit=IMAGE_PIXELS_LIMIT)
    except PngError as error:
        raise ValueError(str(error)) from error
    return value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Slot(_Strict):
    """A place of a layout: whom it shows, and in ``custom`` where."""

    seat: str | None = Field(default=None, min_length=1, max_length=128, description="Such as customer#1.")
    role: str | None = Field(default=None, min_length=1, max_length=64)
    source: Source = "camera"
    x: Unit | None = None
    y: Unit | None = None
    w: Extent | None = None
    h: Extent | None = None
    z: int = Field(default=0, ge=-100, le=100, description="Higher is nearer to the viewer.")
    fit: Fit | None = Field(default=None, description="Default: the layout's.")

    @model_validator(mode="after")
    def _inside(self) -> Slot:
        given = [self.x is not None, self.y is not None, self.w is not None, self.h is not None]
        if any(given) and not all(given):
            raise ValueError("give all of x, y, w, h or none")
        over_x = (self.x or 0.0) + (self.w or 0.0) > 1.0 + 1e-9
        if over_x or (self.y or 0.0) + (self.h or 0.0) > 1.0 + 1e-9:
            raise ValueError("the slot reaches over the canvas: x + w and y + h must be ≤ 1")
        return self


class Layout(_Strict):
    """Where the pictures go. Without slots the parties are placed by role and order of joining."""

    name: LayoutName = "side_by_side"
    slots: list[Slot] = Field(default_factory=list, max_length=16)
    fit: Fit | None = Field(
        default=None, description="Default: crop for cameras, contain for screens and documents."
    )
    corner: Literal["top_left", "top_right", "bottom_left", "bottom_right"] = Field(
        default="bottom_right", description="Where pip puts the small picture."
    )

    @model_validator(mode="after")
    def _slots_fit_the_name(self) -> Layout:
        if self.name == "custom" and not self.slots:
            raise ValueError("layout custom needs slots")
        for index, slot in enumerate(self.slots):
            if self.name == "custom" and slot.x is None:
                raise ValueError(f"slots.{index}: layout custom needs x, y, w, h")
            if self.name != "custom" and slot.x is not None:
                raise ValueError(f"slots.{index}: x, y, w, h belong to layout custom, not to {self.name}")
        return self


class _Placed(_Strict):
    x: Unit = 0.02
    y: Unit = 0.02
    anchor: Anchor = Field(default="top_left", description="Which point of the overlay lies at x, y.")


class _Written(_Placed):
    size: float = Field(default=0.035, ge=0.015, le=0.2, description="Height of the letters.")
    colour: Colour = "#ffffff"
    alpha: Extent = 1.0
    shade: Unit = Field(
        default=0.45, description="Darkness of the box behind the letters; 0 = none, outline only."
    )


class ClockOverlay(_Written):
    """The server's wall clock on every frame, with the zone's offset behind it."""

    kind: Literal["clock"] = "clock"
    format: str = Field(
        default="%Y-%m-%d %H:%M:%S.%L", max_length=64, description="%Y %m %d %H %M %S %L (ms) %z %%"
    )
    zone: str = "+08:00"

    @field_validator("format")
    @classmethod
    def _known_directives(cls, value: str) -> str:
        for match in re.finditer(r"%(.?)", value):
            if match[1] not in ("Y", "m", "d", "H", "M", "S", "L", "z", "%"):
                raise ValueError(f"{match[0]!r} is not one of %Y %m %d %H %M %S %L %z %%")
        return value

    @field_validator("zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        time_zone(value)
        return value


class _Worded(_Written):
    text: str = Field(min_length=1, max_length=256)

    @field_validator("text")
    @classmethod
    def _known_variables(cls, value: str) -> str:
        text_variables(value)
        return value


class TextOverlay(_Worded):
    """One line of text with variables."""

    kind: Literal["text"] = "text"


class ImageOverlay(_Placed):
    """A PNG with alpha, such as a logo."""

    kind: Literal["image"] = "image"
    png: str = Field(max_length=IMAGE_BYTES_LIMIT * 4 // 3 + 4, description="base64 of a PNG, ≤ 512 KiB")
    w: Extent = Field(default=0.1, description="Width; the height follows the picture's shape.")
    alpha: Extent = 1.0

    @field_validator("png")
    @classmethod
    def _is_png(cls, value: str) -> str:
        return _checked_png(value)

    def data(self) -> bytes:
        """Return the PNG file."""
        return base64.b64decode(self.png)


class TileOverlay(_Strict):
    """Text repeated diagonally over the whole picture."""

    kind: Literal["tile"] = "tile"
    text: str = Field(default="{business_no} {identity}", min_length=1, max_length=256)
    angle: float = Field(
        default=-30.0, ge=-90.0, le=90.0, description="Degrees; negative rises to the right."
    )
    size: float = Field(default=0.03, ge=0.015, le=0.2)
    colour: Colour = "#ffffff"
    alpha: Extent = 0.12
    gap: float = Field(
        default=0.22, ge=0.05, le=1.0, description="Distance of the lines, of the canvas height."
    )

    @field_validator("text")
    @classmethod
    def _known_variables(cls, value: str) -> str:
        text_variables(value)
        return value


class LabelOverlay(_Worded):
    """A line in every tile, its x and y in units of the tile; a muted microphone is said in it."""

    kind: Literal["label"] = "label"
    text: str = Field(default="{name}", min_length=1, max_length=256)
    x: Unit = 0.02
    y: Unit = 0.98
    anchor: Anchor = "bottom_left"
    size: float = Field(default=0.03, ge=0.015, le=0.2)


class CaptionOverlay(_Worded):
    """A line shown while a step is active."""

    kind: Literal["caption"] = "caption"
    text: str = Field(default="当前环节:{step}", min_length=1, max_length=256)
    x: Unit = 0.5
    y: Unit = 0.94
    anchor: Anchor = "bottom"


class SignOverlay(_Worded):
    """A red dot and a word: this is being recorded. Not shown while the recording is paused."""

    kind: Literal["sign"] = "sign"
    text: str = Field(default="双录中 REC", min_length=1, max_length=256)
    x: Unit = 0.5
    anchor: Anchor = "top"


Overlay = Annotated[
    ClockOverlay | TextOverlay | ImageOverlay | TileOverlay | LabelOverlay | CaptionOverlay | SignOverlay,
    Field(discriminator="kind"),
]


def default_overlays() -> list[Any]:
    """Clock top left, business number top right, names in the tiles, faint tiled watermark, step captions."""
    return [
        TileOverlay(),
        LabelOverlay(),
        ClockOverlay(),
        TextOverlay(text="{business_no}", x=0.98, y=0.02, anchor="top_right", size=0.03),
        CaptionOverlay(),
    ]


class Audio(_Strict):
    """How the parties' sound is put together. No party is ever dropped from the mix."""

    layout: Literal["mix", "stereo_by_role"] = Field(
        default="mix", description="stereo_by_role: agents left, customers right, others in the middle."
    )
    bitrate_bps: int = Field(default=96_000, ge=32_000, le=256_000)


Profile = Literal["standard", "evidence", "hd"]
PROFILE_FPS = {"standard": 25, "evidence": 15, "hd": 25}
PROFILE_SIZE = {"hd": (1920, 1080)}
"""Of profiles that are not 1280 x 720."""


def _named_layout(value: Any) -> Any:
    """Let a layout be given by its name alone."""
    return {"name": value} if isinstance(value, str) else value


LayoutField = Annotated[Layout, BeforeValidator(_named_layout)]
OverlayList = Annotated[list[Overlay], Field(max_length=24)]


class Template(_Strict):
    """The whole look and sound of a composite."""

    profile: Profile = Field(
        default="standard",
        description="standard: 1280 x 720, 25 pictures a second. evidence: 15. hd: 1920 x 1080, 25.",
    )
    width: int = Field(default=1280, ge=320, le=1920, multiple_of=2)
    height: int = Field(default=720, ge=240, le=1080, multiple_of=2)
    fps: int | None = Field(default=None, ge=1, le=30, description="Default: the profile's.")
    video: bool = Field(
        default=True, description="false: sound only, in composite.m4a; no picture is decoded or encoded."
    )
    static_fps: int | None = Field(
        default=5,
        ge=1,
        le=30,
        description="Pictures a second while nothing but the clock moves. null: always the full rate, "
        "where a rule asks for it.",
    )
    effort: Literal["low", "normal"] = Field(
        default="low",
        description="low: half the encoder's CPU, a twentieth more bits. normal: x264's veryfast as it is.",
    )
    crf: int = Field(default=26, ge=16, le=40, description="x264 quality; smaller is better and larger.")
    bitrate_bps: int | None = Field(
        default=None, ge=64_000, le=8_000_000, description="Average rate instead of constant quality."
    )
    gop_s: float = Field(
        default=4.0, ge=0.5, le=10.0, description="Longest distance of key frames: how fine one seeks."
    )
    compose: Literal["live", "after_stop", "off_peak", "on_demand"] | None = Field(
        default=None, description="When the recording's files are made; null: as the server's settings say."
    )
    layout: LayoutField = Field(default_factory=lambda: Layout())
    background: Colour = "#101820"
    background_png: str | None = Field(
        default=None,
        max_length=IMAGE_BYTES_LIMIT * 4 // 3 + 4,
        description="base64 of a PNG behind the places, ≤ 512 KiB; it covers the canvas, its middle shows.",
    )
    overlays: OverlayList = Field(default_factory=default_overlays)
    audio: Audio = Field(default_factory=lambda: Audio())

    @model_validator(mode="before")
    @classmethod
    def _size_of_the_profile(cls, value: Any) -> Any:
        size = PROFILE_SIZE.get(str(value.get("profile"))) if isinstance(value, Mapping) else None
        return value if size is None else {"width": size[0], "height": size[1], **value}

    @field_validator("background_png")
    @classmethod
    def _is_png(cls, value: str | None) -> str | None:
        return None if value is None else _checked_png(value)

    @property
    def file_name(self) -> str:
        """Name of the composite of record."""
        return "composite.mp4" if self.video else "composite.m4a"

    @property
    def media_type(self) -> str:
        """Media type of the composite."""
        return "video/mp4" if self.video else "audio/mp4"

    @property
    def frame_rate(self) -> int:
        """Pictures a second of the composite."""
        return self.fps if self.fps is not None else PROFILE_FPS[self.profile]


class TemplateChange(_Strict):
    """What may change while a recording runs; what is not given stays."""

    layout: LayoutField | None = None
    overlays: OverlayList | None = None


def parse_template(value: Mapping[str, Any] | None) -> Template:
    """Validate a template given as JSON values. Raises pydantic.ValidationError naming each fault's place."""
    return Template() if value is None else Template.model_validate(dict(value))


def apply_change(template: Template, change: TemplateChange) -> Template:
    """Return ``template`` with the change made."""
    update: dict[str, Any] = {}
    if change.layout is not None:
        update["layout"] = change.layout
    if change.overlays is not None:
        update["overlays"] = change.overlays
    return template.model_copy(update=update)


def texts(overlays: Sequence[Any]) -> list[str]:
    """Return the texts of overlays, unfilled."""
    return [overlay.text for overlay in overlays if hasattr(overlay, "text")]
