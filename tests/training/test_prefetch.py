"""Feeding a training from Ray's object store."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from training.prefetch import Feeder, Rows

pytestmark = pytest.mark.ray


def as_read(rows: pa.Table) -> dict[str, Any]:
    return {"size": [len(image) for image in rows["obs"].to_pylist()], "id": rows["triple_id"].to_pylist()}


def test_rows_are_found_in_their_blocks_whatever_all_of_them_weigh(ray_cluster: str) -> None:
    # Together three GiB, were they copied together; the chunks share one buffer.
    image = pa.array([b"i" * (64 << 20)], pa.binary())
    ids = [f"{number:02d}" for number in range(48)]
    drawn = np.random.default_rng(0).permutation(48)
    blocks = []
    for part in np.array_split(drawn, 5):
        obs = pa.chunked_array([image] * len(part))
        blocks.append(pa.table({"triple_id": [ids[place] for place in part], "obs": obs}))
    # A triple may come twice, and a block may be empty.
    blocks += [blocks[0].slice(0, 1), blocks[0].slice(0, 0)]
    rows = Rows([ray.put(0)] * len(blocks), ray.put(pa.array([f"action {id_}" for id_ in ids])), as_read)
    kept = ray.get

    def get(asked: Any) -> Any:
        return blocks if isinstance(asked, list) else kept(asked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.prefetch.ray.get", get)
        feeder = Feeder(rows)
    wanted = np.array([47, 3, 3, 20])
    assert feeder.batch(wanted) == {
        "size": [64 << 20] * 4,
        "id": ["47", "03", "03", "20"],
        "action": ["action 47", "action 03", "action 03", "action 20"],
    }
