"""The commands around time-stamps and certificates, as an operator runs them; checks by ``openssl`` alone."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from recorder import cli
from recorder.gm.x509 import Certificate
from recorder.keys import FileProvider
from recorder.statements import read_statements
from tests.recorder import pki, tsa
from tests.recorder.small_recording import SmallRecording, make_provider, make_recording

DOCUMENT = Path(__file__).parents[2] / "docs" / "container.md"
DAY = timedelta(days=1)
NOW = datetime.now(UTC).replace(microsecond=0)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def recording(tmp_path: Path) -> SmallRecording:
    provider = make_provider(tmp_path / "keys")
    return make_recording(tmp_path / "root" / "r", provider)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tsa.Authority:
    return tsa.make_authority(tmp_path_factory.mktemp("tsa") / "p256")


@pytest.fixture
def server(authority: tsa.Authority) -> Iterator[tsa.Server]:
    with tsa.serve(authority.reply) as running:
        yield running


def test_stamping_verifying_and_renewing(
    recording: SmallRecording, authority: tsa.Authority, server: tsa.Server
) -> None:
    common = ["--keys", recording.provider.directory, "--url", server.url, "--tsa-trust", authority.trust]
    done = run("timestamp", recording.path, *common, "--policy", tsa.OTHER_POLICY)
    assert done.exit_code == 0, done.output
    assert "statement 3: timestamp of" in done.output
    assert "by CN=Test Time-Stamp Authority" in done.output
    renewed = run("renew", recording.path, *common)
    assert renewed.exit_code == 0, renewed.output
    assert "statement 4: renewal of" in renewed.output
    report = json.loads(run("verify", recording.path, "--json", "--tsa-trust", authority.trust).output)
    assert [one["state"] for one in report["timestamps"]] == ["verified", "verified"]
    shown = run("verify", recording.path, "--tsa-trust", authority.trust)
    assert shown.exit_code == 0
    assert shown.output.count("verified") == 2
    unnamed = run("verify", recording.path)
    assert unnamed.exit_code == 0
    assert unnamed.output.count("not verified here") == 2


def test_a_broken_recording_is_not_renewed(
    recording: SmallRecording, authority: tsa.Authority, server: tsa.Server
) -> None:
    segment = next((recording.path / "segments").iterdir())
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    done = run("renew", recording.path, "--keys", recording.provider.directory, "--url", server.url)
    assert done.exit_code == 1
    assert server.requests == []
    assert len(read_statements(recording.path)) == 2
    assert run("renew", recording.path).exit_code == 1  # neither keys nor an address


def test_what_is_due_is_listed(recording: SmallRecording, authority: tsa.Authority, tmp_path: Path) -> None:
    root = recording.path.parent
    make_recording(root / "unstamped", recording.provider, seed=3)
    later = make_recording(root / "later", recording.provider, seed=4)
    soon = tsa.make_authority(tmp_path / "soon", not_before=NOW - 9 * DAY, not_after=NOW + 20 * DAY)
    for made, who in ((recording, soon), (later, authority)):
        with tsa.serve(who.reply) as server:
            stamped = run("timestamp", made.path, "--keys", recording.provider.directory, "--url", server.url)
            assert stamped.exit_code == 0, stamped.output
    due = json.loads(run("renew", root, "--due", 30, "--json").output)
    assert due == {
        "due": [{"path": str(recording.path), "lapses": f"{NOW + 20 * DAY:%Y-%m-%dT%H:%M:%SZ}"}],
        "without_timestamp": 1,
    }
    assert json.loads(run("renew", root, "--due", 10, "--json").output)["due"] == []
    assert len(json.loads(run("renew", root, "--due", 5000, "--json").output)["due"]) == 2
    assert "1 to renew; 1 have no time-stamp" in run("renew", root, "--due", 30).output


def test_an_authority_that_fails_adds_nothing(recording: SmallRecording, server: tsa.Server) -> None:
    server.status = 500
    done = run("timestamp", recording.path, "--keys", recording.provider.directory, "--url", server.url)
    assert done.exit_code == 1
    assert "answered 500" in str(done.exception)
    assert len(read_statements(recording.path)) == 2


def test_requests_become_certificates_and_the_provider_takes_them(
    recording: SmallRecording, tmp_path: Path
) -> None:
    keys = tmp_path / "operators"
    shutil.copytree(recording.provider.directory, keys)
    done = run(
        *("csr", "--keys", keys, tmp_path / "requests", "--name", "recorder-1"),
        *("--organisation", "测试银行"),
    )
    assert done.exit_code == 0, done.output
    for half in ("signing", "encryption"):
        path = tmp_path / "requests" / f"{half}.csr.pem"
        shown = tsa.openssl(
            *("req", "-in", path, "-verify", "-noout", "-subject", "-nameopt", "utf8"),
            *("-vfyopt", "distid:1234567812345678"),
        )
        assert "verify OK" in shown
        assert "C=CN, O=测试银行, CN=recorder-1" in shown.replace(" = ", "=")
    assert run("csr", "--keys", keys, tmp_path / "x", "--name", "").exit_code == 1
    pki.certify(keys, pki.make_chain())
    assert run("recover", recording.path, "--keys", keys).exit_code == 1  # has a manifest; the keys load


def test_verify_trusts_an_authority_named_by_file(tmp_path: Path) -> None:
    chain = pki.make_chain()
    make_provider(tmp_path / "keys")
    pki.certify(tmp_path / "keys", chain, with_root=False)
    made = make_recording(tmp_path / "r", FileProvider.open(tmp_path / "keys"))
    for name, issuer, code in (("root", chain.root, 0), ("other", pki.make_ca("Test Root CA"), 1)):
        (tmp_path / f"{name}.pem").write_text(issuer.pem)
        result = run("verify", made.path, "--trust", tmp_path / f"{name}.pem")
        assert result.exit_code == code, result.output
    leaf = Certificate.from_pem(made.provider.info().signing_certificate_pem)
    shown = run("verify", made.path).output
    assert shown.count(leaf.subject) == 2  # who signed, and its status
    assert "\\n" not in shown


def commands(heading: str) -> list[str]:
    """The lines of the first block of commands after a heading of the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    block = re.search(r"```\n(.*?)```", text[text.index(heading) :], re.DOTALL)
    assert block is not None
    return block[1].replace("\\\n", " ").splitlines()


@pytest.mark.parametrize("kind", ["timestamp", "renewal"])
def test_the_documents_commands_check_a_token(
    recording: SmallRecording, authority: tsa.Authority, server: tsa.Server, tmp_path: Path, kind: str
) -> None:
    common = ["--keys", recording.provider.directory, "--url", server.url]
    assert run({"renewal": "renew"}.get(kind, kind), recording.path, *common).exit_code == 0
    work = tmp_path / "work"
    shutil.copytree(recording.path / "statements", work)
    shutil.copy(authority.trust, work / "tsa-root.pem")

    def follow() -> subprocess.CompletedProcess[str]:
        script = "\n".join(commands("### Checking a token"))
        return subprocess.run(["sh", "-e", "-c", script], cwd=work, capture_output=True, text=True)

    done = follow()
    assert "Verification: OK" in done.stdout, done.stdout + done.stderr
    page = (work / "000003.json").read_text()
    (work / "000003.json").write_text(page.replace(recording.recording, recording.recording[::-1]))
    assert follow().returncode != 0


def test_every_line_of_those_commands_is_a_program_everyone_has() -> None:
    assert {shlex.split(line)[0] for line in commands("### Checking a token")} == {"python3", "openssl"}
