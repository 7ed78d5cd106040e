"""Micro-batches off the training process: a separate process finds the rows, decodes them and prefetches.

It needs no torch, so nothing in here imports any.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from models.protocols import Images
from training.order import Indices

Arrays = dict[str, Any]
"""Decoded rows: arrays or lists of texts by name, each with one entry per row."""

AHEAD = 8
"""Micro-batches that are asked for before they are needed: some seconds of a GPU's work."""


@dataclass(frozen=True)
class Rows:
    """The chosen triples in Ray's object store: `blocks` of one table with a column triple_id, in any order, in which
    a triple may come twice; `actions` is a string array, in the order of the sorted ids."""

    blocks: list[ray.ObjectRef]
    actions: ray.ObjectRef
    decode: Callable[[pa.Table], Arrays]


class Feeder:
    """Holds the rows of a training in shared memory, and decodes the requested ones."""

    def __init__(self, rows: Rows) -> None:
        cv2.setNumThreads(1)
        self._blocks: list[pa.Table] = ray.get(rows.blocks)
        self._starts = np.cumsum([0, *map(len, self._blocks)])
        self._actions: pa.Array = ray.get(rows.actions)
        self._row_of = _first_rows(
            pa.concat_tables([block.select(["triple_id"]) for block in self._blocks])["triple_id"]
        )
        if len(self._row_of) != len(self._actions):
            raise ValueError(f"{len(self._row_of)} triples were read where {len(self._actions)} were chosen")
        self._decode = rows.decode

    def batch(self, indices: Indices) -> Arrays:
        """The decoded rows, in the order of `indices`, and their `action` texts."""
        actions = self._actions.take(pa.array(indices)).to_pylist()
        return self._decode(self._rows(self._row_of[indices])) | {"action": actions}

    def _rows(self, places: Indices) -> pa.Table:
        # Not `take` of all blocks as one table: it copies whole columns together, of which none may have 2 GiB.
        of_block = np.searchsorted(self._starts, places, side="right") - 1
        offsets = places - self._starts[of_block]
        pairs = zip(of_block.tolist(), offsets.tolist(), strict=True)
        return pa.concat_tables([self._blocks[block].slice(offset, 1) for block, offset in pairs])


def feed(rows: Rows, wanted: Iterable[Indices]) -> Iterator[Arrays]:
    """Micro-batches in the order in which they are wanted, made by a process beside this one.

    A process that dies is replaced, and what it had in hand is made again: the same, as nothing is drawn here.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    # No CPU of its own: one decodes some hundred pairs a second, and the workers may have taken all CPUs.
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    feeder = ray.remote(Feeder).options(**options).remote(rows)
    coming: deque[ray.ObjectRef] = deque()
    for indices in wanted:
        coming.append(feeder.batch.remote(indices))
        if len(coming) > AHEAD:
            yield ray.get(coming.popleft())
    while coming:
        yield ray.get(coming.popleft())


def decode_tokens(rows: pa.Table) -> Arrays:
    """Codes, int32, and squared feature distances, float32, each of shape (rows, codes of an image)."""
    return {
        "obs": _codes(rows["obs_codes"]),
        "next_obs": _codes(rows["next_codes"]),
        "distances": np.stack([row.values.to_numpy() for row in rows["distances"]]),
    }


@dataclass(frozen=True)
class DecodePairs:
    """Both images of a triple, uint8 RGB, shape (rows, size, size, 3)."""

    size: int

    def __call__(self, rows: pa.Table) -> Arrays:
        """The images of rows, in order."""
        return {name: decode_images(rows[name], self.size) for name in ("obs", "next_obs")}


def decode_images(encoded: pa.ChunkedArray, size: int) -> Images:
    """Decode images to uint8 RGB, shape (rows, size, size, 3). Raises ValueError for bytes that are not an image."""
    return np.stack([_image(data.as_buffer(), size) for data in encoded])


def _image(data: pa.Buffer, size: int) -> npt.NDArray[np.uint8]:
    image: npt.NDArray[np.uint8] | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise ValueError("an image of a triple cannot be decoded")
    if image.shape[:2] != (size, size):
        shrinks = image.shape[0] > size
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return image


def _first_rows(ids: pa.ChunkedArray) -> Indices:
    """The row of each triple, in the order of the sorted ids; of one that comes twice, the first."""
    order: Indices = pc.sort_indices(ids).to_numpy().astype(np.int64)
    sorted_ids = ids.take(pa.array(order)).combine_chunks()
    if not len(order):
        return order
    is_new = np.r_[True, pc.not_equal(sorted_ids[1:], sorted_ids[:-1]).to_numpy(zero_copy_only=False)]
    return order[is_new]


def _codes(column: pa.ChunkedArray) -> Any:
    return np.stack([np.frombuffer(row.as_buffer(), "<i4") for row in column])
