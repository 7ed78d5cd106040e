"""World-model families. To add one, write one file and enter it in `FAMILIES`: docs/extending.md has the recipe."""

from __future__ import annotations

from typing import Any

from models.world.emu3 import Emu3
from models.world.family import WorldFamily

FAMILIES: tuple[WorldFamily, ...] = (Emu3(),)
"""The first family that matches a config takes the model."""


def family_of(config: dict[str, Any]) -> WorldFamily | None:
    """Find the family of a model by the content of its config.json; None where no family takes it."""
    return next((family for family in FAMILIES if family.matches(config)), None)
