"""The evidence on a batch of frame pairs. Every call of the model that a score needs is here, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from labeling.images import decode_images
from models.protocols import Annotation, DynamicsModel, Images

Values = npt.NDArray[np.floating[Any]]
"""A number for each pair, shape (batch,); NaN where there is none."""

Answers = TypeVar("Answers", list[Annotation], Values)


class Evidence:
    """The images of frame pairs, and what a model says of them.

    The model is called when a verifier first asks for the answer, and the answer is kept for the others. Log-
    probabilities are natural, mean per token of the action and its end, float32.
    """

    def __init__(self, model: DynamicsModel, pairs: Sequence[Mapping[str, Any]]) -> None:
        """Decode the images of `pairs`, which have `obs` and `next_obs`, and `motion` and `camera_motion` if known.

        Raises ValueError for bytes that are not an image, or for different sizes.
        """
        self._model = model
        self.obs: Images = decode_images([pair["obs"] for pair in pairs])
        self.next_obs: Images = decode_images([pair["next_obs"] for pair in pairs])
        # Measured while the frames were sampled, on larger pictures than these.
        self.motion, self.camera_motion = (
            np.array([pair.get(name) for pair in pairs], np.float64) for name in ("motion", "camera_motion")
        )

    def __len__(self) -> int:
        return len(self.obs)

    @cached_property
    def annotations(self) -> list[Annotation]:
        """The model's answer for each pair."""
        return self._for_each(self._model.annotate(self.obs, self.next_obs))

    @cached_property
    def actions(self) -> list[str]:
        """The action that the model names."""
        return [annotation.action for annotation in self.annotations]

    @cached_property
    def forward(self) -> Values:
        """log p(action | obs, next_obs)."""
        return np.array([annotation.mean_logprob for annotation in self.annotations], np.float32)

    @cached_property
    def reversed(self) -> Values:
        """log p(action | next_obs, obs): the same action for the reversed pair."""
        return self._for_each(self._model.score(self.next_obs, self.obs, self.actions))

    @cached_property
    def unchanged(self) -> Values:
        """log p(action | obs, obs): the same action where nothing changes."""
        return self._for_each(self._model.score(self.obs, self.obs, self.actions))

    def _for_each(self, answers: Answers) -> Answers:
        # One answer too few would put the others on wrong pairs, or be broadcast to all of them.
        if len(answers) != len(self):
            raise ValueError(f"the model gave {len(answers)} answers for {len(self)} pairs")
        return answers
