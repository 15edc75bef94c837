from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.store.page_cache import _CHUNK_BYTES, _is_cached, read_ahead

NUM_CHUNKS = 4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that is on the disk only."""
    file = tmp_path / "file"
    file.write_bytes(b"x" * (NUM_CHUNKS * _CHUNK_BYTES - 5))
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return file


def cached(path: Path) -> list[bool]:
    """Whether the middle of each chunk is in the page cache."""
    with path.open("rb") as file:
        try:
            positions = range(_CHUNK_BYTES // 2, NUM_CHUNKS * _CHUNK_BYTES, _CHUNK_BYTES)
            return [_is_cached(file.fileno(), position) for position in positions]
        except (OSError, AttributeError):
            pytest.skip("this system does not tell what it has cached")


def test_a_file_is_read_once(path: Path) -> None:
    if all(cached(path)):
        pytest.skip("this system keeps what it is told to forget")
    for _ in range(2):
        fractions: list[float] = []
        read_ahead(path, fractions.append)
        assert cached(path) == [True] * NUM_CHUNKS
        assert len(fractions) == NUM_CHUNKS
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0


def test_reading_can_be_ended(path: Path) -> None:
    cached(path)
    fractions: list[float] = []

    def end(fraction: float) -> None:
        fractions.append(fraction)
        if fraction > 0.3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        read_ahead(path, end)
    assert len(fractions) == 2


def test_empty_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    read_ahead(tmp_path / "empty", print)
    with pytest.raises(FileNotFoundError):
        read_ahead(tmp_path / "missing", print)
