"""The verification report in words, Chinese and English together; ``html`` and ``pdf`` print them.

A text is ``(Chinese, English)`` where both are said, or one string where there is nothing to translate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from recorder.canonical import JSON, canonical
from recorder.court.facts import Facts, Span
from recorder.report import Kind, Verdict
from recorder.sealed import plain_name

Text = str | tuple[str, str]

VERDICTS: dict[str, Text] = {
    "ok": ("完整:全部签名、校验链与摘要成立", "whole: every signature, chain and digest holds"),
    "unproven": ("未发现损坏,但并非全部已签名", "no damage found, but not all of it is signed"),
    "broken": ("有损坏或缺失,见“发现”", "damaged or incomplete: see the findings"),
    "destroyed": ("已依规销毁,签名页与摘要仍成立", "destroyed by rule; its signed pages and digests hold"),
}


@dataclass(frozen=True)
class Rows:
    """Names and values."""

    rows: list[tuple[Text, Text]]


@dataclass(frozen=True)
class Grid:
    """A table with a head; empty rows are said in words."""

    head: list[Text]
    rows: list[list[str]]
    widths: tuple[int, ...]
    """Shares of the page's width."""


@dataclass(frozen=True)
class Prose:
    """Paragraphs."""

    paragraphs: list[Text]


@dataclass(frozen=True)
class Drawing:
    """The picture of the recording's time."""

    duration_ms: int
    lanes: list[tuple[Text, str, list[Span]]]
    """Title, colour, spans."""


@dataclass(frozen=True)
class Photo:
    """A JPEG."""

    jpeg: bytes


Item = Rows | Grid | Prose | Drawing | Photo


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: Text
    items: list[Item]


def sections(facts: Facts) -> list[Section]:
    """Return the report of a recording."""
    made = [
        Section(("结论", "Verdict"), [_verdict(facts)]),
        Section(("录像", "The recording"), [_identity(facts)]),
        Section(("当事人", "Parties"), [_parties(facts)]),
        Section(("时间轴", "Timeline"), [_drawing(facts), *_spans(facts)]),
    ]
    if facts.contact_sheet is not None:
        made.append(Section(("画面一览", "Contact sheet"), [Photo(facts.contact_sheet)]))
    made += [
        Section(("文件与摘要", "Files and digests"), [_files(facts)]),
        Section(("签名者", "Signers"), [_signers(facts)]),
        Section(("声明链", "Chain of statements"), [_statements(facts)]),
        Section(("发现", "Findings"), [_findings(facts)]),
        Section(("证明了什么,没有证明什么", "What is proven and what is not"), [_limits(facts)]),
    ]
    return made


def plain(text: Text) -> str:
    """Write a text in one line."""
    return text if isinstance(text, str) else f"{text[0]} {text[1]}"


def clock(ms: int) -> str:
    """Write a time of the recording: h:mm:ss.mmm."""
    seconds, rest = divmod(ms, 1000)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{rest:03d}"


def _verdict(facts: Facts) -> Item:
    report = facts.report
    opened = ("是,逐块解密核验", "yes, every chunk was opened") if report.opened else ("否", "no")
    return Rows(
        [
            (("结论", "verdict"), VERDICTS[report.verdict.value]),
            (("核验时间", "verified at"), facts.exported_at),
            (
                ("核验范围", "checked"),
                (
                    f"{report.files} 个加密文件、{report.records} 条记录、{report.bytes:,} 字节、"
                    f"{report.checkpoints} 个签名检查点、{report.statements} 份声明",
                    f"{report.files} sealed files, {report.records} records, {report.bytes:,} bytes, "
                    f"{report.checkpoints} signed checkpoints, {report.statements} statements",
                ),
            ),
            (("已用密钥打开", "opened with the key"), opened),
            (("密钥保证级别", "assurance of the keys"), _assurance(report.assurance)),
            (("提取人", "exported by"), facts.operator),
            (("提取事由", "reason"), facts.reason),
        ]
    )


def _assurance(value: str) -> Text:
    if value == "development":
        return (
            "开发密钥(自签名证书,无机构背书)",
            "development keys (self-signed, no authority vouches for them)",
        )
    return value or ("未说明", "not stated")


