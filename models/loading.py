"""Load dynamics models by name, and identify them without loading them."""

from __future__ import annotations

from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, Literal

from lake.errors import ModelRefused
from models.dynamics import family_of
from models.dynamics.family import DynamicsFamily
from models.folders import check_weights, count_weights, find_adapter, find_folder, hash_files, read_json, trained_as
from models.protocols import DynamicsModel
from models.settings import DEFAULT_PROMPT, Dtype, ModelSettings
from models.weights import check_adapter

# Of NVIDIA's driver, of its Jetson boards, of Windows' subsystem for Linux, and of AMD's driver.
_GPU_FILES = ("/dev/nvidia*", "/dev/nvhost*", "/dev/dxg", "/dev/kfd")


@dataclass(frozen=True)
class ResolvedModel:
    """A model that is there and can be loaded, before any weight is read."""

    folder: Path
    identity: dict[str, str | int]
    """All that decides what the model answers: sha256 of its files, prompt, dtype, layout, sizes."""
    image_size: int
    settings: ModelSettings
    """The settings with nothing left open (commit, prompt, dtype, size, layout): what workers are to load."""

    @property
    def weight_bytes(self) -> int:
        """Of the weights in memory, in the dtype that they are loaded in."""
        return count_weights(self.folder) * {"float32": 4, "bfloat16": 2}[self.settings.dtype]


def resolve(settings: ModelSettings, device: str | None = None) -> ResolvedModel:
    """Find the model, download it where need be, check and hash it. No weights are loaded.

    `device` ("cpu", "cuda", None: a GPU where this machine has one) is where the model will run. It decides the dtype
    "auto"; to name it also saves seconds, as only torch can tell. Raises ModelRefused, with the remedy, where the
    model cannot be used as asked.
    """
    found = _find(settings, device)
    identity: dict[str, str | int] = {
        "prompt": str(found.settings.prompt),
        "max_new_tokens": settings.max_new_tokens,
        "dtype": found.settings.dtype,
        "image_size": found.image_size,
        "pair_layout": found.settings.pair_layout,
    }
    identity |= {f"file:{name}": digest for name, digest in hash_files(found.folder).items()}
    if found.adapter is not None:
        identity |= {f"adapter:{name}": digest for name, digest in hash_files(found.adapter).items()}
    return ResolvedModel(found.folder, identity, found.image_size, found.settings)


def load_dynamics(settings: ModelSettings, device: str | None = None, *, answers_few: bool = False) -> DynamicsModel:
    """Load the model onto `device` ("cpu", "cuda", "cuda:1", None: a GPU where there is one).

    `answers_few`: an accelerator, too, takes less time for fewer pairs than `batch_size`, and its labels depend, within
    rounding, on how many they are. Raises ModelRefused, with the remedy, where the model cannot be used as asked.
    """
    from models.assembly import assemble

    found = _find(settings, device)
    return assemble(found.family, found.settings, found.folder, found.adapter, found.device, answers_few=answers_few)


@dataclass(frozen=True)
class _Found:
    family: DynamicsFamily
    folder: Path
    adapter: Path | None
    image_size: int
    device: str
    settings: ModelSettings


def _find(settings: ModelSettings, device: str | None) -> _Found:
    folder, commit = find_folder(settings.name, settings.revision)
    check_weights(folder)
    config, family = _config(folder)
    pinned: dict[str, Any] = {"revision": commit}
    adapter = None
    if settings.adapter is not None:
        adapter, pinned["adapter"] = find_adapter(settings.adapter)
        check_adapter(adapter, config)
    settings = _as_trained(settings, adapter, folder)
    device = device or best_device()
    try:
        image_size = family.image_size(settings.image_size, config, folder)
        layout = _pair_layout(settings, family, config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelRefused(
            f"the config.json or preprocessor_config.json of {folder} is broken ({error}); download the model again"
        ) from None
    pinned |= {"prompt": settings.prompt or DEFAULT_PROMPT}
    pinned |= {"dtype": chosen_dtype(settings.dtype, device), "image_size": image_size, "pair_layout": layout}
    return _Found(family, folder, adapter, image_size, device, settings.model_copy(update=pinned))


def _as_trained(settings: ModelSettings, adapter: Path | None, folder: Path) -> ModelSettings:
    """Fill open settings with those of the training: with others the model would answer worse, without a warning."""
    is_open = {name for name in ("prompt", "image_size", "pair_layout") if getattr(settings, name) in (None, "auto")}
    trained = {name: value for name, value in trained_as(adapter, folder).items() if name in is_open}
    return ModelSettings(**settings.model_dump() | trained)


def _config(folder: Path) -> tuple[dict[str, Any], DynamicsFamily]:
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise ModelRefused(f"{folder} has no config.json with a model_type; name a folder written by save_pretrained")
    family = family_of(config)
    if family is None:
        own_code = " and needs code of its own, which is never run" if "auto_map" in config else ""
        raise ModelRefused(
            f"{folder.name}: {kind} is not an image-text-to-text model of transformers{own_code}; "
            "use one that takes two images, for example hf:Qwen/Qwen2.5-VL-3B-Instruct"
        )
    return config, family


def best_device() -> str:
    """Return `cuda` where this machine has a GPU, else `cpu`."""
    # torch takes seconds to import, and without one of these files it finds no GPU.
    if not any(glob(pattern) for pattern in _GPU_FILES):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def chosen_dtype(dtype: Literal["auto", "float32", "bfloat16"], device: str) -> Dtype:
    """The dtype itself; for `auto` bfloat16 on a GPU, float32 on a CPU."""
    if dtype != "auto":
        return dtype
    return "float32" if device == "cpu" else "bfloat16"


def _pair_layout(settings: ModelSettings, family: DynamicsFamily, config: dict[str, Any]) -> str:
    if settings.pair_layout == "auto":
        return family.pair_layouts[0]
    if settings.pair_layout not in family.pair_layouts:
        takes = " or ".join(family.pair_layouts)
        raise ModelRefused(
            f"{config['model_type']} does not take pair_layout {settings.pair_layout}; use {takes} or auto"
        )
    return settings.pair_layout
