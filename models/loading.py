"""Models by name: the settings, what identifies a model, and the way to a loaded one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from lake.errors import ModelRefused
from models.folders import (
    check_weights,
    count_weights,
    find_adapter,
    find_folder,
    hash_files,
    image_processor_config,
    read_json,
    trained_as,
)
from models.protocols import DynamicsModel

# torch and transformers take seconds to import, so that only the functions that need them do.

DEFAULT_PROMPT = (
    "The first image was taken shortly before the second. In one short phrase, "
    "name the action that leads from the first image to the second."
)

DEFAULT_IMAGE_SIZE = 448
"""Pixels, for models that take any size: 256 visual tokens for a pair in Qwen2.5-VL."""

QWEN_FAMILY = frozenset({"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"})
"""Model types whose patch embedding spans two frames and whose patch layout is `models.qwen`."""

Dtype = Literal["float32", "bfloat16"]


class ModelSettings(BaseModel):
    """Which dynamics model, and how it is asked. Raises ModelRefused where a value is impossible."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    name: str = Field("builtin", description="builtin, hf:<folder>, hf:<owner>/<repository> or s3://<folder>")
    revision: str | None = Field(None, description="commit, tag or branch of a repository; None: its main branch")
    adapter: str | None = Field(
        None, description="LoRA adapter: a folder, <owner>/<repository>[@<revision>] or s3://<folder>"
    )
    prompt: str | None = Field(None, min_length=1, description="None: as the model was trained, else DEFAULT_PROMPT")
    max_new_tokens: int = Field(32, ge=2, le=1024, description="tokens of an action, the end token included")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on GPU, float32 on CPU")
    image_size: int | None = Field(None, ge=8, le=4096, description="pixels; None: as it was trained")
    batch_size: int = Field(64, ge=1, le=4096)
    pair_layout: Literal["auto", "images", "video"] = Field(
        "auto", description="two images, or one video of two frames; auto: as it was trained, else video where it can"
    )

    @model_validator(mode="wrap")
    @classmethod
    def _refuse(cls, values: Any, handler: ModelWrapValidatorHandler[ModelSettings]) -> ModelSettings:
        try:
            return handler(values)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "model settings"
            raise ModelRefused(f"model setting {field}: {first['msg']} (given: {first['input']!r})") from error


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
    return assemble(found.settings, found.folder, found.adapter, found.device, answers_few=answers_few)


@dataclass(frozen=True)
class _Found:
    folder: Path
    adapter: Path | None
    image_size: int
    device: str
    settings: ModelSettings