def _identity(facts: Facts) -> Item:
    provider = facts.provider
    certificate = str(provider.get("certificate", "")) or "none"
    rows: list[tuple[Text, Text]] = [
        (("录像编号", "recording"), facts.manifest.recording),
        (("业务流水号", "business number"), facts.business_no),
        (("机构 / 房间", "tenant / room"), f"{facts.fact('tenant')} / {facts.fact('room')}"),
        (("状态", "state"), facts.fact("state")),
        (("第几次录制", "attempt"), facts.fact("attempt")),
        (("取代", "supersedes"), facts.fact("supersedes")),
        (("开始(服务器时钟,UTC)", "armed at (server's clock, UTC)"), facts.fact("armed_at")),
        (("结束", "stopped at"), facts.fact("stopped_at")),
        (("时长", "length"), clock(facts.duration_ms) if facts.duration_ms else ""),
        (("时钟", "clock"), _clock(facts)),
        (
            ("密码提供者", "crypto provider"),
            f"{provider.get('name', '')} {provider.get('version', '')}",
        ),
        (
            ("密码产品认证证书", "certificate of the crypto product"),
            ("无", "none") if certificate == "none" else certificate,
        ),
    ]
    rows += [(name, _short(value)) for name, value in facts.metadata.items()]
    return Rows([(name, value) for name, value in rows if value])


def _short(value: JSON) -> str:
    return value if isinstance(value, str) else canonical(_textual(value)).decode()


