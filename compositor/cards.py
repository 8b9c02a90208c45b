"""Cards: what a place shows when there is no picture to show, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from compositor.canvas import Planes, blend, yuv
from compositor.text import Style, text_stamp, text_width

ROLE_NAMES = {
    "agent": "坐席 agent",
    "customer": "客户 customer",
    "expert": "专家 expert",
    "manager": "客户经理 manager",
    "co_borrower": "共同借款人 co-borrower",
    "insured": "被保险人 insured",
    "supervisor": "主管 supervisor",
}


class Shown(Enum):
    """What a place shows: the picture, or the card that says why there is none."""

    PICTURE = ""
    WAITING = "等待加入 / waiting to join"
    LEFT = "已离开 / left the call"
    NO_CAMERA = "未开启摄像头 / no camera"
    MUTED = "摄像头已关闭 / camera off"
    STARTING = "等待画面 / waiting for picture"
    LOST = "信号中断 / signal lost"
    ENDED = "画面已结束 / picture ended"
    NO_SHARE = "无共享画面 / nothing shared"
    PAUSED = "录制已暂停 / recording paused"


@dataclass(frozen=True, slots=True)
class Card:
    """The content of a card."""

    shown: Shown
    name: str
    role: str


def role_name(role: str) -> str:
    """Name a role for people; roles are an open vocabulary, unknown ones name themselves."""
    return ROLE_NAMES.get(role, role)


def draw_card(target: Planes, card: Card, background: str, missing: Callable[[str], None]) -> None:
    """Paint a card over the whole of ``target``: the name large, the role, the reason."""
    alarm = card.shown is Shown.LOST
    y, u, v = yuv(background)
    target.fill((min(y + 14, 235), u, v))
    edge = max(2, (target.height // 90) & ~1)
    inner = target.box(edge, edge, target.width - 2 * edge, target.height - 2 * edge)
    border = yuv("#b3372f") if alarm else (min(y + 34, 235), u, v)
    target.fill(border)
    inner.fill((min(y + 14, 235), u, v))
    unit = min(target.height, round(target.width * 0.8))
    lines = [
        (card.name or role_name(card.role), unit * 0.105, "#ffffff"),
        (role_name(card.role) if card.name else "", unit * 0.06, "#b8c4cc"),
        (card.shown.value, unit * 0.072, "#ff8a80" if alarm else "#ffe082"),
    ]
    heights = [unit * 0.17, unit * 0.12, unit * 0.13]
    top = (target.height - sum(heights)) / 2
    for (text, size, colour), height in zip(lines, heights, strict=True):
        if text.strip():
            size_px = max(8, round(size))
            wide = text_width(text, size_px)
            if wide > target.width * 0.92:
                size_px = max(8, int(size_px * target.width * 0.92 / wide))
            stamp = text_stamp(text, Style(size_px, colour), missing)
            blend(target, stamp, (target.width - stamp.width) // 2, round(top))
        top += height
