"""World models by name: the settings, what identifies one, and the way to a loaded one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lake.errors import ModelRefused
from models.folders import (
    check_weights,
    find_adapter,
    find_folder,
    hash_files,
    image_processor_config,
    read_json,
    trained_as,
)
from models.image_tokens import ImageTokenizer
from models.loading import best_device, check_adapter, chosen_dtype
from models.world import Emu3World, SamplingSettings

BUILTIN_WORLD = Path(__file__).parent / "builtin" / "world_weights"

# Emu3's own, where a folder does not say.
_EMU3_SIZE = 512


class WorldSettings(BaseModel):
    """Which world model, and how it draws."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        "builtin", description="an Emu3 model: builtin, hf:<folder>, hf:<owner>/<repository> or s3://<folder>"
    )
    revision: str | None = Field(None, description="commit, tag or branch of a repository; None: its main branch")
    adapter: str | None = Field(
        None, description="LoRA adapter: a folder, <owner>/<repository>[@<revision>] or s3://<folder>"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on GPU, float32 on CPU")
    image_size: int | None = Field(None, ge=8, le=4096, description="pixels; None: as it was trained")
    batch_size: int = Field(16, ge=1, le=4096, description="observations, each with all its candidates")
    sampling: SamplingSettings = SamplingSettings()


def world_folder(settings: WorldSettings) -> tuple[Path, dict[str, str]]:
    """The folder of a world model and the sha256 of its files by name; no weights are loaded.

    Raises ModelRefused, with the remedy, where it cannot be used as asked.
    """
    if settings.name == "builtin":
        folder = BUILTIN_WORLD
    else:
        folder, _ = find_folder(settings.name, settings.revision)
    check_weights(folder)
    kind = read_json(folder / "config.json").get("model_type")
    if kind != "emu3":
        raise ModelRefused(
            f"{folder} holds a {kind or 'model without config.json'}; a world model reads and writes image tokens: "
            "use builtin, or an Emu3 model such as hf:BAAI/Emu3-Gen-hf"
        )
    hashes = hash_files(folder)
    if settings.adapter is not None:
        adapter, _ = find_adapter(settings.adapter)
        check_adapter(adapter, read_json(folder / "config.json"))
        hashes |= {f"adapter:{name}": digest for name, digest in hash_files(adapter).items()}
    return folder, hashes


def asked_size(settings: WorldSettings, folder: Path) -> int | None:
    """The image size that was asked for, or else that of the adapter; None: what the folder says."""
    if settings.image_size or not settings.adapter:
        return settings.image_size
    return trained_as(find_adapter(settings.adapter)[0], folder).get("image_size")


def load_world(settings: WorldSettings, device: str | None = None) -> Emu3World:
    """Load the model onto `device` ("cpu", "cuda", "cuda:1", None: a GPU where there is one), for inference.

    Raises ModelRefused, with the remedy, where the model cannot be used as asked.
    """
    if settings.adapter is not None:
        # Once: what was checked is what is loaded.
        settings = settings.model_copy(update={"adapter": str(find_adapter(settings.adapter)[0])})
    folder, _ = world_folder(settings)
    device = device or best_device()
    model, tokenizer = load_emu3(folder, chosen_dtype(settings.dtype, device))
    if settings.adapter is not None:
        model = _merged(model, Path(settings.adapter))
    model = model.to(device).eval().requires_grad_(False)
    return as_world(model, tokenizer, folder, settings)


def load_emu3(folder: Path, dtype: Literal["float32", "bfloat16"]) -> tuple[Any, Any]:
    """An `Emu3ForConditionalGeneration` and its text tokenizer. Raises ModelRefused where they do not load."""
    import torch
    from transformers import AutoTokenizer, Emu3ForConditionalGeneration
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        model, report = Emu3ForConditionalGeneration.from_pretrained(
            folder,
            dtype=torch.bfloat16 if dtype == "bfloat16" else torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise ModelRefused(f"{folder} does not load ({reason}); check it, or download it again") from error
    if missing := sorted(report["missing_keys"]):
        raise ModelRefused(f"{folder} lacks {len(missing)} weights ({missing[0]}, ...); download it again")
    return model, tokenizer


def as_world(model: Any, tokenizer: Any, folder: Path, settings: WorldSettings) -> Emu3World:
    """A loaded Emu3 as a world model, with the image size and normalization that its folder names."""
    images = _as_tokenizer(model.model.vqmodel, folder, asked_size(settings, folder))
    try:
        return Emu3World(model, tokenizer, images, batch_size=settings.batch_size, sampling=settings.sampling)
    except ValueError as error:
        raise ModelRefused(f"{folder}: {error}; use another image_size") from error


def load_image_tokenizer(folder: Path, image_size: int | None, device: str | None = None) -> ImageTokenizer:
    """The image tokenizer of a world model alone, in float32: the language model, a hundred times larger, is not read.

    Raises ModelRefused, with the remedy, where it cannot be used as asked.
    """
    from safetensors import SafetensorError, safe_open
    from transformers import Emu3Config, Emu3VQVAE

    weights: dict[str, Any] = {}
    try:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                weights |= {key.split("vqmodel.")[1]: file.get_tensor(key) for key in file.keys() if "vqmodel." in key}  # noqa: SIM118
        vq = Emu3VQVAE(Emu3Config.from_pretrained(folder, local_files_only=True).vq_config)
        vq.load_state_dict(weights)
    except (RuntimeError, SafetensorError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise ModelRefused(f"the image tokenizer in {folder} does not load ({reason}); download it again") from error
    vq = vq.float().to(device or best_device()).eval().requires_grad_(False)
    return _as_tokenizer(vq, folder, image_size)


def _as_tokenizer(vq: Any, folder: Path, image_size: int | None) -> ImageTokenizer:
    images = image_processor_config(folder)
    size = (
        image_size
        or trained_as(None, folder).get("image_size")
        or (images.get("size") or {}).get("height")
        or _EMU3_SIZE
    )
    mean, std = images.get("image_mean", (0.5, 0.5, 0.5)), images.get("image_std", (0.5, 0.5, 0.5))
    try:
        return ImageTokenizer(vq, image_size=size, mean=mean, std=std, hold=images.get("hold", 0.0))
    except ValueError as error:
        raise ModelRefused(f"{folder}: {error}; use another image_size") from error


def tokenizer_id(images: ImageTokenizer) -> str:
    """Sixteen hex digits that identify the image tokenizer: its weights, image size, normalization and `hold`.

    A fine-tuned world model keeps the tokenizer of the one it began as, and so its id, whatever dtype it is loaded in.
    """
    import torch

    digest = hashlib.sha256(repr(images.identity).encode())
    for name, tensor in sorted(images.vq.state_dict().items()):
        # bfloat16 is what both dtypes have in common.
        digest.update(name.encode() + tensor.detach().cpu().bfloat16().contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def _merged(model: Any, adapter: Path) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, adapter, is_trainable=False).merge_and_unload()
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise ModelRefused(
            f"adapter {adapter} does not fit this model ({reason}); use it with the model it was trained on"
        ) from error
