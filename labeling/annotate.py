"""The labeling stage: a dynamics model names the action of every frame pair and scores its own answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from labeling.evidence import Evidence
from labeling.images import decode_images
from labeling.stream import LABELED, block
from labeling.verifiers import scores
from lake.errors import Refused
from lake.failures import Failure
from lake.metrics import MODEL_SECONDS, PAIRS, STAGE_SECONDS, TOKENS
from models.loading import load_dynamics
from models.protocols import DynamicsModel
from models.settings import ModelSettings


class Annotate:
    """A Ray actor that holds a model: see `LabelPairs`. What it labels goes through `finish` before it leaves."""

    def __init__(self, settings: ModelSettings, finish: Sequence[Callable[[pa.Table], pa.Table]] = ()) -> None:
        self._finish = finish
        self._refusal: Refused | None = None
        try:
            self._label = LabelPairs(load_dynamics(settings), source="label")
        except Refused as refusal:
            # Ray tells of a constructor that raises in words only; of a call that raises it hands on the exception.
            self._refusal = refusal

    def __call__(self, samples: pa.Table) -> pa.Table:
        """Label `SAMPLES`: the same rows come back with action and scores (`LABELED`), or what `finish` makes of them.

        Raises Refused where the model could not be loaded.
        """
        if self._refusal:
            raise self._refusal
        with STAGE_SECONDS.timed(stage="annotate", source="label"):
            labeled = self._label(samples)
        PAIRS.record(pc.count(labeled["action"]).as_py(), outcome="labeled")
        for step in self._finish:
            labeled = step(labeled)
        return labeled


_OF_PAIR = ["triple_id", "obs", "next_obs", "motion", "camera_motion"]


class LabelPairs:
    """Labels frame pairs by a model, and scores the labels by the verifiers."""

    def __init__(self, model: DynamicsModel, source: Literal["label", "live"] = "live") -> None:
        self._model, self._source = model, source

    def __call__(self, samples: pa.Table) -> pa.Table:
        """Label the rows of a block (`SAMPLES`) that hold a pair; every row comes back (`LABELED`), in order."""
        pairs = samples.filter(pc.is_valid(samples["obs"])).select(_OF_PAIR).to_pylist()
        labels = self._label(pairs)
        rows = samples.to_pylist()
        for row in rows:
            if row["obs"] is not None:
                row.update(labels[row["triple_id"]])
        return block(rows, LABELED)

    def _label(self, pairs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Columns to set, by the id of the pair. A failed pair never affects other pairs.

        Raises whatever the model raises when no pair goes through alone, and a black one does not either: then the
        model is at fault.
        """
        if not pairs:
            return {}
        try:
            return self._label_batch(pairs)
        except Exception:
            labels = {pair["triple_id"]: self._label_alone(pair) for pair in pairs}
            if all("error_type" in label for label in labels.values()) and not self._answers(pairs[0]["obs"]):
                raise
            return labels

    def _label_alone(self, pair: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._label_batch([pair])[pair["triple_id"]]
        except Exception as error:
            return Failure.of(error, scope="pair", stage="annotate").to_row()

    def _answers(self, image: bytes) -> bool:
        """Return whether the model names anything for a black pair of the size of an encoded image."""
        try:
            black = np.zeros_like(decode_images([image]))
        except ValueError:
            return True
        try:
            self._model.annotate(black, black)
        except Exception:
            return False
        return True

    def _label_batch(self, pairs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        evidence = Evidence(self._model, pairs)
        with MODEL_SECONDS.timed(source=self._source):
            found = scores(evidence)
        TOKENS.record(sum(annotation.tokens for annotation in evidence.annotations), source=self._source)
        return {
            pair["triple_id"]: {"action": action, **row}
            for pair, action, row in zip(pairs, evidence.actions, found, strict=True)
        }
