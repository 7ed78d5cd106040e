"""The interface of a dynamics-model family: all that differs from one family of vision-language models to another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from models.folders import read_json
from models.protocols import Images
from models.settings import ModelSettings
from models.weights import LANGUAGE_LAYERS

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_ANSWER = "§"
"""Stands for the assistant's text while a chat template is asked what it writes before it."""


class PairInputs(Protocol):
    """Lays out the inputs of frame pairs. Every pair has the same prompt, so that no row is padded before its text."""

    tokenizer: PreTrainedTokenizerBase
    lead: str
    """White space that the model writes between its prompt and its answer."""

    def __call__(self, obs: Images, next_obs: Images, device: torch.device) -> dict[str, torch.Tensor]:
        """Return tensors on the device by forward argument; `input_ids` has shape (batch, prompt tokens)."""
        ...


class DynamicsFamily(ABC):
    """A family of vision-language models that name the action between two frames.

    A file of a family is imported before any model is loaded, by commands that load none: import torch and transformers
    inside its functions.
    """

    pair_layouts: tuple[str, ...] = ("images",)
    """The layouts of a pair that the family takes; the first one is what `auto` means. They are a part of the labeler's
    identity: give a layout of your own a name of its own."""
    adapted: str = LANGUAGE_LAYERS
    """Regular expression of the modules that a LoRA adapter takes, in the manner of PEFT's `target_modules`."""

    @abstractmethod
    def matches(self, config: dict[str, Any]) -> bool:
        """Return whether a model with this config.json belongs to the family."""

    @abstractmethod
    def image_size(self, asked: int | None, config: dict[str, Any], folder: Path) -> int:
        """Return the side of the model's images in pixels, the size `asked` for if there is one.

        Raises ModelRefused where the model cannot take that size or does not name one.
        """

    @abstractmethod
    def inputs(self, settings: ModelSettings, folder: Path, config: Any) -> PairInputs:
        """Return what lays out pairs, for settings with nothing left open and the config of the loaded model.

        Raises ModelRefused where the tokenizer or the processor of the folder does not load.
        """

    def model_class(self) -> Any:
        """Return the class of transformers whose `from_pretrained` loads the model."""
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText

    def prepare(self, model: Any) -> Any:
        """Return the loaded model as it is to be used, for example with another attention; adapters come after."""
        return model


def chat_template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return the chat template of a model; None where it has none."""
    # Older repositories keep the template of the processor, which the tokenizer does not read, in a file of its own.
    return tokenizer.chat_template or read_json(folder / "chat_template.json").get("chat_template")


def render_chat(
    tokenizer: PreTrainedTokenizerBase, template: Any, kinds: tuple[str, ...], prompt: str
) -> tuple[str, str] | None:
    """Render the prompt, with a place for each of `kinds`, and the white space that a template puts before an answer.

    None where there is no template.
    """
    if template is None:
        return None
    user = {"role": "user", "content": [*({"type": kind} for kind in kinds), {"type": "text", "text": prompt}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]}
    text: str = tokenizer.apply_chat_template(
        [user], chat_template=template, tokenize=False, add_generation_prompt=True
    )
    answered: str = tokenizer.apply_chat_template([user, answer], chat_template=template, tokenize=False)
    before, found, _ = answered.removeprefix(text).partition(_ANSWER)
    return text, before if found and before.isspace() else ""
