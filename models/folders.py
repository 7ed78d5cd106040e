"""Model folders: finding one by name, checking that it is safe to load, hashing it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lake.errors import ModelRefused, one_line
from models.s3_cache import fetch

BUILTIN = Path(__file__).parent / "builtin" / "weights"

WANTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
"""Weights, configurations, chat templates and tokenizers: what is loaded, and so what is hashed."""

TRAINED_AS = "worldlake.json"
"""How a model that worldlake trained saw its inputs: next to its weights or adapter, so that later uses match."""

REMEMBERED_BYTES = 32 << 20
"""Smaller files are hashed in a moment."""
SETTLED_NS = 2_000_000_000
"""A file that changed a moment ago may change again without a new time: file systems round it, to 2 s at the worst."""


def find_folder(name: str, revision: str | None, *, prefix: str = "hf:") -> tuple[Path, str | None]:
    """The folder of `builtin`, `hf:<folder>`, `hf:<owner>/<repository>` or `s3://<folder>`, and its commit or content.

    A repository is downloaded at `revision` (None: its main branch) where this machine does not have it; a folder of a
    store likewise, and there `revision` is the content that this returned before.
    Raises ModelRefused where there is none; its remedy names folders and repositories with the `prefix`.
    """
    if name == "builtin":
        if revision is not None:
            raise ModelRefused(f"the builtin model has no revision {revision!r}; leave the revision out")
        return BUILTIN, None
    if name.startswith("s3://"):
        return fetch(name, WANTED, revision)
    if not name.startswith("hf:") or name == "hf:":
        raise ModelRefused(
            f"unknown model {name!r}; use builtin, hf:<folder>, hf:<owner>/<repository> or s3://<folder>"
        )
    target = name.removeprefix("hf:")
    folder = Path(target).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ModelRefused(f"{folder} is a local folder and has no revision {revision!r}; leave the revision out")
        return folder.resolve(), None
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", target):
        raise ModelRefused(
            f"no folder {target!r}; name an existing folder or a repository as {prefix}<owner>/<repository>"
        )
    snapshot = _download(target, revision, prefix)
    # The hub's cache names a snapshot's folder by its commit.
    return snapshot, snapshot.name


def find_adapter(name: str) -> tuple[Path, str]:
    """The folder of an adapter, and its name with the commit that a branch stood for, or a store's content.

    It is named as a model is, with or without `hf:`, or as `<owner>/<repository>@<revision>`. Raises ModelRefused where
    there is none.
    """
    if name.startswith("s3://"):
        uri, _, content = name.partition("@")
        folder, content = fetch(uri, WANTED, content or None)
        return folder, f"{uri}@{content}"
    name = name.removeprefix("hf:")
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser(), name
    repository, _, revision = name.partition("@")
    folder, commit = find_folder(f"hf:{repository}", revision or None, prefix="")
    return folder, f"{repository}@{commit}"


def _download(repository: str, revision: str | None, prefix: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        # Subfolders hold other formats of the same weights.
        snapshot = snapshot_download(
            repository, revision=revision, allow_patterns=list(WANTED), ignore_patterns=["*/*"]
        )
    except GatedRepoError:
        message = f"{repository} is gated; accept its terms on huggingface.co, then run: hf auth login"
        raise ModelRefused(message) from None
    except RevisionNotFoundError:
        raise ModelRefused(f"{repository} has no revision {revision!r}; name one of its commits") from None
    except (RepositoryNotFoundError, HFValidationError):
        message = f"no repository {repository} on Hugging Face; check the name, or run: hf auth login"
        raise ModelRefused(message) from None
    except Exception as error:
        raise ModelRefused(
            f"{repository} is not on this machine and cannot be downloaded ({_why_not(error)}): run `hf download "
            f"{repository} --local-dir FOLDER` where there is a network, copy FOLDER here, and use {prefix}FOLDER"
        ) from None
    return Path(snapshot)


def _why_not(error: Exception) -> str:
    """Why a download failed: the hub's client reports every failed look-up as a missing file, with its cause."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
    if isinstance(cause, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, LocalEntryNotFoundError) and not isinstance(cause, HfHubHTTPError):
        return "no network?"
    # Proxies, other answers of the hub, a full disk: each has a class of its own.
    return f"{type(cause).__name__}: {one_line(cause, 200)}"


