from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from server.store.following_hash import FollowingHash


def nothing() -> None:
    """Nobody is waiting."""


@pytest.mark.parametrize("seed", range(8))
def test_a_file_that_grows_is_hashed(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    data = chance.randbytes(12_000_000)
    path = tmp_path / "file"
    end = chance.choice([0, 1, 500_000])
    path.write_bytes(data[:end])
    following = FollowingHash(path, hashlib.sha256())
    following.announce(end)

    with path.open("ab", buffering=0) as file:
        while end < len(data):
            end += file.write(data[end : end + chance.choice([10, 1000, 1_000_000])])
            following.announce(end)

    assert following.finish(nothing) == hashlib.sha256(data).hexdigest()
    assert following.num_hashed == len(data)


def test_a_file_that_becomes_shorter_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    following = FollowingHash(path, hashlib.sha256())
    following.announce(10)

    with pytest.raises(OSError, match="became shorter"):
        following.finish(nothing)


def test_waiting_can_be_ended(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(50_000_000))
    following = FollowingHash(path, hashlib.sha256())
    following.announce(50_000_000)

    def enough() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        following.finish(enough)
    following.abandon()
    following.abandon()


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    following = FollowingHash(tmp_path / "file", hashlib.sha256())

    assert following.finish(nothing) == hashlib.sha256().hexdigest()
