"""Dynamics-model families. To add one, write one file and enter it in `FAMILIES`: docs/extending.md has the recipe."""

from __future__ import annotations

from typing import Any

from models.dynamics.family import DynamicsFamily
from models.dynamics.qwen_vl import QwenVL
from models.dynamics.stock import Stock

FAMILIES: tuple[DynamicsFamily, ...] = (
    QwenVL(),
    Stock(),
)
"""The first family that matches a config takes the model, so that `Stock`, which matches most, stands last."""


def family_of(config: dict[str, Any]) -> DynamicsFamily | None:
    """Find the family of a model by the content of its config.json; None where no family takes it."""
    return next((family for family in FAMILIES if family.matches(config)), None)
