"""The Emu3 family (Wang et al., arXiv 2409.18869): one transformer over text and the codes of a VQ tokenizer.

Each image is written as Emu3's processor writes it: start, `rows*columns`, a mark, the codes with an end-of-line token
after each row, end of frame, end (transformers, `Emu3Processor`; section 2 of the paper).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lake.errors import ModelRefused, one_line
from models.folders import image_processor_config, trained_as
from models.protocols import ImageTokenizer
from models.world.emu3_images import Emu3Images
from models.world.family import WorldFamily
from models.world.tokens import SequenceLayout, text_ids

_DEFAULT_SIZE = 512
"""Pixels of Emu3's own images, where a folder does not name a size."""


class Emu3(WorldFamily):
    """`Emu3ForConditionalGeneration`; its image tokenizer is a part of the model."""

    def matches(self, config: dict[str, Any]) -> bool:
        """See `WorldFamily`."""
        return config.get("model_type") == "emu3"

    def model_class(self) -> Any:
        """See `WorldFamily`."""
        from transformers import Emu3ForConditionalGeneration

        return Emu3ForConditionalGeneration

    def image_tokenizer(self, folder: Path, image_size: int | None, device: str) -> Emu3Images:
        """See `WorldFamily`."""
        from safetensors import SafetensorError, safe_open
        from transformers import Emu3Config, Emu3VQVAE

        weights: dict[str, Any] = {}
        try:
            for path in sorted(folder.glob("*.safetensors")):
                with safe_open(path, "pt") as file:
                    keys = [key for key in file.keys() if "vqmodel." in key]  # noqa: SIM118 - not a mapping
                    weights |= {key.split("vqmodel.")[1]: file.get_tensor(key) for key in keys}
            vq = Emu3VQVAE(Emu3Config.from_pretrained(folder, local_files_only=True).vq_config)
            vq.load_state_dict(weights)
        except (RuntimeError, SafetensorError, OSError, ValueError) as error:
            raise ModelRefused(
                f"the image tokenizer in {folder} does not load ({one_line(error, 200)}); download it again"
            ) from error
        return _images(vq.float().to(device).eval().requires_grad_(False), folder, image_size)

    def own_image_tokenizer(self, model: Any, folder: Path, image_size: int | None) -> Emu3Images:
        """See `WorldFamily`."""
        return _images(model.model.vqmodel, folder, image_size)

    def layout(self, model: Any, text_tokenizer: Any, images: ImageTokenizer) -> SequenceLayout:
        """See `WorldFamily`."""
        assert isinstance(images, Emu3Images)
        return emu3_layout(model, text_tokenizer, images)

    def frozen(self, model: Any) -> frozenset[Any]:
        """See `WorldFamily`."""
        return frozenset(model.model.vqmodel.parameters())


def emu3_layout(model: Any, text_tokenizer: Any, images: Emu3Images) -> SequenceLayout:
    """Lay triples out for an Emu3. Raises ValueError if the text tokenizer cannot write the size of the images."""
    mapping, side = model.model.vocabulary_mapping, images.side
    start, mark = text_tokenizer.boi_token, text_tokenizer.image_wrapper_token
    begin = text_ids(text_tokenizer, f"{start}{side}*{side}{mark}")
    end = text_ids(text_tokenizer, f"{text_tokenizer.eof_token}{text_tokenizer.eoi_token}")
    if text_tokenizer.unk_token_id is not None and text_tokenizer.unk_token_id in begin:
        raise ValueError(f"the tokenizer cannot write {side}*{side}")
    return SequenceLayout(
        before_obs=begin,
        before_next=[*end, *begin],
        image=[*[None] * side, int(mapping.eol_token_id)] * side,
        code_ids=[int(mapping.img2bpe[code]) for code in range(images.codebook_size)],
        pad=int(text_tokenizer.pad_token_id),
    )


def _images(vq: Any, folder: Path, image_size: int | None) -> Emu3Images:
    """A VQ tokenizer with the image size and the normalization that its folder names."""
    config = image_processor_config(folder)
    size = (
        image_size
        or trained_as(None, folder).get("image_size")
        or (config.get("size") or {}).get("height")
        or _DEFAULT_SIZE
    )
    mean, std = config.get("image_mean", (0.5, 0.5, 0.5)), config.get("image_std", (0.5, 0.5, 0.5))
    try:
        return Emu3Images(vq, image_size=size, mean=mean, std=std, hold=config.get("hold", 0.0))
    except ValueError as error:
        raise ModelRefused(f"{folder}: {error}; use another image_size") from error
