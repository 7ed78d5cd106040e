"""Shares and means with 95 % intervals over samples."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit


@dataclass(frozen=True)
class Share:
    """A share with its 95 % Wilson score interval (Wilson 1927)."""

    right: int
    total: int

    @property
    def value(self) -> float:
        """The share itself; NaN of nothing."""
        return self.right / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end."""
        if not self.total:
            return math.nan, math.nan
        z, n, p = 1.959964, self.total, self.value
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, centre - half), min(1.0, centre + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} ({low:.1%} to {high:.1%}) of {self.total}" if self.total else "none"


@dataclass(frozen=True)
class Mean:
    """A value over `total` samples with its 95 % interval."""

    value: float
    interval: tuple[float, float]
    total: int

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3g} ({low:.3g} to {high:.3g}) of {self.total}" if self.total else "none"


Figure = Share | Mean

UNIT = (0.0, 1.0)


def share(values: Iterable[bool | None]) -> Share:
    """The share of true ones; samples for which there is no answer (None) do not count."""
    known = [value for value in values if value is not None]
    return Share(sum(known), len(known))


def mean(values: Iterable[float | None], within: tuple[float, float] = (-math.inf, math.inf)) -> Mean:
    """The mean with Student's t interval, cut to what is possible; samples without a value (None, NaN) do not count."""
    known = np.array([value for value in values if value is not None and not math.isnan(value)])
    n = len(known)
    middle = float(known.mean()) if n else math.nan
    if n < 2:
        return Mean(middle, (math.nan, math.nan), n)
    half = float(stdtrit(n - 1, 0.975) * known.std(ddof=1) / math.sqrt(n))
    return Mean(middle, (max(within[0], middle - half), min(within[1], middle + half)), n)


def plain(figure: Figure) -> dict[str, Any]:
    """A figure as JSON has it: `value`, `low` and `high`, null where there is none, and `n`, the samples."""
    low, high = figure.interval
    numbers = {"value": figure.value, "low": low, "high": high}
    return {name: None if math.isnan(number) else number for name, number in numbers.items()} | {"n": figure.total}
