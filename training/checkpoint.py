"""Checkpoints in the lake's storage: what a training needs to resume, in one form for any number of workers.

    <run>/checkpoint-0001-00000500/weights.safetensors     the weights that are trained, whole, by name
                                   optimizer.safetensors   AdamW's moments: <name>/exp_avg and <name>/exp_avg_sq
                                   state.json              the step, size and SHA-256 of the other two; written last

The first number counts the processes that have worked on the run: one that was taken for dead and is not writes into
folders of its own, which its successor passes over. A folder without a state that fits is a checkpoint that was
interrupted, and is passed over, too. The schedule, the order of
the data and what dropout draws are functions of the step, so there is nothing else to keep.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs as pafs
import torch
from safetensors.torch import load_file, save_file

from lake.commits import Claim
from lake.errors import Refused, one_line
from lake.s3 import patiently
from lake.storage import StorageConfig, join

KEPT = 2
"""Complete checkpoints that are kept: the newest, and the one before in case that one cannot be read."""

_STATE, _WEIGHTS, _OPTIMIZER = "state.json", "weights.safetensors", "optimizer.safetensors"

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Found:
    """A complete checkpoint, and the SHA-256 of its files."""

    step: int
    name: str
    sha256: dict[str, str]


class Checkpoints:
    """The checkpoints of one run, under `uri`, as the process of a `claim` writes them."""

    def __init__(self, storage: StorageConfig, uri: str, claim: Claim) -> None:
        self._storage, self._uri, self._claim = storage, uri, claim

    def newest(self) -> Found | None:
        """The newest complete checkpoint."""
        complete = patiently(self._complete)
        return complete[-1] if complete else None

    def save(self, step: int, weights: Tensors, moments: Tensors) -> None:
        """Write a checkpoint, then delete those that it makes superfluous. Waits while the store is away.

        Raises:
            Refused: the disk is full or cannot be written; the checkpoints before are as they were.
            Superseded: another process works on the run now.
            OSError: the store stays away.
        """
        self._claim.check()
        name = f"checkpoint-{self._claim.epoch:04d}-{step:08d}"
        with tempfile.TemporaryDirectory() as folder:
            try:
                self._remove(name)
                save_file(weights, Path(folder) / _WEIGHTS)
                save_file(moments, Path(folder) / _OPTIMIZER)
                self._upload(Path(folder), name, step)
            except Exception as error:
                self._remove(name)
                raise _refusal(error, step, self._uri) or error from None
        complete = patiently(self._complete)
        kept = {found.name for found in complete[-KEPT:]}
        for info in self._folders():
            if info.base_name not in kept and info.base_name <= name:
                self._remove(info.base_name)

    def load(self, found: Found) -> tuple[Tensors, Tensors]:
        """Weights and moments by name, on the CPU.

        Raises:
            Refused: the files are not the ones that were written.
        """
        with tempfile.TemporaryDirectory() as folder:
            self._storage.get_folder(join(self._uri, found.name), Path(folder))
            if _hashes(Path(folder)) != found.sha256:
                raise Refused(
                    f"{join(self._uri, found.name)} is damaged (its SHA-256 differs): delete that folder, then run the "
                    "same command again; it resumes from the checkpoint before"
                )
            return load_file(Path(folder) / _WEIGHTS), load_file(Path(folder) / _OPTIMIZER)

    def _complete(self) -> list[Found]:
        """Complete checkpoints, oldest first."""
        found = [self._read_state(info.base_name) for info in self._folders()]
        return sorted((one for one in found if one), key=lambda one: one.name)

    def _folders(self) -> list[pafs.FileInfo]:
        filesystem, path = self._storage.filesystem(self._uri)
        infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        return [info for info in infos if info.base_name.startswith("checkpoint-")]

    def _read_state(self, name: str) -> Found | None:
        filesystem, path = self._storage.filesystem(join(self._uri, name))
        try:
            with filesystem.open_input_stream(f"{path}/{_STATE}") as file:
                state = json.loads(file.read())
        except (FileNotFoundError, ValueError):
            return None
        if "sha256" not in state:
            return None
        infos = filesystem.get_file_info([f"{path}/{file}" for file in state["bytes"]])
        sizes = [info.size for info in infos]
        return Found(state["step"], name, state["sha256"]) if sizes == list(state["bytes"].values()) else None

    def _upload(self, folder: Path, name: str, step: int) -> None:
        self._storage.put_folder(folder, join(self._uri, name))
        sizes = {file: (folder / file).stat().st_size for file in (_WEIGHTS, _OPTIMIZER)}
        state = {"step": step, "bytes": sizes, "sha256": _hashes(folder)}
        self._storage.put(join(self._uri, name, _STATE), json.dumps(state).encode())

    def _remove(self, name: str) -> None:
        """Delete a checkpoint as far as it can be: what is left over is tried again at the next one."""
        filesystem, path = self._storage.filesystem(join(self._uri, name))
        # First what makes it one, so that no half of it ever counts.
        with suppress(OSError):
            filesystem.delete_file(f"{path}/{_STATE}")
        with suppress(OSError):
            filesystem.delete_dir(path)


def _hashes(folder: Path) -> dict[str, str]:
    hashes = {}
    for name in (_WEIGHTS, _OPTIMIZER):
        with (folder / name).open("rb") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _refusal(error: Exception, step: int, uri: str) -> Refused | None:
    """The one line for a checkpoint that this machine has no room for."""
    # An error without a number is not about this machine's disks; safetensors writes the number into its text.
    if getattr(error, "errno", None) is None and "os error" not in str(error):
        return None
    return Refused(
        f"the checkpoint of step {step} cannot be written to {uri} ({one_line(error, 200)}): free space there, then "
        "run the same command again; it resumes from the checkpoint before"
    )
