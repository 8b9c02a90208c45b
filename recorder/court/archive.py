"""The recording's metadata for an electronic-archive system, by the field map of docs/archive-map.md.

DA/T 63-2017 (metadata of audio and video records) and DA/T 78-2019 (their management) name what an archive
wants to know. Numbers (M7 …) stand only where they were seen; a name marked ``confirmed="no"`` is what the
archive's own field of that meaning is to be found by.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from xml.etree import ElementTree

from recorder.court.facts import Facts
from recorder.manifest import MANIFEST
from recorder.sealed import FileSummary, plain_name

_FORBIDDEN = re.compile("[\ud800-\udfff\ufffe\uffff]")
NAMESPACE = "urn:shuanglu:archive-metadata:1"


@dataclass(frozen=True)
class Field:
    """One line of the map."""

    name: str
    """What archives call it."""
    number: str
    """Its number in DA/T 63-2017 where known, else empty."""
    confirmed: bool
    """The name was seen in the standard's own text; else it is in common archival use only."""
    source: str
    """Where it is taken from in the recording."""
    value: Callable[[Facts], str | list[str]]


@dataclass(frozen=True)
class FileField:
    """One line of the map, of each file."""

    name: str
    source: str
    value: Callable[[FileSummary], str]


def _provider(facts: Facts) -> str:
    provider = facts.provider
    return f"{provider.get('name', '')} {provider.get('version', '')}".strip()


def _activities(facts: Facts) -> list[str]:
    return [f"{one.number:06d} {one.kind} {one.at}" for one in facts.statements]


def _actors(facts: Facts) -> list[str]:
    names = ("operator", "actor", "reviewer")
    return [
        f"{number:06d} {private[name]}"
        for number, private in facts.private.items()
        for name in names
        if private.get(name)
    ]


FIELDS = (
    Field("档号", "", False, "none: the archive gives it", lambda facts: ""),
    Field("题名", "M7", True, "business_no and parties' roles", lambda facts: _title(facts)),
    Field("业务描述", "", True, "business_no, metadata", lambda facts: _business(facts)),
    Field("业务开始时间", "", False, "facts.armed_at", lambda facts: facts.fact("armed_at")),
    Field("业务结束时间", "", True, "facts.stopped_at", lambda facts: facts.fact("stopped_at")),
    Field("立档单位 / 机构", "", False, "facts.tenant", lambda facts: facts.fact("tenant")),
    Field("人物", "", False, "participants", lambda facts: [f"{p.name} ({p.seat})" for p in facts.parties]),
    Field("时间长度", "", False, "facts.duration_ms", lambda facts: f"{facts.duration_ms} ms"),
    Field("保管期限", "", False, "retention statements", lambda facts: _retention(facts)),
    Field("捕获系统", "", False, "manifest provider", _provider),
    Field("数字签名算法", "", False, "signed pages", lambda facts: "SM2 with SM3 (GM/T 0009)"),
    Field(
        "签名者证书",
        "",
        False,
        "pages' certificates",
        lambda facts: [f"{one.subject} {one.fingerprint}" for one in facts.certificates],
    ),
    Field("录像标识符", "", False, "manifest recording", lambda facts: facts.manifest.recording),
    Field("管理活动标识符", "M83", True, "statements: number, kind, at", _activities),
    Field("关联实体标识符", "M87", True, "manifest: SM3", lambda facts: _manifest_sm3(facts)),
    Field("机构人员标识符", "M88", True, "statements: operator, actor, reviewer", _actors),
    Field("授权标识符", "M93", True, "none: the institution's own", lambda facts: ""),
)

FILE_FIELDS = (
    FileField("文件名", "summary name", lambda one: plain_name(one.name)),
    FileField("文件标识符", "summary file_id", lambda one: one.file_id),
    FileField("类别", "summary kind", lambda one: one.kind),
    FileField("格式", "summary media_type", lambda one: one.media_type),
    FileField("文件大小", "summary plain_bytes", lambda one: str(one.plain_bytes)),
    FileField("数字摘要 (明文 SM3)", "summary plain_sm3", lambda one: one.plain_sm3),
    FileField("数字摘要 (密文 SM3)", "summary sm3", lambda one: one.sm3),
)


def _title(facts: Facts) -> str:
    roles = "、".join(dict.fromkeys(party.role for party in facts.parties))
    return f"双录录像 {facts.business_no} {roles}".strip()


def _business(facts: Facts) -> str:
    return "; ".join([facts.business_no, *(f"{name}: {value}" for name, value in facts.metadata.items())])


def _manifest_sm3(facts: Facts) -> str:
    return f"{MANIFEST} sm3:{facts.manifest.page.digest.hex()}"


def _retention(facts: Facts) -> list[str]:
    found = []
    for statement in facts.statements:
        until = statement.body.get("until")
        if statement.kind == "retention" and isinstance(until, dict):
            found = [f"{kind}: {when} ({statement.body.get('basis')})" for kind, when in until.items()]
    return found


def archive_metadata(facts: Facts) -> bytes:
    """Return the metadata as XML, UTF-8. What a field has no value for is there, empty, to be filled in."""
    root = ElementTree.Element("record", {"xmlns": NAMESPACE, "standard": "DA/T 63-2017, DA/T 78-2019"})
    for field in FIELDS:
        values = field.value(facts)
        for value in values if isinstance(values, list) and values else [values or ""]:
            attributes = {"name": field.name, "confirmed": "yes" if field.confirmed else "no"}
            if field.number:
                attributes["number"] = field.number
            ElementTree.SubElement(root, "element", attributes).text = _xml(str(value))
    for summary in facts.files:
        file = ElementTree.SubElement(root, "file")
        for each in FILE_FIELDS:
            ElementTree.SubElement(file, "element", {"name": each.name}).text = _xml(each.value(summary))
    ElementTree.indent(root)
    written: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return written


def _xml(text: str) -> str:
    """Leave out what XML 1.0 has no place for (section 2.2): control characters, lone surrogates."""
    return "".join(one for one in text if one in "\t\n\r" or (one >= " " and not _FORBIDDEN.match(one)))
