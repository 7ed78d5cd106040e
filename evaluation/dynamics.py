"""How well a dynamics model names what happened, and whether it prefers what happened to what did not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.intervals import UNIT, Figure, mean, share
from evaluation.probes import Alternative, margins, preferences
from evaluation.text import bleu, normalized, rouge
from models.protocols import DynamicsModel, Images


def judge_dynamics(
    model: DynamicsModel, obs: Images, next_obs: Images, actions: Sequence[str], others: Sequence[Alternative]
) -> list[dict[str, Any]]:
    """One row a pair: the action that was `named`, its `confidence`, how near it is to the true one, and the probes.

    The images are uint8 of the model's size, `actions` the true ones, `others` their `probes.alternatives`.
    """
    annotations = model.annotate(obs, next_obs)
    probes = margins(model.score, obs, next_obs, actions, others)
    return [
        {
            "named": annotation.action,
            "confidence": annotation.mean_logprob if np.isfinite(annotation.mean_logprob) else None,
            "exact": normalized(annotation.action) == normalized(action),
            **rouge(action, annotation.action),
            "probes": margin,
        }
        for annotation, action, margin in zip(annotations, actions, probes, strict=True)
    ]


def dynamics_figures(rows: Sequence[dict[str, Any]], actions: Sequence[str]) -> dict[str, Figure]:
    """The figures of a dynamics model over the rows of `judge_dynamics` and the true actions."""
    return {
        "exact_match": share(row["exact"] for row in rows),
        "rouge1": mean((row["rouge1"] for row in rows), UNIT),
        "rougeL": mean((row["rougeL"] for row in rows), UNIT),
        "bleu": bleu(actions, [row["named"] for row in rows]),
        "confidence": mean((row["confidence"] for row in rows), (-math.inf, 0)),
        **preferences([row["probes"] for row in rows]),
    }