def _find(settings: ModelSettings, device: str | None) -> _Found:
    folder, commit = find_folder(settings.name, settings.revision)
    check_weights(folder)
    config = _config(folder)
    pinned: dict[str, Any] = {"revision": commit}
    adapter = None
    if settings.adapter is not None:
        adapter, pinned["adapter"] = find_adapter(settings.adapter)
        check_adapter(adapter, config)
    settings = _as_trained(settings, adapter, folder)
    device = device or best_device()
    try:
        image_size, layout = _image_size(settings, config, folder), _pair_layout(settings, config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelRefused(
            f"the config.json or preprocessor_config.json of {folder} is broken ({error}); download the model again"
        ) from error
    pinned |= {"prompt": settings.prompt or DEFAULT_PROMPT}
    pinned |= {"dtype": chosen_dtype(settings.dtype, device), "image_size": image_size, "pair_layout": layout}
    return _Found(folder, adapter, image_size, device, settings.model_copy(update=pinned))


def _as_trained(settings: ModelSettings, adapter: Path | None, folder: Path) -> ModelSettings:
    """What was left open, as the model was trained: asked in another way it would answer worse, and nobody be told."""
    is_open = {name for name in ("prompt", "image_size", "pair_layout") if getattr(settings, name) in (None, "auto")}
    trained = {name: value for name, value in trained_as(adapter, folder).items() if name in is_open}
    return ModelSettings(**settings.model_dump() | trained)


def _config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if not kind:
        raise ModelRefused(f"{folder} has no config.json with a model_type; name a folder written by save_pretrained")
    if not _takes_images(kind):
        own_code = " and needs code of its own, which is never run" if "auto_map" in config else ""
        raise ModelRefused(
            f"{folder.name}: {kind} is no image-text-to-text model of transformers{own_code}; "
            "use one that takes two images, for example hf:Qwen/Qwen2.5-VL-3B-Instruct"
        )
    return config


def _takes_images(model_type: str) -> bool:
    if model_type in QWEN_FAMILY:
        return True
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def check_adapter(adapter: Path, config: dict[str, Any]) -> None:
    """Raise ModelRefused unless the folder holds a LoRA adapter, as safetensors, for the model of this config."""
    adapter_config = read_json(adapter / "adapter_config.json")
    if not adapter_config:
        raise ModelRefused(f"{adapter} has no adapter_config.json; name a folder written by PEFT's save_pretrained")
    kind = adapter_config.get("peft_type")
    if kind != "LORA":
        # Others read files that are not hashed, or fetch what they name: X-LoRA a repository and a pickle.
        raise ModelRefused(f"adapter {adapter} is of the kind {kind}, and only LORA is loaded; train a LoRA adapter")
    check_weights(adapter, "adapter_model.safetensors")
    mapping = adapter_config.get("auto_mapping") or {}
    trained_on = mapping.get("base_model_class")
    if trained_on is not None and trained_on not in config.get("architectures", [trained_on]):
        raise ModelRefused(
            f"adapter {adapter} was trained on {trained_on}, not on {config['architectures'][0]}; "
            "use it with the model that it was trained on"
        )


def best_device() -> str:
    """`cuda` where this machine has a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def chosen_dtype(dtype: Literal["auto", "float32", "bfloat16"], device: str) -> Dtype:
    """The dtype itself; for `auto` bfloat16 on a GPU, float32 on a CPU."""
    if dtype != "auto":
        return dtype
    return "float32" if device == "cpu" else "bfloat16"


def _pair_layout(settings: ModelSettings, config: dict[str, Any]) -> Literal["images", "video"]:
    in_family = config["model_type"] in QWEN_FAMILY
    if settings.pair_layout == "video" and not in_family:
        raise ModelRefused(f"pair_layout video is for Qwen-VL models, not {config['model_type']}; use images or auto")
    if settings.pair_layout == "auto":
        return "video" if in_family else "images"
    return settings.pair_layout


def _image_size(settings: ModelSettings, config: dict[str, Any], folder: Path) -> int:
    images = image_processor_config(folder)
    if config["model_type"] in QWEN_FAMILY:
        return _qwen_image_size(settings.image_size, config, images, folder)
    if settings.image_size is not None:
        return settings.image_size
    for setting in ("max_image_size", "crop_size", "size"):
        sizes = images.get(setting)
        if isinstance(sizes, int):
            return sizes
        for edge in ("height", "shortest_edge", "longest_edge"):
            if isinstance(sizes, dict) and sizes.get(edge):
                return int(sizes[edge])
    size = config.get("vision_config", {}).get("image_size")
    if not isinstance(size, int):
        raise ModelRefused(f"{folder} does not say how large its images are; set image_size")
    return size


def _qwen_image_size(asked: int | None, config: dict[str, Any], images: dict[str, Any], folder: Path) -> int:
    """Pixels: what was asked, else at most DEFAULT_IMAGE_SIZE within the area that the model was made for."""
    vision = config.get("vision_config", {})
    if "image_mean" not in images or "image_std" not in images:
        raise ModelRefused(f"{folder} has no preprocessor_config.json with image_mean and image_std; download it again")
    block = int(vision.get("patch_size", 14)) * int(vision.get("spatial_merge_size", 2))
    if asked is not None:
        if asked % block:
            near = max(block, round(asked / block) * block)
            raise ModelRefused(f"image_size {asked} is no multiple of the model's {block} pixels; use {near}")
        return asked
    area = images.get("size") or {}
    most = cast("int | None", area.get("longest_edge") or images.get("max_pixels"))
    edge = min(DEFAULT_IMAGE_SIZE, int(most**0.5)) if most else DEFAULT_IMAGE_SIZE
    return max(block, edge // block * block)
