"""Shares and means with 95 % intervals over samples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit


@dataclass(frozen=True)
class Share:
    """A share with its 95 % Wilson score interval (Wilson 1927).

    `effective` is the number of independent samples that say as much as the `total` ones; None: all are independent. It
    may be a fraction, for which SciPy's `proportion_ci` has no interval.
    """

    right: int
    total: int
    effective: float | None = None

    @property
    def value(self) -> float:
        """The share itself; NaN of nothing."""
        return self.right / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end."""
        if not self.total:
            return math.nan, math.nan
        z, n, p = 1.959964, self.effective or self.total, self.value
        center = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, center - half), min(1.0, center + half)

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


def share_of_groups(hits: Sequence[bool], groups: Sequence[Hashable]) -> Share:
    """The share of hits among samples that come in groups, such as the pairs of one video.

    Samples of a group tend to agree, so the interval is that of fewer: their number over the design effect, which is
    the variance of the share between groups over that of independent samples, and at least 1. Where all are hits or
    none is, groups show no variance, and each counts as one sample.
    """
    total, right = len(hits), sum(hits)
    sizes, hits_of = Counter(groups), Counter(group for group, hit in zip(groups, hits, strict=True) if hit)
    if right in (0, total) or len(sizes) < 2:
        return Share(right, total, float(len(sizes)))
    value = right / total
    spread = sum((hits_of[group] - value * size) ** 2 for group, size in sizes.items())
    between = spread * len(sizes) / (len(sizes) - 1) / total**2
    return Share(right, total, total / max(1.0, between * total / (value * (1 - value))))


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
