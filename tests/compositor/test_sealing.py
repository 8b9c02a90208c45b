"""A finished file is whole and read back, or not there."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from compositor.sealing import Write, seal_file
from recorder.sealed import DataKey, SealedReader

KEY = DataKey("sealing", b"fedcba9876543210")


def seal(directory: Path, spoil: bool = False) -> object:
    def content(write: Write) -> None:
        write(b"picture" * 100_000)
        if spoil:  # as a failing disk would: after writing, before anybody reads
            (path,) = directory.iterdir()
            with path.open("r+b") as file:
                file.seek(300_000)
                file.write(b"?")

    return seal_file(
        directory / "composite.mp4.{file_id}.sealed", KEY, content, kind="archive", media_type="video/mp4"
    )


def test_what_is_sealed_reads_back(tmp_path: Path) -> None:
    seal(tmp_path)
    (path,) = tmp_path.iterdir()
    with SealedReader(path, KEY) as reader:
        assert reader.read(0, reader.size) == b"picture" * 100_000


def test_what_does_not_read_back_is_an_error_and_gone(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="does not read back") as caught:
        seal(tmp_path, spoil=True)
    assert caught.value.errno == errno.EIO
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_when_writing_fails(tmp_path: Path) -> None:
    def content(write: Write) -> None:
        write(b"x" * 1000)
        raise OSError(errno.ENOSPC, "no room")

    with pytest.raises(OSError, match="no room"):
        seal_file(tmp_path / "x.sealed", KEY, content, kind="archive", media_type="video/mp4")
    assert list(tmp_path.iterdir()) == []
