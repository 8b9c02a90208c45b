"""Where pictures go: exact boxes, no seams, seats that keep their place."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compositor.layout import Party, Place, arrange, fit_picture
from recorder.template import Fit, Layout, LayoutName, Slot

AGENT = Party("agent#1", "agent")
CUSTOMER = Party("customer#1", "customer")
EXPERT = Party("expert#1", "expert")


def boxes(places: list[Place]) -> list[tuple[str | None, int, int, int, int]]:
    return [(p.seat, p.x, p.y, p.w, p.h) for p in places]


def test_side_by_side_has_the_agent_left_whoever_came_first() -> None:
    wanted = [("agent#1", 0, 0, 640, 720), ("customer#1", 640, 0, 640, 720)]
    assert boxes(arrange(Layout(), [AGENT, CUSTOMER], 1280, 720)) == wanted
    assert boxes(arrange(Layout(), [CUSTOMER, AGENT], 1280, 720)) == wanted


def test_nothing_moves_when_the_second_party_joins() -> None:
    alone = boxes(arrange(Layout(), [CUSTOMER], 1280, 720))
    assert alone == [(None, 0, 0, 640, 720), ("customer#1", 640, 0, 640, 720)]
    assert boxes(arrange(Layout(), [], 1280, 720)) == [(None, 0, 0, 640, 720), (None, 640, 0, 640, 720)]


def test_three_parties_are_all_there() -> None:
    places = arrange(Layout(), [AGENT, CUSTOMER, EXPERT], 1280, 720)
    assert boxes(places) == [
        ("agent#1", 0, 0, 640, 360),
        ("customer#1", 640, 0, 640, 360),
        ("expert#1", 320, 360, 640, 360),
    ]


def test_top_bottom_single_pip() -> None:
    assert boxes(arrange(Layout(name="top_bottom"), [AGENT, CUSTOMER], 1280, 720)) == [
        ("agent#1", 0, 0, 1280, 360),
        ("customer#1", 0, 360, 1280, 360),
    ]
    assert boxes(arrange(Layout(name="single"), [AGENT, CUSTOMER], 1280, 720)) == [
        ("customer#1", 0, 0, 1280, 720)
    ]
    pip = arrange(Layout(name="pip", corner="top_left"), [AGENT, CUSTOMER], 1280, 720)
    assert boxes(pip) == [("customer#1", 0, 0, 1280, 720), ("agent#1", 26, 14, 320, 180)]
    assert [place.fit for place in pip] == ["contain", "crop"]


def test_screen_main_follows_what_is_shared() -> None:
    sharing = Party("agent#1", "agent", ("screen",))
    places = arrange(Layout(name="screen_main"), [sharing, CUSTOMER], 1280, 720)
    assert [(p.seat, p.source, p.x, p.w) for p in places] == [
        ("agent#1", "screen", 0, 960),
        ("agent#1", "camera", 960, 320),
        ("customer#1", "camera", 960, 320),
    ]
    assert places[0].fit == "contain"
    unshared = arrange(Layout(name="screen_main"), [AGENT, CUSTOMER], 1280, 720)
    assert [(p.seat, p.source) for p in unshared] == [("customer#1", "camera"), ("agent#1", "camera")]


def test_slots_bind_by_seat_then_role_then_order() -> None:
    other = Party("customer#2", "customer")
    layout = Layout(
        name="custom",
        slots=[
            Slot(role="customer", x=0.0, y=0.0, w=0.5, h=0.5, z=2),
            Slot(seat="customer#1", x=0.5, y=0.0, w=0.5, h=0.5),
            Slot(x=0.0, y=0.5, w=0.5, h=0.5, fit="stretch"),
            Slot(role="expert", x=0.5, y=0.5, w=0.5, h=0.5, z=1),
        ],
    )
    places = arrange(layout, [CUSTOMER, other, AGENT], 1280, 720)
    assert [(p.seat, p.role, p.z, p.fit) for p in places] == [
        ("customer#1", "customer", 0, "crop"),
        ("agent#1", "agent", 0, "stretch"),
        (None, "expert", 1, "crop"),
        ("customer#2", "customer", 2, "crop"),
    ]


NAMES: list[LayoutName] = [name for name in get_args(LayoutName) if name != "custom"]


@given(
    st.sampled_from(NAMES),
    st.lists(st.sampled_from(["agent", "customer", "expert"]), max_size=9),
    st.integers(160, 960),
    st.integers(120, 540),
)
def test_every_place_lies_inside_on_even_pixels(name: LayoutName, roles: list[str], w: int, h: int) -> None:
    parties = [Party(f"{role}#{index}", role) for index, role in enumerate(roles)]
    places = arrange(Layout(name=name), parties, 2 * w, 2 * h)
    assert places
    for place in places:
        assert (place.x | place.y | place.w | place.h) % 2 == 0
        assert place.x >= 0
        assert place.y >= 0
        assert place.x + place.w <= 2 * w
        assert place.y + place.h <= 2 * h
    if name in ("side_by_side", "grid", "top_bottom"):
        assert {p.seat for p in places if p.seat} == {p.seat for p in parties}
        for index, one in enumerate(places):
            for other in places[index + 1 :]:
                apart = one.x + one.w <= other.x or other.x + other.w <= one.x
                assert apart or one.y + one.h <= other.y or other.y + other.h <= one.y


@pytest.mark.parametrize(
    ("fit", "source", "target"),
    [
        ("contain", (0, 0, 640, 360), (0, 180, 640, 360)),
        ("crop", (160, 0, 320, 360), (0, 0, 640, 720)),
        ("stretch", (0, 0, 640, 360), (0, 0, 640, 720)),
    ],
)
def test_fit(fit: Fit, source: tuple[int, ...], target: tuple[int, ...]) -> None:
    fitted = fit_picture(fit, 640, 360, 640, 720)
    assert (fitted.source, fitted.target) == (source, target)


@given(
    st.sampled_from(["crop", "contain", "stretch"]),
    st.integers(2, 4096),
    st.integers(2, 4096),
    st.integers(1, 960),
    st.integers(1, 540),
)
def test_fit_never_reaches_over(fit: Fit, width: int, height: int, w: int, h: int) -> None:
    fitted = fit_picture(fit, width, height, 2 * w, 2 * h)
    for (x, y, wide, high), (limit_w, limit_h) in (
        (fitted.source, (width, height)),
        (fitted.target, (2 * w, 2 * h)),
    ):
        assert min(x, y) >= 0
        assert min(wide, high) >= 2
        assert x + wide <= limit_w
        assert y + high <= limit_h
        assert (x | y | wide | high) % 2 == 0


def test_one_large_beside_two_or_three_keeps_all_places() -> None:
    two = arrange(Layout(name="1+2"), [AGENT, CUSTOMER], 1280, 720)
    assert boxes(two) == [
        ("customer#1", 0, 0, 960, 720),
        ("agent#1", 960, 0, 320, 360),
        (None, 960, 360, 320, 360),
    ]
    three = arrange(Layout(name="1+3"), [AGENT, EXPERT, CUSTOMER], 1280, 720)
    assert [place.seat for place in three] == ["expert#1", "agent#1", "customer#1", None]
    assert [(place.y, place.h) for place in three[1:]] == [(0, 240), (240, 240), (480, 240)]
    assert [place.fit for place in three] == ["contain", "crop", "crop", "crop"]


def test_a_document_lies_beside_two_faces_and_waits_for_its_page() -> None:
    sharing = Party("agent#1", "agent", ("screen", "document"))
    places = arrange(Layout(name="document"), [sharing, CUSTOMER], 1280, 720)
    assert [(place.seat, place.source) for place in places] == [
        ("agent#1", "document"),
        ("agent#1", "camera"),
        ("customer#1", "camera"),
    ]
    waiting = arrange(Layout(name="document"), [AGENT, CUSTOMER], 1280, 720)
    assert [(place.seat, place.source, place.w) for place in waiting[:1]] == [(None, "document", 960)]
