"""Settings: every key documented, every fault named with its dotted path."""

from __future__ import annotations

from pathlib import Path

import pytest

from mediaserver.config import ConfigError, Settings, default_yaml, dump, keys, load

DEFAULT = Path(__file__).parents[2] / "configs" / "default.yaml"


def refused(text: str, tmp_path: Path, environ: dict[str, str] | None = None) -> list[str]:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load(path, environ or {})
    return error.value.problems


def test_the_default_file_is_the_code() -> None:
    assert DEFAULT.read_text(encoding="utf-8") == default_yaml(), "run: mediaserver config --default"
    assert load(DEFAULT, {}) == Settings() == load(None, {})


def test_every_key_says_what_changing_it_does() -> None:
    for path, _, description in keys():
        assert len(description) > 10, path


def test_environment_overrides_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("http:\n  port: 1111\nmedia:\n  workers: 3\n")
    settings = load(
        path,
        {
            "SHUANGLU__HTTP__PORT": "2222",
            "SHUANGLU__MEDIA__ADVERTISED": "[203.0.113.7, '2001:db8::1']",
            "SHUANGLU__DRAIN_S": "1.5",
            "PATH": "/bin",
        },
    )
    assert (settings.http.port, settings.media.workers, settings.drain_s) == (2222, 3, 1.5)
    assert settings.media.advertised == ("203.0.113.7", "2001:db8::1")


def test_calls_come_in_by_addresses_and_by_interfaces(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("media:\n  bind: [lo, 127.0.0.1, '::1']\n")
    assert sorted(load(path, {}).media.bind) == ["127.0.0.1", "::1"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "recording:\n  segment_ms: 10\n",
            "recording.segment_ms: unknown key; did you mean recording.segment_s?",
        ),
        ("nothing: 1\n", "nothing: unknown key"),
        ("crypto:\n  provider: kms\n", "crypto: provider kms and kms.url belong together"),
        ("crypto:\n  provider: hsm\n", "crypto.provider: input should be 'file', 'environment' or 'kms'"),
        ("crypto:\n  kms: {url: 'https://kms', token_file: t}\n", "crypto: provider kms and kms.url belong"),
        ("crypto:\n  kms: {token_file: t}\n", "crypto.kms: url is missing"),
        (
            "crypto:\n  provider: kms\n  kms: {url: 'http://kms', token_file: t}\n",
            "crypto.kms: url: keys travel in the answers",
        ),
        ("crypto:\n  provider: kms\n  kms: {url: 'https://kms'}\n", "crypto.kms: give token_file, or"),
        ("crypto:\n  provider: environment\n  directory: d\n", "crypto: directory is for provider file"),
        ("crypto:\n  kms: {tiemout_s: 1}\n", "crypto.kms.tiemout_s: unknown key; did you mean"),
        ("crypto:\n  opening: {provider: file, directory: d}\n", "crypto: opening: needs open: false"),
        ("crypto:\n  open: false\n  opening: {provider: file}\n", "crypto.opening: provider file and dir"),
        ("crypto:\n  former: {provider: kms}\n", "crypto.former: provider kms and kms.url belong"),
        (
            "crypto:\n  open: false\n  former: {provider: file, directory: d}\n",
            "crypto: former: the server opens nothing",
        ),
        ("crypto:\n  certificate_no: ''\n", "crypto.certificate_no: string should have at least 1"),
        ("recording:\n  segment_s: 10 min\n", "recording.segment_s: input should be a valid number (a plain"),
        (
            "recording:\n  queue_bytes: 64 MiB\n",
            "recording.queue_bytes: input should be a valid integer (a plain",
        ),
        ("http:\n  port: '8443'\n", "http.port: input should be a valid integer"),
        ("http:\n  port: 70000\n", "http.port: input should be less than or equal to 65535"),
        ("tls:\n  enabled: 'no'\n", "tls.enabled: input should be a valid boolean"),
        ("http:\n  port: 1\n  port: 2\n", "line 3: the key port is given twice"),
        ("1: 2\n", "line 1: the key 1 is not text"),
        ("- a\n", "must hold keys and values"),
        ("a: [\n", "not YAML"),
        ("tls: {enabled: false}\n", "tls.enabled: plain HTTP on 0.0.0.0 is refused"),
        ("tls: {cert: a.pem}\n", "tls.cert and tls.key belong together"),
        ("media: {bind: [nowhere7]}\n", "media.bind: 'nowhere7' is no address, nor an interface"),
        ("trusted_proxy: [10.0.0.1/8]\n", "trusted_proxy.0: 10.0.0.1/8 has host bits set"),
        ("composing: {when: soon}\n", "composing.when: input should be 'live'"),
        ("composing: {off_peak: 25:00-06:00}\n", "composing.off_peak: string should match"),
        ("http: 5\n", "http: input should be an object"),
        ("crypto: {passphrase: 12345678}\n", "crypto.passphrase: input should be a valid string"),
    ],
)
def test_faults_are_named(text: str, problem: str, tmp_path: Path) -> None:
    assert any(problem in line for line in refused(text, tmp_path)), refused(text, tmp_path)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    assert len(refused("a: 1\nhttp: {port: x}\nmedia: {workers: -1}\n", tmp_path)) == 3


def test_plain_http_is_for_loopback_or_a_trusted_proxy(tmp_path: Path) -> None:
    assert not load(
        None, {"SHUANGLU__TLS__ENABLED": "false", "SHUANGLU__HTTP__HOST": "127.0.0.1"}
    ).tls.enabled
    proxied = {"SHUANGLU__TLS__ENABLED": "false", "SHUANGLU__TRUSTED_PROXY": "[10.1.2.3/32]"}
    assert not load(None, proxied).tls.enabled


def test_secrets_come_from_files_and_are_never_shown(tmp_path: Path) -> None:
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse\n")
    settings = load(None, {"SHUANGLU__CRYPTO__PASSPHRASE_FILE": str(secret)})
    assert settings.crypto.passphrase is not None
    assert settings.crypto.passphrase.get_secret_value() == "correct horse"
    for text in (repr(settings), str(settings), dump(settings)):
        assert "horse" not in text
    text = f"crypto:\n  passphrase: horse\n  passphrase_file: {secret}\n"
    assert "is given as well" in refused(text, tmp_path)[0]
    secret.write_text("\n")
    assert "is empty" in refused(f"crypto:\n  passphrase_file: {secret}\n", tmp_path)[0]
    assert "No such file" in refused("crypto:\n  passphrase_file: /nonexistent\n", tmp_path)[0]


def test_a_faulty_secret_is_not_repeated(tmp_path: Path) -> None:
    assert "12345678" not in "".join(refused("crypto: {passphrase: 12345678}\n", tmp_path))
    for broken in ('"12345678', "12345678: x: y", "@12345678", "[12345678"):
        faults = "".join(refused(f"crypto:\n  passphrase: {broken}\n", tmp_path))
        assert "not YAML, line" in faults
        assert "12345678" not in faults


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        load(tmp_path / "none.yaml", {})


def test_settings_cannot_change() -> None:
    with pytest.raises(Exception, match="frozen"):
        Settings().http.port = 1
