"""The log of a run: JSON lines for programs, TensorBoard for people, kept beside its checkpoints.

<run>/log/log.jsonl        a line every `log_every` steps; of a step that was done again after a failure, the last
          events.out.*     the same for `tensorboard --logdir`
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pyarrow.fs as pafs
from torch.utils.tensorboard import SummaryWriter

from lake.commits import Claim
from lake.errors import Superseded
from lake.storage import StorageConfig, is_s3, join

FILE = "log.jsonl"

# To an object store a log goes whole, every time.
_UPLOAD_EVERY_S = 60.0


class TrainLog:
    """Writes lines as they come, while the claim holds. Use as a context manager."""

    def __init__(self, storage: StorageConfig, run_uri: str, claim: Claim, warn: Callable[[str], None]) -> None:
        self._claim, self._warn = claim, warn
        self._storage, self._uri = storage, join(run_uri, "log")
        self._temporary = tempfile.TemporaryDirectory() if is_s3(run_uri) else None
        self._folder = Path(self._temporary.name if self._temporary else self._uri)
        self._uploaded = time.monotonic()
        self._last_step = 0

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._temporary:
            filesystem, path = self._storage.filesystem(self._uri)
            if filesystem.get_file_info(f"{path}/{FILE}").type == pafs.FileType.File:
                self._storage.get_folder(self._uri, self._folder)
        self._events = SummaryWriter(str(self._folder))
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._events.close()
            if self._temporary:
                self._upload()
        except OSError as error:
            self._warn(f"the log in {self._uri} is not whole: {error}")
        if self._temporary:
            self._temporary.cleanup()

    def write(self, lines: Iterable[dict[str, Any]]) -> None:
        """Append lines; those of steps that were written before are of another attempt at them.

        What cannot be written is a warning: a training can do without its log.
        """
        try:
            self._write(lines)
        except OSError as error:
            self._warn(f"the log in {self._folder} cannot be written: {error}")

    def _write(self, lines: Iterable[dict[str, Any]]) -> None:
        with (self._folder / FILE).open("a", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line) + "\n")
                if line["step"] <= self._last_step:
                    # TensorBoard forgets what the attempt before said of these steps.
                    self._events.close()
                    self._events = SummaryWriter(str(self._folder), purge_step=line["step"])
                self._last_step = line["step"]
                for name in line.keys() - {"step"}:
                    self._events.add_scalar(f"train/{name}", line[name], line["step"])
        if self._temporary and time.monotonic() - self._uploaded >= _UPLOAD_EVERY_S:
            self._upload()

    def _upload(self) -> None:
        """Write the log to the store, unless it is another process's by now."""
        self._events.flush()
        self._uploaded = time.monotonic()
        with suppress(Superseded):
            self._claim.check()
            self._storage.put_folder(self._folder, self._uri)
