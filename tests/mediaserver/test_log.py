"""The log never shows a secret, whichever way it got in."""

from __future__ import annotations

import json
import logging

import pytest
import structlog

from mediaserver import log
from mediaserver.settings import Log
from mediaserver.tokens import ApiKey, server_token

TOKEN = server_token(ApiKey("key-1", "k" * 40))


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {TOKEN}",
        f"got {TOKEN} from",
        "passphrase=canary123",
        'the body {"secret": "canary123"}',
        "https://host/#code=canary123&x=1",
        "postgresql://user:canary123@host/db",
        "a=ice-pwd:canary123",
        "-----BEGIN PRIVATE KEY-----\ncanary123\n-----END PRIVATE KEY-----",
        "-----BEGIN EC PRIVATE KEY-----\ncanary123",
        "authorization: basic canary123",
    ],
)
def test_secrets_in_text_are_starred(text: str) -> None:
    assert "canary123" not in log.redact(text)
    assert TOKEN not in log.redact(text)


def test_ordinary_text_stays() -> None:
    for text in (
        "room 4 of tenant default closed after 30 s",
        "code=room_not_found",
        "codes: VP8, H264",
        "status code 404",
    ):
        assert log.redact(text) == text


def test_a_line_is_json_with_everything_starred(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        log.configure(Log(format="json", level="info"), worker=3)
        structlog.get_logger("a").info(
            "started 双录", api_secret="canary1", params={"data_key": "canary2", "n": 1}, chunk=b"canary3"
        )
        logging.getLogger("b").warning("token=%s of %s", "canary4", {"x": 1})
        try:
            raise ValueError("passphrase=canary5")
        except ValueError:
            logging.getLogger("c").exception("failed")
        logging.getLogger("d").debug("not shown")
    finally:
        root.handlers[:], root.level = handlers, level
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()
    output = capsys.readouterr().err
    lines = [json.loads(line) for line in output.splitlines()]
    assert "canary" not in output
    assert [line["worker"] for line in lines] == [3, 3, 3]
    assert lines[0]["event"] == "started 双录"
    assert lines[0]["params"] == {"data_key": "***", "n": 1}
    assert lines[0]["level"] == "info"
    assert "Traceback" in lines[2]["exception"]
