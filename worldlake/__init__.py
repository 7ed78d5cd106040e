"""Label video lakes: unlabeled video in, verified (obs, action, next_obs) triples in Delta tables out.

from worldlake import ingest, label, query

ingest("/data/lake", "/data/videos")
print(label("/data/lake").text())
print(query("/data/lake", "SELECT action, count(*) AS pairs FROM current GROUP BY ALL").to_pandas())
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labeling.samplers.motion import MotionSampler
    from labeling.samplers.uniform import UniformSampler
    from labeling.settings import RunSettings, SamplingSettings
    from lake.storage import StorageConfig
    from lake.tables import Lake
    from models.settings import ModelSettings
    from training.settings import DynamicsTraining, Source, WorldTraining
    from worldlake.api import evaluate, ingest, label, query, train

# Imported at first use: torch and Ray take seconds.
_HOMES = {
    "DynamicsTraining": "training.settings",
    "Lake": "lake.tables",
    "ModelSettings": "models.settings",
    "MotionSampler": "labeling.samplers.motion",
    "RunSettings": "labeling.settings",
    "SamplingSettings": "labeling.settings",
    "Source": "training.settings",
    "StorageConfig": "lake.storage",
    "UniformSampler": "labeling.samplers.uniform",
    "WorldTraining": "training.settings",
    "evaluate": "worldlake.api",
    "ingest": "worldlake.api",
    "label": "worldlake.api",
    "query": "worldlake.api",
    "train": "worldlake.api",
}

__all__ = [
    "DynamicsTraining",
    "Lake",
    "ModelSettings",
    "MotionSampler",
    "RunSettings",
    "SamplingSettings",
    "Source",
    "StorageConfig",
    "UniformSampler",
    "WorldTraining",
    "evaluate",
    "ingest",
    "label",
    "query",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
