"""The interface of a world-model family: all that differs from one family of token-based models to another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from models.protocols import ImageTokenizer
from models.weights import LANGUAGE_LAYERS
from models.world.tokens import SequenceLayout


class WorldFamily(ABC):
    """A family of causal language models of transformers that read and write image tokens.

    `image_size` in pixels is the one that is asked for; None: the size that the model was trained with.
    """

    adapted: str = LANGUAGE_LAYERS
    """Regular expression of the modules that a LoRA adapter takes, in the manner of PEFT's `target_modules`."""

    @abstractmethod
    def matches(self, config: dict[str, Any]) -> bool:
        """Return whether a model with this config.json belongs to the family."""

    @abstractmethod
    def model_class(self) -> Any:
        """Return the class of transformers whose `from_pretrained` loads the model."""

    @abstractmethod
    def image_tokenizer(self, folder: Path, image_size: int | None, device: str) -> ImageTokenizer:
        """Load the image tokenizer alone, in float32, without the language model, which is a hundred times larger.

        Raises ModelRefused where it does not load, or does not take images of this size.
        """

    @abstractmethod
    def layout(self, model: Any, text_tokenizer: Any, images: ImageTokenizer) -> SequenceLayout:
        """Return how the model writes a triple. Raises ValueError where it cannot write images of this size."""

    def own_image_tokenizer(self, model: Any, folder: Path, image_size: int | None) -> ImageTokenizer:
        """Return the image tokenizer of a loaded model; override it where that is a part of the model."""
        return self.image_tokenizer(folder, image_size, str(model.device))

    def frozen(self, model: Any) -> frozenset[Any]:
        """Return the parameters of a model that are never trained, such as those of its image tokenizer."""
        return frozenset()
