"""Label video lakes: unlabeled video in, verified (obs, action, next_obs) triples in Delta tables out.

from worldlake import ingest, label, query

ingest("/data/lake", "/data/videos")
print(label("/data/lake").text())
print(query("/data/lake", "SELECT action, count(*) AS pairs FROM current GROUP BY ALL").to_pandas())
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labeling.samplers.motion import MotionSampler
    from labeling.samplers.uniform import UniformSampler
    from labeling.settings import RunSettings, SamplingSettings
    from lake.errors import Refused, WorldlakeError
    from lake.storage import StorageConfig
    from lake.tables import Lake
    from models.loading import load_dynamics
    from models.settings import ModelSettings, TokenSampling, WorldSettings
    from models.verification import predict
    from models.world_loading import load_world
    from serve.client import Client, ServiceError
    from training.settings import DynamicsTraining, Source, WorldTraining
    from worldlake.api import evaluate, ingest, label, query, train

# Imported at first use: torch and Ray take seconds.
_HOMES = {
    "Client": "serve.client",
    "DynamicsTraining": "training.settings",
    "Lake": "lake.tables",
    "ModelSettings": "models.settings",
    "MotionSampler": "labeling.samplers.motion",
    "Refused": "lake.errors",
    "RunSettings": "labeling.settings",
    "SamplingSettings": "labeling.settings",
    "ServiceError": "serve.client",
    "Source": "training.settings",
    "StorageConfig": "lake.storage",
    "TokenSampling": "models.settings",
    "UniformSampler": "labeling.samplers.uniform",
    "WorldSettings": "models.settings",
    "WorldTraining": "training.settings",
    "WorldlakeError": "lake.errors",
    "evaluate": "worldlake.api",
    "ingest": "worldlake.api",
    "label": "worldlake.api",
    "load_dynamics": "models.loading",
    "load_world": "models.world_loading",
    "predict": "models.verification",
    "query": "worldlake.api",
    "train": "worldlake.api",
}

__all__ = [
    "Client",
    "DynamicsTraining",
    "Lake",
    "ModelSettings",
    "MotionSampler",
    "Refused",
    "RunSettings",
    "SamplingSettings",
    "ServiceError",
    "Source",
    "StorageConfig",
    "TokenSampling",
    "UniformSampler",
    "WorldSettings",
    "WorldTraining",
    "WorldlakeError",
    "evaluate",
    "ingest",
    "label",
    "load_dynamics",
    "load_world",
    "predict",
    "query",
    "train",
]


def _refuse_namesakes() -> None:
    """Raise ImportError where something of the user's has the name of a package of ours, and is found first."""
    home = Path(__file__).absolute().parents[1]
    for name in ("cluster", "evaluation", "labeling", "lake", "models", "sample_world", "serve", "training"):
        found = find_spec(name)
        if found and found.origin and Path(found.origin).absolute() != home / name / "__init__.py":
            raise ImportError(
                f"{found.origin} hides the package {name} of worldlake: rename it, or start Python with -P, which does "
                "not look beside the script first"
            )


_refuse_namesakes()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from worldlake.extras import needed_by

    with needed_by("serve" if _HOMES[name] == "serve.client" else name):
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
