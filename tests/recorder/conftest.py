"""What tests of certificates and of signers share."""

from __future__ import annotations

import pytest

from recorder.gm.sm2 import PrivateKey
from recorder.keys import FileProvider
from tests.recorder import pki
from tests.recorder.small_recording import SmallRecording, make_provider, make_recording


@pytest.fixture(scope="module")
def chain() -> pki.Chain:
    """An authority with an intermediate one."""
    return pki.make_chain()


@pytest.fixture(scope="module")
def key() -> PrivateKey:
    """A key that nobody has certified."""
    return PrivateKey.generate()


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory, chain: pki.Chain) -> FileProvider:
    """A provider whose certificates the authority issued."""
    directory = tmp_path_factory.mktemp("certified") / "keys"
    make_provider(directory)
    pki.certify(directory, chain)
    return FileProvider.open(directory)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, certified: FileProvider) -> SmallRecording:
    """A recording signed by that provider."""
    return make_recording(tmp_path_factory.mktemp("certified-recording") / "r", certified)
