"""Load world models by name, and identify them and their image tokenizers."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lake.errors import ModelRefused
from models.folders import check_weights, find_adapter, find_folder, hash_files, read_json, trained_as
from models.loading import best_device, chosen_dtype
from models.protocols import ImageTokenizer
from models.settings import Dtype, WorldSettings
from models.weights import apply_adapter, check_adapter, load_tokenizer, load_weights, to_device
from models.world import family_of
from models.world.family import WorldFamily
from models.world.tokens import TokenWorld

BUILTIN_WORLD = Path(__file__).parent / "builtin" / "world_weights"


def world_folder(settings: WorldSettings) -> tuple[Path, dict[str, str]]:
    """Find the folder of a world model and the sha256 of its files by name; no weights are loaded.

    Raises ModelRefused, with the remedy, where it cannot be used as asked.
    """
    if settings.name == "builtin":
        folder = BUILTIN_WORLD
    else:
        folder, _ = find_folder(settings.name, settings.revision)
    check_weights(folder)
    world_family(folder)
    hashes = hash_files(folder)
    if settings.adapter is not None:
        adapter, _ = find_adapter(settings.adapter)
        check_adapter(adapter, read_json(folder / "config.json"))
        hashes |= {f"adapter:{name}": digest for name, digest in hash_files(adapter).items()}
    return folder, hashes


def world_family(folder: Path) -> WorldFamily:
    """Return the family of the model in a folder. Raises ModelRefused where no family takes it."""
    config = read_json(folder / "config.json")
    family = family_of(config)
    if family is None:
        raise ModelRefused(
            f"{folder} holds a {config.get('model_type') or 'model without config.json'}; a world model reads and "
            "writes image tokens: use builtin, or an Emu3 model such as hf:BAAI/Emu3-Gen-hf"
        )
    return family


def asked_size(settings: WorldSettings, folder: Path) -> int | None:
    """The image size that was asked for, or else that of the adapter; None: the size that the folder names."""
    if settings.image_size or not settings.adapter:
        return settings.image_size
    return trained_as(find_adapter(settings.adapter)[0], folder).get("image_size")


def load_world(settings: WorldSettings, device: str | None = None) -> TokenWorld:
    """Load the model onto `device` ("cpu", "cuda", "cuda:1", None: a GPU where there is one), for inference.

    Raises ModelRefused, with the remedy, where the model cannot be used as asked.
    """
    if settings.adapter is not None:
        # Once: what was checked is what is loaded.
        settings = settings.model_copy(update={"adapter": str(find_adapter(settings.adapter)[0])})
    folder, _ = world_folder(settings)
    device = device or best_device()
    return assemble_world(settings, folder, chosen_dtype(settings.dtype, device), device)


def assemble_world(settings: WorldSettings, folder: Path, dtype: Dtype, device: str) -> TokenWorld:
    """Load the model in a folder onto a device. Raises ModelRefused where it cannot be used as asked."""
    family = world_family(folder)
    model = load_weights(family.model_class(), folder, dtype)
    if settings.adapter is not None:
        model = apply_adapter(model, Path(settings.adapter), dtype)
    model = to_device(model, device)
    text_tokenizer = load_tokenizer(folder)
    images = family.own_image_tokenizer(model, folder, asked_size(settings, folder))
    try:
        layout = family.layout(model, text_tokenizer, images)
    except ValueError as error:
        raise ModelRefused(f"{folder}: {error}; use another image_size") from error
    return TokenWorld(model, text_tokenizer, images, layout, batch_size=settings.batch_size, sampling=settings.sampling)


def load_image_tokenizer(folder: Path, image_size: int | None, device: str | None = None) -> ImageTokenizer:
    """Load the image tokenizer of a world model alone, in float32.

    Raises ModelRefused, with the remedy, where it cannot be used as asked.
    """
    return world_family(folder).image_tokenizer(folder, image_size, device or best_device())


def tokenizer_id(images: ImageTokenizer) -> str:
    """Sixteen hex digits that identify the image tokenizer: its weights, image size, normalization and `hold`.

    A fine-tuned world model keeps the tokenizer of the one it began as, and so its id, whatever dtype it is loaded in.
    """
    import torch

    digest = hashlib.sha256(repr(images.identity).encode())
    for name, tensor in sorted(images.weights().items()):
        # bfloat16 is what both dtypes have in common.
        digest.update(name.encode() + tensor.detach().cpu().bfloat16().contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
