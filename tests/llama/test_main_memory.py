"""Pages of mapped files, given back and found again."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from server.llama.main_memory import can_release_mappings, release_mapping, resident_bytes

SIZE = 64 << 20
pytestmark = pytest.mark.skipif(not can_release_mappings(), reason="the system does not tell its mappings")


def test_pages_of_a_mapped_file_are_given_back_and_come_again(tmp_path: Path) -> None:
    path = tmp_path / "file with spaces"
    content = bytes(range(256)) * (SIZE // 256)
    path.write_bytes(content)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) == 0  # touches all of them
        before = resident_bytes()
        release_mapping(path)
        assert before - resident_bytes() > SIZE * 0.9
        assert mapped[:] == content


def test_other_mappings_stay(tmp_path: Path) -> None:
    mapped_path, other = tmp_path / "mapped", tmp_path / "other"
    for path in (mapped_path, other):
        path.write_bytes(bytes(SIZE))
    with mapped_path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) == 0
        before = resident_bytes()
        release_mapping(other)
        assert abs(before - resident_bytes()) < SIZE * 0.1
