"""Secrets: made once, readable by their owner only, never shown, never silently made anew."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mediaserver.config import Settings, load
from mediaserver.secrets import SecretsError, open_secrets, read_api_keys


def settings_for(tmp_path: Path, **environ: str) -> Settings:
    more = {f"SHUANGLU__{key}": value for key, value in environ.items()}
    return load(None, {"SHUANGLU__DATA_DIR": str(tmp_path / "data"), **more})


def test_the_first_start_makes_them_and_the_second_keeps_them(tmp_path: Path) -> None:
    first = open_secrets(settings_for(tmp_path))
    assert {"api-keys.yaml", "session.key"} < {path.name for path in first.created}
    for path in (tmp_path / "data/secrets").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    second = open_secrets(settings_for(tmp_path))
    assert second.created == ()
    assert (second.api_keys, second.session_key) == (first.api_keys, first.session_key)
    assert first.api_keys[0].tenant == "default"
    assert first.api_keys[0].secret not in repr(first)
    assert first.session_key not in repr(first)


def test_no_two_servers_have_the_same(tmp_path: Path) -> None:
    one, two = (open_secrets(settings_for(tmp_path / name)) for name in ("a", "b"))
    assert one.api_keys[0].secret != two.api_keys[0].secret
    assert one.session_key != two.session_key


@pytest.mark.parametrize("name", ["api-keys.yaml", "session.key", ".", "crypto"])
def test_what_others_can_read_is_refused(tmp_path: Path, name: str) -> None:
    open_secrets(settings_for(tmp_path))
    path = tmp_path / "data/secrets" / name
    path.chmod(path.stat().st_mode | 0o040)
    with pytest.raises(SecretsError, match="chmod"):
        open_secrets(settings_for(tmp_path))


def test_production_refuses_development_keys(tmp_path: Path) -> None:
    with pytest.raises(SecretsError, match="development keys"):
        open_secrets(settings_for(tmp_path, ENVIRONMENT="production"))


def test_lost_keys_are_never_replaced_beside_recordings(tmp_path: Path) -> None:
    (tmp_path / "data/recordings/default").mkdir(parents=True)
    with pytest.raises(SecretsError, match="bring the keys back"):
        open_secrets(settings_for(tmp_path))
    with pytest.raises(SecretsError, match="mounted"):
        open_secrets(settings_for(tmp_path / "other", CRYPTO__DIRECTORY=str(tmp_path / "none")))


def test_a_passphrase_is_needed_again(tmp_path: Path) -> None:
    open_secrets(settings_for(tmp_path, CRYPTO__PASSPHRASE="correct horse"))
    open_secrets(settings_for(tmp_path, CRYPTO__PASSPHRASE="correct horse"))
    for wrong in ({}, {"CRYPTO__PASSPHRASE": "wrong horse"}):
        with pytest.raises(SecretsError):
            open_secrets(settings_for(tmp_path, **wrong))


GOOD = {"id": "k1", "secret": "s" * 40, "tenant": "bank", "webhook_url": "https://bank/hook"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([GOOD, GOOD], "twice"),
        ([{**GOOD, "secret": "short"}], "32 bytes"),
        ([{**GOOD, "extra": "x"}], "nothing else"),
        ([{**GOOD, "tenant": ""}], "not empty"),
        ([{**GOOD, "tenant": 5}], "must be text"),
        ([{"secret": "s" * 40}], "needs an id"),
        ([], "at least one"),
        ({}, "list"),
        (["x"], "must have id"),
    ],
)
def test_a_faulty_key_file_is_named(tmp_path: Path, content: object, problem: str) -> None:
    path = tmp_path / "api-keys.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(SecretsError, match=problem) as error:
        read_api_keys(path)
    assert GOOD["secret"] not in str(error.value)


def test_several_keys_for_a_tenant(tmp_path: Path) -> None:
    path = tmp_path / "api-keys.yaml"
    path.write_text(yaml.safe_dump([GOOD, {**GOOD, "id": "k2"}]))
    assert [key.id for key in read_api_keys(path)] == ["k1", "k2"]
