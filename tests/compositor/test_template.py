"""The template refuses what it does not know, naming the place of the fault."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from recorder.png import PngError, check_png
from recorder.template import (
    Template,
    TemplateChange,
    apply_change,
    fill_text,
    parse_template,
    text_variables,
)


def png(width: int = 8, height: int = 6, mode: str = "RGBA") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (width, height), 1 if mode in ("1", "P", "L") else (200, 30, 40, 128)[: len(mode)]).save(
        out, "PNG"
    )
    return out.getvalue()


def test_defaults_survive_json() -> None:
    template = Template()
    assert parse_template(json.loads(template.model_dump_json())) == template
    assert (template.width, template.height, template.frame_rate) == (1280, 720, 25)
    assert parse_template({"profile": "evidence"}).frame_rate == 15
    assert template.layout.name == "side_by_side"
    assert json.dumps(Template.model_json_schema())


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"colour": "red"}, "colour"),
        ({"width": 1281}, "width"),
        ({"width": "1280"}, "width"),
        ({"fps": 31}, "fps"),
        ({"crf": 5}, "crf"),
        ({"layout": {"name": "circle"}}, "layout.name"),
        ({"layout": {"name": "custom"}}, "layout"),
        ({"layout": {"name": "custom", "slots": [{"role": "agent"}]}}, "layout"),
        (
            {"layout": {"name": "custom", "slots": [{"x": 0.6, "y": 0.0, "w": 0.6, "h": 1.0}]}},
            "layout.slots.0",
        ),
        ({"layout": {"name": "grid", "slots": [{"x": 0.0, "y": 0.0, "w": 1.0, "h": 1.0}]}}, "layout"),
        ({"overlays": [{"kind": "text", "text": "{nobody}"}]}, "overlays.0.text.text"),
        ({"overlays": [{"kind": "text", "text": "{business_no"}]}, "overlays.0.text.text"),
        ({"overlays": [{"kind": "clock", "format": "%H:%Q"}]}, "overlays.0.clock.format"),
        ({"overlays": [{"kind": "clock", "zone": "Mars/Base"}]}, "overlays.0.clock.zone"),
        ({"overlays": [{"kind": "image", "png": "!"}]}, "overlays.0.image.png"),
        (
            {"overlays": [{"kind": "image", "png": base64.b64encode(b"GIF89a").decode()}]},
            "overlays.0.image.png",
        ),
        ({"overlays": [{"kind": "blink"}]}, "overlays.0"),
    ],
)
def test_refuses(value: dict[str, Any], place: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse_template(value)
    assert ".".join(str(part) for part in caught.value.errors()[0]["loc"]).startswith(place)


def test_variables() -> None:
    assert text_variables("单号 {business_no} {metadata.branch} {{x}}") == ["business_no", "metadata.branch"]
    assert fill_text("{{{room}}} {name}", {"room": "r1"}) == "{r1} "
    with pytest.raises(ValueError, match=r"unknown variable \{rooom\}; known are .*\{room\}"):
        text_variables("{rooom}")


def test_change_keeps_the_rest() -> None:
    template = parse_template({"profile": "evidence", "crf": 30})
    changed = apply_change(template, TemplateChange.model_validate({"layout": "pip"}))
    assert changed.layout.name == "pip"
    assert changed.overlays == template.overlays
    assert changed.crf == 30


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_png_of_every_kind(mode: str) -> None:
    assert check_png(png(mode=mode), pixels_limit=100) == (8, 6)


def test_png_truncated_at_every_length_and_flipped() -> None:
    data = png()
    for size in range(len(data)):
        with pytest.raises(PngError):
            check_png(data[:size], pixels_limit=100)
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 0x10
        with pytest.raises(PngError):
            check_png(bytes(broken), pixels_limit=100)


def test_png_too_large() -> None:
    with pytest.raises(PngError, match="8x6"):
        check_png(png(), pixels_limit=47)
