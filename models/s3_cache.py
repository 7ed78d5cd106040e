"""Model folders in an object store: copied to a machine once, for all the processes there."""

from __future__ import annotations

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError
from filelock import FileLock

from lake.errors import ModelRefused, Refused, SourceChanged
from lake.storage import Entry, StorageConfig, join, normalize

# Weights are sharded into files of a few gigabytes, and one connection is slower than the network.
_FILES_AT_ONCE = 8


def fetch(uri: str, patterns: tuple[str, ...], content: str | None = None) -> tuple[Path, str]:
    """Return a folder of this machine with the files under `uri` (s3://bucket/folder) that match, and a content hash.

    Folders below are left out. With `content` it is that content, from this machine where it is here already. It is in
    `$XDG_CACHE_HOME/worldlake/models` (`~/.cache` by default). Credentials, region and endpoint come from the AWS
    environment.

    Raises:
        ModelRefused: there is no such model, it may not be read, or it was replaced.
        Unavailable: the store does not answer.
    """
    if content and (known := _cache() / content).is_dir():
        return known, content
    storage = StorageConfig()
    try:
        uri = normalize(uri)
        storage.check(uri)
        found = _files(storage, uri, patterns)
    except Refused as error:
        raise ModelRefused(f"the model {uri} cannot be read: {error}") from None
    if not found:
        raise ModelRefused(f"there is no model at {uri}: name the folder with config.json and *.safetensors")
    digest = hashlib.sha256(repr((uri, found)).encode()).hexdigest()[:32]
    if content not in (None, digest):
        raise ModelRefused(f"{uri} has been replaced since its content was {content}: begin again with what is there")
    folder = _cache() / digest
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # The first of this machine's processes downloads; one that dies meanwhile leaves no half model.
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _download(storage, found, folder)
    except (BotoCoreError, ClientError) as error:
        raise storage.explained(error, uri) from None
    except SourceChanged:
        raise ModelRefused(f"{uri} was replaced while it was copied: run this again") from None
    except OSError as error:
        raise ModelRefused(
            f"{uri} cannot be kept in {_cache()} ({error}): set XDG_CACHE_HOME to another place"
        ) from None
    return folder, digest


def _files(storage: StorageConfig, uri: str, patterns: tuple[str, ...]) -> list[Entry]:
    entries = (entry for page in storage.pages(uri) for entry in page)
    direct = ((entry, Path(entry.uri.removeprefix(join(uri, "")))) for entry in entries)
    return sorted(entry for entry, path in direct if len(path.parts) == 1 and any(map(path.match, patterns)))


def _download(storage: StorageConfig, found: list[Entry], folder: Path) -> None:
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        list(pool.map(lambda entry: storage.fetch(entry.uri, entry.etag, part / Path(entry.uri).name), found))
    part.rename(folder)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "worldlake", "models")