def _textual(value: object) -> JSON:
    """Make free JSON fit for printing: its floats become text."""
    if isinstance(value, dict):
        return {str(name): _textual(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_textual(item) for item in value]
    return value if isinstance(value, bool | int | str) or value is None else str(value)


def _clock(facts: Facts) -> Text:
    if not facts.clock:
        return ""
    offset = facts.clock.get("offset_ns")
    said = f"{facts.clock.get('source')}, {int(str(offset)) / 1e6:+.3f} ms" if offset is not None else "—"
    if facts.clock.get("trusted"):
        return (f"可信,{said}", f"trusted, {said}")
    return (f"未同步或不可信,{said}", f"not synchronised, or not trusted, {said}")


def _parties(facts: Facts) -> Item:
    rows = [[one.seat, one.role, one.name, one.identity] for one in facts.parties]
    return Grid(
        [("席位", "seat"), ("角色", "role"), ("姓名", "name"), ("标识", "identity")], rows, (2, 2, 3, 3)
    )


def _drawing(facts: Facts) -> Item:
    return Drawing(
        max(1, facts.duration_ms),
        [
            (("环节", "steps"), "#1f6fb2", facts.steps),
            (("暂停", "pauses"), "#8a8f98", facts.pauses),
            (("缺口", "gaps"), "#c62828", facts.gaps),
        ],
    )


def _spans(facts: Facts) -> Iterator[Item]:
    rows = [
        [kind, one.name, clock(one.from_ms), clock(one.to_ms)]
        for kind, spans in (
            ("环节 step", facts.steps),
            ("暂停 pause", facts.pauses),
            ("缺口 gap", facts.gaps),
        )
        for one in spans
    ]
    if rows:
        head: list[Text] = [("类别", "kind"), ("名称", "name"), ("自", "from"), ("至", "to")]
        yield Grid(head, rows, (2, 4, 2, 2))
    else:
        yield Prose([("无环节标记,无暂停,无缺口。", "No steps marked, no pauses, no gaps.")])


def _files(facts: Facts) -> Item:
    rows = [
        [plain_name(one.name), one.kind, f"{one.plain_bytes:,}", one.plain_sm3, one.sm3]
        for one in facts.files
    ]
    segments = facts.manifest.segments
    rows.append(
        [
            f"journal 原始日志 ({len(segments)} segments)",
            "original",
            f"{sum(one.plain_bytes for one in segments):,}",
            "—",
            "manifest.json",
        ]
    )
    return Grid(
        [
            ("文件", "file"),
            ("类别", "kind"),
            ("明文字节", "plain bytes"),
            ("明文 SM3", "SM3 of the plain text"),
            ("密文 SM3", "SM3 of the sealed file"),
        ],
        rows,
        (3, 1, 1, 4, 4),
    )


def _signers(facts: Facts) -> Item:
    rows = [
        [
            one.subject,
            one.fingerprint,
            f"{one.not_before:%Y-%m-%d} – {one.not_after:%Y-%m-%d}",
            "自签名 self-signed" if one.self_signed else "机构签发 issued",
        ]
        for one in facts.certificates
    ]
    head: list[Text] = [
        ("主体", "subject"),
        ("指纹 SM3", "fingerprint, SM3"),
        ("有效期", "valid"),
        ("签发", "issue"),
    ]
    return Grid(head, rows, (3, 4, 2, 1))


def _statements(facts: Facts) -> Item:
    rows = [
        [
            "manifest",
            "capture 采集清单",
            str(facts.manifest.page.fields.get("written_at")),
            "",
        ]
    ]
    for one in facts.statements:
        private = facts.private.get(one.number, {})
        who = ", ".join(str(private[name]) for name in ("operator", "actor", "reviewer") if private.get(name))
        why = ", ".join(str(private[name]) for name in ("reason", "comment", "purpose") if private.get(name))
        rows.append([f"{one.number:06d}", one.kind, one.at, f"{who}: {why}" if who and why else who or why])
    head: list[Text] = [
        ("编号", "number"),
        ("类别", "kind"),
        ("时间", "signed at"),
        ("何人何故", "who and why"),
    ]
    return Grid(head, rows, (1, 2, 2, 4))


def _findings(facts: Facts) -> Item:
    if not facts.report.findings:
        return Prose([("无。", "None.")])
    rows = [
        [
            one.kind.value,
            one.file,
            "" if one.begin is None else f"{one.begin}–{one.end}",
            one.time,
            one.detail,
        ]
        for one in facts.report.findings
    ]
    head: list[Text] = [
        ("类别", "kind"),
        ("文件", "file"),
        ("字节", "bytes"),
        ("时间", "time"),
        ("说明", "detail"),
    ]
    return Grid(head, rows, (1, 2, 1, 2, 4))


def _limits(facts: Facts) -> Item:
    said: list[Text] = []
    if facts.report.verdict in (Verdict.OK, Verdict.UNPROVEN):
        said.append(
            (
                "已证明:以上文件自签名以来一个比特未变;清单中的时间、缺口、暂停与环节是签名者所签;"
                "导出的明文与所签摘要一致。",
                "Proven: not a bit of the files above changed since they were signed; times, gaps, pauses "
                "and steps are those the signer signed; exported plain text has the signed digests.",
            )
        )
    said += [
        (
            "未证明:签名证书确属该机构。请将指纹与机构另行公布的指纹核对,或要求机构签发的证书。",
            "Not proven: that the signing certificate is the institution's. Compare the fingerprint with one "
            "obtained another way, or ask for a certificate of an authority.",
        ),
        (
            "未证明:镜头前发生的事实本身、当事人身份的真实性;录像只证明服务器收到了什么、何时收到。",
            "Not proven: what is true before the camera, or who the persons are; a recording proves what the "
            "server received and when.",
        ),
        (
            "未证明:此后是否另有声明(链尾可被截去而不留痕迹);请以机构的审计链核对。",
            "Not proven: that no further statement followed (the end of the chain can be cut without a "
            "trace); compare with the institution's audit chain.",
        ),
    ]
    if facts.report.assurance == "development":
        said.append(
            (
                "本录像使用开发密钥签名:任何持有该密钥文件者均可签名,不具机构背书。",
                "Signed with development keys: whoever holds the key file can sign; no authority stands "
                "behind it.",
            )
        )
    if not any(statement.kind == "timestamp" for statement in facts.statements):
        said.append(
            (
                "未附可信时间戳:时间仅来自服务器时钟。",
                "No trusted time-stamp is attached: times are of the server's clock alone.",
            )
        )
    if any(finding.kind == Kind.UNPROVEN for finding in facts.report.findings):
        said.append(
            ("部分字节未被签名覆盖,见“发现”。", "Some bytes are covered by no signature: see the findings.")
        )
    return Prose(said)
