"""The four probes of the paper: does a model prefer what happened to what did not?

Qiu et al., arXiv 2506.06006, compare the likelihood of a true (obs, action, next_obs) with that of one in which the
action is another one at random, or a counterfactual one, obs and next_obs are swapped (inverse observation), or
next_obs is obs again (copy observation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.image_metrics import changed
from evaluation.intervals import Figure, mean, share
from evaluation.text import normalized, words
from models.protocols import Images

PROBES = ("random", "counterfactual", "inverse", "copy")

Score = Callable[[Images, Images, Sequence[str]], npt.NDArray[np.float32]]
"""Mean token log-probability, shape (batch,), of triples (obs, next_obs, action) under a model of either kind."""

# The nearest action is searched among at most this many.
_POOL = 1000

_PAIRS = """
left right, up down, upward downward, upwards downwards, forward backward, forwards backwards, in out, on off,
above below, over under, top bottom, front back, clockwise counterclockwise,
open close, opens closes, opening closing, opened closed, push pull, pushes pulls, pushing pulling,
put take, puts takes, putting taking, add remove, adds removes, adding removing, cover uncover, covering uncovering,
fold unfold, folds unfolds, folding unfolding, lift drop, lifts drops, lifting dropping, raise lower, raises lowers,
raising lowering, enter leave, enters leaves, entering leaving, fill empty, fills empties, filling emptying,
appears vanishes, appear vanish, grows shrinks, grow shrink, bigger smaller, brighter darker, faster slower,
start stop, starts stops, wide narrow
"""
OPPOSITES = {
    one: other
    for pair in _PAIRS.replace("\n", " ").split(",")
    for first, second in [pair.split()]
    for one, other in ((first, second), (second, first))
}
"""Words that turn an action into its opposite: directions, and doing or undoing, in English."""


@dataclass(frozen=True)
class Alternative:
    """Actions that did not happen, None where there is no other one: one at `random`, and a `counterfactual`.

    The counterfactual is the true action with its direction words turned round, or else the most similar other action.
    """

    random: str | None
    counterfactual: str | None


def alternatives(actions: Sequence[str], seed: int) -> list[Alternative]:
    """Return the alternatives of each pair among all `actions`; the same for the same actions, order and seed."""
    generator = np.random.default_rng(seed)
    distinct = sorted({normalized(action): action for action in reversed(actions)}.values())
    places = {normalized(action): place for place, action in enumerate(distinct)}
    chosen = range(len(distinct))
    if len(distinct) > _POOL:
        chosen = np.sort(generator.choice(len(distinct), _POOL, replace=False)).tolist()
    bags = [(place, frozenset(words(distinct[place]))) for place in chosen]

    @cache
    def nearest(place: int) -> str | None:
        own = frozenset(words(distinct[place]))
        others = [(len(own & bag) / max(1, len(own | bag)), -other) for other, bag in bags if other != place]
        # The greatest share of common words; of equals the first in order.
        return distinct[-max(others)[1]] if others else None

    found = []
    for action in actions:
        place, drawn = places[normalized(action)], None
        if len(distinct) > 1:
            other = int(generator.integers(len(distinct) - 1))
            drawn = distinct[other + (other >= place)]
        found.append(Alternative(drawn, opposite(action) or nearest(place)))
    return found


def opposite(action: str) -> str | None:
    """The action with every direction word turned round; None where it has none."""
    turned = [OPPOSITES.get(word.lower(), word) for word in action.split()]
    return " ".join(turned) if turned != action.split() else None


def margins(
    score: Score, obs: Images, next_obs: Images, actions: Sequence[str], others: Sequence[Alternative]
) -> list[dict[str, Any]]:
    """By probe, log-probability per token of the true triple minus that of the other one; None where there is none.

    Where nothing changes between obs and next_obs, swapping and copying change nothing either: these probes have no
    answer then. Nor has one for which the model gives no number.
    """
    true = score(obs, next_obs, actions)
    scores: dict[str, npt.NDArray[np.float32]] = {
        "inverse": score(next_obs, obs, actions),
        "copy": score(obs, obs, actions),
    }
    moves: npt.NDArray[np.bool_] = np.array([mask.any() for mask in changed(obs, next_obs)])
    there = {"inverse": moves, "copy": moves}
    for probe in ("random", "counterfactual"):
        replaced = [getattr(other, probe) for other in others]
        there[probe] = np.array([action is not None for action in replaced])
        wrong = [action or true_action for action, true_action in zip(replaced, actions, strict=True)]
        scores[probe] = score(obs, next_obs, wrong)
    found = []
    for i in range(len(actions)):
        row: dict[str, Any] = {}
        for probe in PROBES:
            margin = float(true[i] - scores[probe][i])
            row[probe] = margin if there[probe][i] and np.isfinite(margin) else None
        found.append(row)
    return found


def preferences(rows: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """Of the rows of `margins`, by probe, how often the true triple is strictly likelier, and by how much."""
    figures: dict[str, Figure] = {}
    for probe in PROBES:
        values = [row[probe] for row in rows]
        figures[f"prefers_true_to_{probe}"] = share(None if value is None else value > 0 for value in values)
        figures[f"margin_to_{probe}"] = mean(values)
    return figures
