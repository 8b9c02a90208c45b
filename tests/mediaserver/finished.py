"""A finished recording on the disk of a server that is not running yet."""

from __future__ import annotations

import shutil

from mediaserver.secrets import open_secrets
from mediaserver.settings import Settings
from recorder.keys import FileProvider
from recorder.storage import recording_directory
from tests.compositor.real_recording import RealRecording, make_real_recording


def lay_down(settings: Settings) -> RealRecording:
    """Make a recording of the tenant ``one``; the server's index is built from it at its start."""
    open_secrets(settings)
    provider = FileProvider.open(settings.crypto_dir)
    made = make_real_recording(settings.data_dir / "made", provider, tenant="one")
    place = recording_directory(settings.data_dir, "one", made.recording)
    place.parent.mkdir(parents=True)
    shutil.move(made.path, place)
    made.path = place
    return made
