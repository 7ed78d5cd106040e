"""Digests of weights: right whatever is remembered, and not computed again for a file that did not change."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from models import folders
from models.folders import hash_files


@pytest.fixture
def hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were read to be hashed; every file is large, and settled once it is written."""
    names: list[str] = []
    real = hashlib.file_digest

    def counted(file: Any, name: str) -> Any:
        names.append(Path(file.name).name)
        return real(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    monkeypatch.setattr(folders, "REMEMBERED_BYTES", 1)
    monkeypatch.setattr(folders, "SETTLED_NS", -1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return names


def weights(folder: Path, content: bytes = b"weights") -> tuple[Path, dict[str, str]]:
    """A file of weights, and what its folder hashes to."""
    folder.mkdir(exist_ok=True)
    path = folder / "model.safetensors"
    path.write_bytes(content)
    return path, {path.name: hashlib.sha256(content).hexdigest()}


def test_a_file_that_did_not_change_is_hashed_once(tmp_path: Path, hashed: list[str]) -> None:
    path, digests = weights(tmp_path / "model")
    assert [hash_files(path.parent) for _ in range(3)] == [digests] * 3
    assert hashed == [path.name]
    # The hub's cache: every snapshot links to the same file.
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / path.name).symlink_to(path)
    assert hash_files(snapshot) == digests
    assert hashed == [path.name]


def test_a_change_is_noticed_also_where_size_and_time_are_the_same(tmp_path: Path, hashed: list[str]) -> None:
    path, digests = weights(tmp_path / "model")
    before = path.stat()
    assert hash_files(path.parent) == digests
    _, changed = weights(path.parent, b"WEIGHTS")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert hash_files(path.parent) == changed != digests


@pytest.mark.parametrize("note", [b"", b"no digest", b"\xff"])
def test_a_damaged_cache_is_not_believed(tmp_path: Path, hashed: list[str], note: bytes) -> None:
    path, digests = weights(tmp_path / "model")
    assert hash_files(path.parent) == digests
    (kept,) = (tmp_path / "cache" / "worldlake" / "sha256").iterdir()
    kept.write_bytes(note)
    assert hash_files(path.parent) == digests
    assert len(hashed) == 2


def test_without_a_cache_every_time_is_the_first(
    tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/no/folder/can/be/made/here")
    path, digests = weights(tmp_path / "model")
    assert [hash_files(path.parent) for _ in range(2)] == [digests] * 2
    assert len(hashed) == 2


def test_what_was_just_written_or_is_small_is_not_remembered(
    tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, digests = weights(tmp_path / "model")
    monkeypatch.setattr(folders, "SETTLED_NS", 60_000_000_000)
    assert [hash_files(path.parent) for _ in range(2)] == [digests] * 2
    monkeypatch.setattr(folders, "SETTLED_NS", -1)
    monkeypatch.setattr(folders, "REMEMBERED_BYTES", 1000)
    assert [hash_files(path.parent) for _ in range(2)] == [digests] * 2
    assert len(hashed) == 4
