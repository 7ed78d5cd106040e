"""Everything that is counted, in one Ray whose metrics a Prometheus reads: `python -m tests.k8s.watched FOLDER PORT`.

A labeling run, a training, a service, and a store and a table that fail. The test starts this as a process of its own.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import ray
from botocore.exceptions import ConnectionError as NoAnswer
from ray import serve
from ray.serve.config import HTTPOptions

from labeling.labeler import LabelerSettings, resolve_labeler
from labeling.policy import load_policy
from labeling.run import label
from labeling.settings import RunSettings
from lake import s3
from lake.catalog import ingest
from lake.commits import Committer
from lake.storage import StorageConfig
from lake.tables import Lake, now, to_table
from sample_world.clips import write_folder
from tests.k8s.conftest import free_ports
from tests.training.tiny import add_triples
from training.run import train
from training.settings import DynamicsTraining
from worldlake import console

EXPORTED_S = 3.0
"""Ray's processes tell their agent every second here."""


def main(folder: Path, port: int) -> None:
    console.setup()
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200_000_000,
        _metrics_export_port=port,
        _temp_dir=os.environ["WATCHED_TEMP"],
    )
    _label(folder)
    _commit_again(Lake(str(folder / "lake")))
    _lose_the_store()
    _train(Lake(str(folder / "taught")))
    _serve()
    time.sleep(EXPORTED_S)
    ray.shutdown()


def _label(folder: Path) -> None:
    lake = Lake(str(folder / "lake"))
    clips = write_folder(folder / "videos", [3, 4], frames=60)
    assert ingest(lake, [str(folder / "videos")]).new == len(clips)
    # One that is gone by then: it fails.
    clips[1].unlink()
    done = label(
        lake,
        resolve_labeler(LabelerSettings(), "cpu"),
        load_policy("builtin"),
        RunSettings(decode_workers=1, label_workers=1),
        stop=threading.Event(),
        warn=console.log.warning,
    )
    assert done.status == "finished"


def _commit_again(lake: Lake) -> None:
    """A commit that goes through when it is tried again."""
    log = Path(lake.uri, "failures", "_delta_log")

    def mend(message: str) -> None:
        broken.unlink()
        console.log.warning(message, extra={"run_id": "watched"})

    committer = Committer(lake, "watched", "watched", mend)
    committer.fence()
    broken = log / f"{len(list(log.glob('*.json'))):020d}.json"
    row = {"video_id": "v", "uri": "/v", "scope": "video", "stage": "read", "labeler_id": "watched", "failed_at": now()}
    file = lake.write_file(to_table("failures", [row]), "failures", "watched")
    broken.write_text("no JSON")
    committer.commit([file])


def _lose_the_store() -> None:
    """A store where nobody listens, asked for as long as is usual, only shorter."""
    s3.PATIENCE_S = 6.0
    [nobody] = free_ports(1)
    os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_EC2_METADATA_DISABLED": "true"}
    try:
        StorageConfig(endpoint_url=f"http://127.0.0.1:{nobody}").get("s3://lake/object")
    except NoAnswer:
        return
    raise AssertionError("somebody listens")


def _train(lake: Lake) -> None:
    add_triples(lake, 4, size=64)
    values: dict[str, Any] = {"model": "builtin", "steps": 2, "batch_size": 2, "micro_batch_size": 2, "log_every": 1}
    done = train(lake, DynamicsTraining.model_validate(values), stop=threading.Event(), warn=console.log.warning)
    assert done.status == "finished"


def _serve() -> None:
    # What the dashboards show of the service beside its models is Ray Serve's, whatever it serves.
    async def answer(self: object, request: object) -> str:
        return "there"

    service: Any = serve.deployment(type("Service", (), {"__call__": answer})).options(
        ray_actor_options={"num_cpus": 0}
    )
    [port] = free_ports(1)
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
    serve.run(service.bind(), name="worldlake", route_prefix="/")
    assert urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30).read() == b"there"


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