def check_weights(folder: Path, pattern: str = "*.safetensors") -> None:
    """Raise ModelRefused unless the folder has its weights, all of them, as safetensors."""
    present = {path.name for path in folder.glob(pattern)}
    if not present:
        pickled = sorted(path.name for path in folder.glob("*") if path.suffix in {".bin", ".pt", ".pth"})
        found = f"only {pickled[0]}, which can run code when it is read" if pickled else "no weights"
        raise ModelRefused(f"{folder} has {found}; save the model with save_pretrained (safetensors)")
    for index in folder.glob("*.safetensors.index.json"):
        missing = set(read_json(index).get("weight_map", {}).values()) - present
        if missing:
            raise ModelRefused(f"{folder} lacks {sorted(missing)[0]}, which its index names; download it again")


def count_weights(folder: Path) -> int:
    """How many numbers its weights are, by the headers of the files. Raises ModelRefused where one is broken."""
    total = 0
    # Some folders hold the same weights twice, in shards and in one file.
    index = read_json(folder / "model.safetensors.index.json").get("weight_map", {})
    for path in {folder / name for name in index.values()} or folder.glob("*.safetensors"):
        try:
            with safe_open(path, "np") as weights:
                total += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelRefused(f"{path} is broken ({error}); download the model again") from None
    return total


def hash_files(folder: Path) -> dict[str, str]:
    """sha256 in hex, by file name, of everything in the folder that decides what the model says.

    Those of large files are remembered for the next time, in `$XDG_CACHE_HOME/worldlake/sha256`.
    """
    names = sorted({path.name for pattern in WANTED for path in folder.glob(pattern)})
    return {name: _sha256(folder / name) for name in names}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        note = _note(path, found) if found.st_size >= REMEMBERED_BYTES else None
        if note and (known := _read_note(note)):
            return known
        is_settled = time.time_ns() - found.st_ctime_ns > SETTLED_NS
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if note and is_settled and os.fstat(file.fileno()).st_ctime_ns == found.st_ctime_ns:
            # A cache that cannot be written costs the time of hashing, no more.
            with suppress(OSError):
                note.parent.mkdir(parents=True, exist_ok=True)
                unfinished = note.with_suffix(f".{os.getpid()}")
                unfinished.write_text(digest)
                unfinished.replace(note)
        return digest


def _note(path: Path, found: os.stat_result) -> Path | None:
    """Where the digest of a file in this state is kept; None where this user has no place for it."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    # Unlike the time of modification, that of change is not set by what copies or unpacks files.
    state = (os.path.realpath(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
    name = hashlib.sha256(repr(state).encode()).hexdigest()
    return Path(cache, "worldlake", "sha256", name) if os.path.isabs(cache) else None


def _read_note(note: Path) -> str | None:
    try:
        known = note.read_text()
    except (OSError, UnicodeDecodeError):
        return None
    return known if re.fullmatch("[0-9a-f]{64}", known) else None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty where there is no such file. Raises ModelRefused where it is none."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ModelRefused(f"{path} is not valid JSON; download the model again") from None
    if not isinstance(content, dict):
        raise ModelRefused(f"{path} holds no JSON object; download the model again")
    return content


def trained_as(adapter: Path | None, folder: Path) -> dict[str, Any]:
    """Settings that the adapter, or else the model, was trained with; empty where worldlake did not train it.

    Raises ModelRefused where the file is not as worldlake writes it.
    """
    for place in filter(None, (adapter, folder)):
        if not (path := place / TRAINED_AS).exists():
            continue
        found = read_json(path)
        size, prompt, layout = (found.get(name) for name in ("image_size", "prompt", "pair_layout"))
        if (
            type(size) is not int
            or not 8 <= size <= 4096
            or not (prompt is None or (isinstance(prompt, str) and prompt))
            or not (layout is None or isinstance(layout, str))
        ):
            raise ModelRefused(f"{path} is not as training wrote it: bring it back, or remove it to use other settings")
        return found
    return {}


def image_processor_config(folder: Path) -> dict[str, Any]:
    """The settings of the model's image processor, from whichever file this model's version of transformers wrote."""
    config = read_json(folder / "preprocessor_config.json")
    nested = read_json(folder / "processor_config.json").get("image_processor")
    return config or (nested if isinstance(nested, dict) else {})
