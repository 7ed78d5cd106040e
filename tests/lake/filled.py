"""A lake with videos, decided pairs and runs in it, written as a labeling run writes them."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lake.commits import Committer
from lake.ids import triple_id, video_id
from lake.runs import Run
from lake.tables import Lake, now, to_table
from lake.writer import Writer

LABELERS = ("aaaaaaaa00000001", "bbbbbbbb00000002")
DATASETS = ("one", "two")


@dataclass(frozen=True)
class Filled:
    """The lake and what is in it; `images` holds (obs, next_obs) by triple id."""

    lake: Lake
    videos: list[str]
    images: dict[str, tuple[bytes, bytes]]


def jpeg(seed: int, side: int = 64) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "jpeg", quality=95)
    return out.getvalue()


def fill(lake: Lake, videos: int = 4, pairs: int = 5, side: int = 64) -> Filled:
    """Every labeler accepts `pairs` pairs of every video and rejects as many; videos alternate between data sets."""
    lake.create()
    uris = [f"/videos/it's {number}\n.mp4" for number in range(videos)]
    ids = [video_id(uri, "etag") for uri in uris]
    datasets = [DATASETS[number % 2] for number in range(videos)]
    rows = zip(ids, uris, datasets, strict=True)
    Writer(lake).append(
        "videos",
        [
            {"video_id": id_, "uri": uri, "dataset": name, "split": "train", "added_at": now()}
            for id_, uri, name in rows
        ],
    )
    images: dict[str, tuple[bytes, bytes]] = {}
    for labeler in LABELERS:
        with Run(lake, f"label-{labeler[:8]}", "label", {}, labeler_id=labeler):
            committer = Committer(lake, labeler, f"label-{labeler[:8]}")
            committer.fence()
            for number, id_ in enumerate(ids):
                decisions = []
                for pts in range(2 * pairs):
                    key = triple_id(id_, pts, pts + 1, labeler)
                    decisions.append(
                        {
                            "triple_id": key,
                            "run_id": committer.run_id,
                            "labeler_id": labeler,
                            "video_id": id_,
                            "uri": uris[number],
                            "dataset": datasets[number],
                            "obs_pts": pts,
                            "next_pts": pts + 1,
                            "action": f"action {pts} of Zoë",
                            "confidence": -pts / 10,
                            "labeled_at": now(),
                        }
                    )
                for row in decisions[:pairs]:
                    images[row["triple_id"]] = (jpeg(2 * len(images), side), jpeg(2 * len(images) + 1, side))
                    row["obs"], row["next_obs"] = images[row["triple_id"]]
                progress = {"video_id": id_, "labeler_id": labeler, "sampled": 2 * pairs, "accepted": pairs,
                            "rejected": pairs, "failed": 0, "decided_before": 0, "finished_at": now()}  # fmt: skip
                tables = {"triples": decisions[:pairs], "rejections": decisions[pairs:], "progress": [progress]}
                committer.commit(
                    lake.write_file(to_table(name, content), name, committer.run_id) for name, content in tables.items()
                )
    return Filled(lake, ids, images)
