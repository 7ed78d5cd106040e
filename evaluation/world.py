"""How good the predictions of a world model are, beside a copy of obs and the best that its tokenizer could do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.features import ImageFeatures
from evaluation.image_metrics import picture_scores
from evaluation.intervals import UNIT, Figure, mean, share
from evaluation.judge import Judge
from evaluation.probes import Alternative, margins, preferences
from evaluation.text import normalized
from models.protocols import DynamicsModel, Images, WorldModel
from models.verification import predict, resized

SAMPLE, COPY, CEILING = "one sample", "copy of obs", "true next_obs, tokenized"

_MEANS = {"changed_psnr_db": (-math.inf, math.inf), "unchanged_psnr_db": (-math.inf, math.inf)}
_MEANS |= {"changed_ssim": (-1.0, 1.0), "l1": UNIT}


@dataclass(frozen=True)
class Pairs:
    """Some of the pairs to predict: uint8 images of any size, the true actions, and what else could have happened.

    `shows`, where the truth about the scenes is known, says which action a predicted picture of the i-th pair shows:
    the oracle of the sample world.
    """

    obs: Images
    next_obs: Images
    actions: Sequence[str]
    others: Sequence[Alternative]
    shows: Sequence[Callable[[npt.NDArray[np.uint8]], str]] | None = None


@dataclass(frozen=True)
class Predictions:
    """The pictures behind some rows, at the world model's size; `scores` (batch, n) and `candidates`: by a verifier."""

    obs: Images
    next_obs: Images
    predicted: Images
    scores: npt.NDArray[np.float32] | None
    chosen: npt.NDArray[np.int64] | None
    candidates: Images | None


@dataclass(frozen=True)
class WorldTest:
    """The test of a world model.

    `verifier` chooses among `n` candidates (without one, n is 1); `referee`, another dynamics model, says which action
    the prediction shows.
    """

    world: WorldModel
    n: int = 1
    seed: int = 0
    verifier: DynamicsModel | None = None
    referee: DynamicsModel | None = None
    features: Sequence[ImageFeatures] = ()
    judge: Judge | None = None

    @property
    def method(self) -> str:
        """Return the name of the method under test."""
        return f"best of {self.n}" if self.n > 1 else SAMPLE

    def judge_pairs(self, pairs: Pairs, seed: int) -> tuple[list[dict[str, Any]], Predictions]:
        """One row a pair, and the pictures. `seed` tells apart the draws of one batch and of another.

        A row has `methods`: the scores, by name, of the prediction, of `one sample` where a verifier chose among
        several, of a `copy of obs`, and of the true next_obs as far as the tokenizer can show it. Also `probes`, by the
        world model's own likelihoods.
        """
        size = self.world.image_size
        obs, next_obs = resized(pairs.obs, size), resized(pairs.next_obs, size)
        made = self._predict(pairs, obs, next_obs, seed)
        shown_obs = self.world.shown(obs)
        pictures = {self.method: made.predicted}
        if made.candidates is not None and self.n > 1:
            pictures[SAMPLE] = made.candidates[:, 0]
        pictures[COPY] = shown_obs
        pictures[CEILING] = self.world.shown(next_obs)
        methods = {name: self._scores(pairs, obs, next_obs, given, shown_obs) for name, given in pictures.items()}
        if self.judge:
            opinions = self.judge.opinions(obs, made.predicted, pairs.actions)
            for row, opinion in zip(methods[self.method], opinions, strict=True):
                row["judge"] = asdict(opinion) | {"score": opinion.score}
        probes = margins(self._score, obs, next_obs, pairs.actions, pairs.others)
        rows = [
            {"methods": {name: scores[i] for name, scores in methods.items()}, "probes": probes[i]}
            for i in range(len(obs))
        ]
        return rows, made

    def _predict(self, pairs: Pairs, obs: Images, next_obs: Images, seed: int) -> Predictions:
        if self.verifier is None:
            predicted = self.world.sample(obs, pairs.actions, 1, seed=self.seed + seed)[:, 0]
            return Predictions(obs, next_obs, predicted, None, None, None)
        verified = predict(
            self.world, self.verifier, pairs.obs, pairs.actions, self.n, seed=self.seed + seed, keep_candidates=True
        )
        return Predictions(obs, next_obs, verified.images, verified.scores, verified.chosen, verified.candidates)

    def _score(self, obs: Images, next_obs: Images, actions: Sequence[str]) -> npt.NDArray[np.float32]:
        return self.world.score(obs, actions, next_obs)

    def _scores(
        self, pairs: Pairs, obs: Images, next_obs: Images, predicted: Images, shown_obs: Images
    ) -> list[dict[str, Any]]:
        rows = picture_scores(obs, next_obs, predicted, shown_obs)
        for features in self.features:
            for row, cosine in zip(rows, features.cosines(predicted, next_obs), strict=True):
                row.setdefault("features", {})[features.name] = cosine
        if self.referee:
            side = self.referee.image_size
            # Both as the world model draws them, as `predict` shows them to the verifier.
            named = self.referee.annotate(resized(shown_obs, side), resized(predicted, side))
            for row, annotation, action in zip(rows, named, pairs.actions, strict=True):
                row["referee"] = annotation.action
                row["referee_agrees"] = normalized(annotation.action) == normalized(action)
        if pairs.shows:
            for row, shows, picture, action in zip(rows, pairs.shows, predicted, pairs.actions, strict=True):
                row["oracle"] = shows(picture)
                row["oracle_agrees"] = normalized(row["oracle"]) == normalized(action)
        return rows


def world_figures(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Figure]]:
    """The figures of a world model over the rows of `WorldTest.judge_pairs`: by method, and the probes beside them."""
    figures: dict[str, dict[str, Figure]] = {}
    for method in rows[0]["methods"]:
        figures[method] = _method_figures([row["methods"][method] for row in rows])
    figures["likelihoods"] = preferences([row["probes"] for row in rows])
    return figures


def _method_figures(rows: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    figures: dict[str, Figure] = {name: mean((row[name] for row in rows), within) for name, within in _MEANS.items()}
    figures["copy_rate"] = share(row["copied"] for row in rows)
    for name in rows[0].get("features", {}):
        figures[f"cosine {name}"] = mean((row["features"][name] for row in rows), (-1, 1))
    for name in ("referee", "oracle"):
        if name in rows[0]:
            figures[f"{name}_agrees"] = share(row[f"{name}_agrees"] for row in rows)
    if "judge" in rows[0]:
        for name in ("score", "editing_success", "minimal_editing"):
            figures[f"judge_{name}"] = mean((row["judge"][name] for row in rows), (0, 10))
        figures["judge_unparsed"] = share(row["judge"]["state"] == "unparsed" for row in rows)
        figures["judge_unanswered"] = share(row["judge"]["state"] == "unanswered" for row in rows)
    return figures
