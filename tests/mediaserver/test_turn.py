"""TURN credentials: the draft's construction, the Link header, settings that are refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path

import pytest
from pydantic import SecretStr

from mediaserver import turn
from mediaserver.config import ConfigError, dump, load
from mediaserver.network_settings import Turn

SECRET = "north-south-east-west"


def test_the_password_is_what_coturn_computes() -> None:
    username, password = turn.credentials(SECRET.encode(), "li.ming", 1_700_000_000)
    assert username == "1700000000:li.ming"
    digest = hmac.new(SECRET.encode(), username.encode(), hashlib.sha1).digest()
    assert password == base64.b64encode(digest).decode()


def test_any_identity_makes_a_header_of_plain_characters() -> None:
    settings = Turn(urls=("turn:t.example:3478?transport=udp",), secret=SecretStr(SECRET), ttl_s=60)
    for identity in ('王五"; rel="x', "a, <b>", "\r\nSet-Cookie: x", "王" * 500, ""):
        header = turn.links(settings, identity, 1000.5)
        assert header.isascii()
        assert header.isprintable()
        assert header.count('"') == 8
        assert header.startswith('<turn:t.example:3478?transport=udp>; rel="ice-server"; username="1060:')
        assert len(header) < 500


def test_stun_servers_get_no_credentials_and_several_are_one_header() -> None:
    urls = ("stun:s.example", "turn:t.example?transport=tcp", "turns:[2001:db8::1]:443?transport=tcp")
    header = turn.links(Turn(urls=urls, secret=SecretStr(SECRET)), "li", 0)
    assert header.startswith('<stun:s.example>; rel="ice-server", <turn:t.example?transport=tcp>; rel=')
    assert header.count("credential=") == 2
    assert turn.links(Turn(), "li", 0) == ""


def test_signalling_tells_the_same_servers_as_the_header() -> None:
    urls = ("stun:s.example", "turn:t.example?transport=tcp")
    settings = Turn(urls=urls, secret=SecretStr(SECRET))
    stun, relay = turn.servers(settings, "li", 0)
    assert stun == {"urls": "stun:s.example"}
    assert set(relay) == {"urls", "username", "credential"}
    header = turn.links(settings, "li", 0)
    assert f'username="{relay["username"]}"; credential="{relay["credential"]}"' in header


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("turn: {urls: ['turn:t.example']}", "turn: secret: TURN servers need the secret"),
        ("turn: {urls: ['turn:t.example'], secret: short}", "turn: secret: has fewer than 16"),
        ("turn: {urls: ['http://t.example']}", "turn.urls.0: a URL such as"),
        ("turn: {urls: ['turn:t\">.example']}", "turn.urls.0: a URL such as"),
    ],
)
def test_bad_settings_name_their_key(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert problem in caught.value.problems[0]


def test_the_secret_comes_from_a_file_and_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET + "\n")
    settings = load(
        None,
        {
            "SHUANGLU__TURN__URLS": "['turn:t.example']",
            "SHUANGLU__TURN__SECRET_FILE": str(tmp_path / "secret"),
        },
    )
    assert settings.turn.secret is not None
    assert settings.turn.secret.get_secret_value() == SECRET
    assert SECRET not in repr(settings)
    assert SECRET not in str(dump(settings))
