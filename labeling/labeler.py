"""A labeler: model weights, prompt and pair sampling; all that decides which pairs exist and what they are called."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel, ConfigDict

from labeling.settings import SamplingSettings
from lake.ids import content_id
from models.loading import resolve
from models.settings import ModelSettings


class LabelerSettings(BaseModel):
    """The parts of a labeler that a user chooses."""

    model_config = ConfigDict(extra="forbid")

    model: ModelSettings = ModelSettings()
    sampling: SamplingSettings = SamplingSettings()


@dataclass(frozen=True)
class Labeler:
    """Settings, resolved to content: two of the same id name every pair alike (in fp32 on CPU to the letter)."""

    settings: LabelerSettings
    image_size: int
    identity: dict[str, Any]
    weight_bytes: int = 0
    """Of the model's weights, in the memory of a process."""

    @property
    def id(self) -> str:
        """Sixteen hex digits over `identity`."""
        return content_id(self.identity)

    @property
    def decoder(self) -> str:
        """Decoder library and version, as the `failures` table names it."""
        return self.identity["decoder"]  # type: ignore[no-any-return]


_DECODER_PACKAGES = {"pyav": "av", "decord": "decord2"}


def resolve_labeler(settings: LabelerSettings, device: str | None = None) -> Labeler:
    """Hash what the settings name; loads no weights. Labels are made on `device`: cpu, cuda, None for what is here.

    Raises:
        ModelRefused: the model cannot be used.
    """
    model = resolve(settings.model, device)
    decoder = settings.sampling.decoder
    return Labeler(
        settings.model_copy(update={"model": model.settings}),
        model.image_size,
        {
            "model": model.identity,
            "sampling": settings.sampling.model_dump(mode="json"),
            "image_size": model.image_size,
            "decoder": f"{decoder} {version(_DECODER_PACKAGES[decoder])}",
            "flow": f"opencv {version('opencv-python-headless')}, numpy {version('numpy')}",
        },
        model.weight_bytes,
    )
