"""The verifiers: one module per score of `lake.scores`, named as the score is.

A module has one function, `score(evidence)`, which returns the score of each pair of a batch; NaN means not computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import import_module
from typing import Protocol, cast

from labeling.evidence import Evidence, Values
from lake.scores import NAMES


class Verifier(Protocol):
    """The protocol of the modules in this package."""

    def score(self, evidence: Evidence) -> Values:
        """Return the score of each pair, shape (batch,)."""
        ...


VERIFIERS: Mapping[str, Verifier] = {name: cast(Verifier, import_module(f"{__name__}.{name}")) for name in NAMES}
"""By score, in the order of the columns."""


def scores(evidence: Evidence) -> list[dict[str, float | None]]:
    """Score every pair of a batch: by pair, then by column; null where the evidence gives no number."""
    columns = [verifier.score(evidence).tolist() for verifier in VERIFIERS.values()]
    return [dict(zip(VERIFIERS, map(_finite, row), strict=True)) for row in zip(*columns, strict=True)]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
