"""The models behind the service: Ray Serve deployments that gather requests into batches.

They call what the batch path calls (`labeling.annotate`, `models.verification`), so that a pair is labeled alike live
and in a lake.
"""

from __future__ import annotations

import time
from collections import defaultdict

import numpy as np
import pyarrow as pa
import torch
from ray import serve

from labeling.annotate import LabelPairs
from labeling.stream import SAMPLES, block
from lake.errors import ModelRefused
from lake.tables import Rows
from models.loading import load_dynamics
from models.protocols import Images
from models.settings import ModelSettings, WorldSettings
from models.world_loading import load_world
from serve.limits import Limits

_CHECK_EVERY_S = 30.0
"""A model that has answered this recently is healthy."""
_SMALLER_OR_LARGER = "use a smaller model or a larger GPU"


class Dynamics:
    """Names what happened in frame pairs, and says how likely given actions are."""

    def __init__(self, settings: ModelSettings, device: str, batch_size: int, wait_s: float) -> None:
        """Load the model, and let it label a black pair: what would fail fails before the service is ready."""
        settings = settings.model_copy(update={"batch_size": batch_size})
        self._model = load_dynamics(settings, device, answers_few=True)
        self._label_pairs = LabelPairs(self._model)
        self._answered_at = 0.0
        self.label.set_max_batch_size(batch_size)
        self.label.set_batch_wait_timeout_s(wait_s)
        self.score.set_max_batch_size(batch_size)
        self.score.set_batch_wait_timeout_s(wait_s)
        # On a GPU as many pairs as it will ever see: memory that is too small shows now.
        try:
            self._ask(1 if device == "cpu" else batch_size)
        except torch.OutOfMemoryError:
            # A batch takes the largest request, whatever --batch-size says.
            remedy = "lower --batch-size" if batch_size > Limits().pairs else _SMALLER_OR_LARGER
            raise ModelRefused(f"the GPU has too little memory for {batch_size} pairs: {remedy}") from None

    @serve.batch(batch_size_fn=lambda requests: sum(map(len, requests)))  # type: ignore[untyped-decorator]
    async def label(self, requests: list[Rows]) -> list[Rows]:
        """Label rows with `triple_id`, `obs`, and `next_obs` (encoded) of several requests; each gets its own rows."""
        labeled = self._label_pairs(block([row for rows in requests for row in rows], SAMPLES))
        self._answered_at = time.monotonic()
        return _split(labeled, requests)

    @serve.batch(batch_size_fn=lambda requests: sum(len(images) for _, images, _ in requests))  # type: ignore[untyped-decorator]
    async def score(self, requests: list[tuple[Images, Images, str]]) -> list[list[float]]:
        """Return log p(action | obs, candidate) of each candidate, for each request (obs, candidates, action)."""
        obs = np.concatenate([np.repeat(image[None], len(images), axis=0) for image, images, _ in requests])
        candidates = np.concatenate([images for _, images, _ in requests])
        actions = [action for _, images, action in requests for _ in images]
        scores = self._model.score(obs, candidates, actions)
        self._answered_at = time.monotonic()
        ends = np.cumsum([len(images) for _, images, _ in requests])
        return [part.tolist() for part in np.split(scores, ends[:-1])]

    def check_health(self) -> None:
        """Call the model, unless it has just answered. Ray replaces a replica for which this raises."""
        if time.monotonic() - self._answered_at > _CHECK_EVERY_S:
            self._ask(1)

    def _ask(self, pairs: int) -> None:
        black = np.zeros((pairs, self._model.image_size, self._model.image_size, 3), np.uint8)
        self._model.annotate(black, black)
        self._answered_at = time.monotonic()


def _split(labeled: pa.Table, requests: list[Rows]) -> list[Rows]:
    """Return the rows of every request: a label belongs to the pair whose id it carries."""
    of_pair = {row["triple_id"]: row for row in labeled.to_pylist()}
    if len(of_pair) != sum(map(len, requests)):
        raise RuntimeError("two pairs of a batch have one id")
    return [[of_pair[row["triple_id"]] for row in request] for request in requests]


class World:
    """Draws what an action may lead to."""

    def __init__(self, settings: WorldSettings, device: str, wait_s: float) -> None:
        """Load the model, and let it draw once."""
        self._model = load_world(settings, device)
        self._answered_at = 0.0
        # A request is one observation with its candidates, which is what `batch_size` counts.
        self.sample.set_max_batch_size(settings.batch_size)
        self.sample.set_batch_wait_timeout_s(wait_s)
        # See `Dynamics`.
        observations, candidates = (1, 1) if device == "cpu" else (settings.batch_size, Limits().candidates)
        try:
            self._ask(observations, candidates)
        except torch.OutOfMemoryError:
            remedy = "lower --world-batch-size" if observations > 1 else _SMALLER_OR_LARGER
            raise ModelRefused(
                f"the GPU has too little memory for {observations} observations with {candidates} candidates each: "
                f"{remedy}"
            ) from None

    @serve.batch  # type: ignore[untyped-decorator]
    async def sample(self, requests: list[tuple[Images, str, int, int]]) -> list[tuple[Images, Images]]:
        """Return obs as the model shows it, and n candidates, for each request (obs, action, n, seed).

        What a seed draws depends on no other request.
        """
        of_equal_n: dict[int, list[int]] = defaultdict(list)
        for place, (_, _, n, _) in enumerate(requests):
            of_equal_n[n].append(place)
        drawn: dict[int, tuple[Images, Images]] = {}
        for n, places in of_equal_n.items():
            obs = np.stack([requests[place][0] for place in places])
            actions, seeds = [requests[place][1] for place in places], [requests[place][3] for place in places]
            candidates = self._model.sample(obs, actions, n, seed=seeds)
            drawn |= dict(zip(places, zip(self._model.shown(obs), candidates, strict=True), strict=True))
        self._answered_at = time.monotonic()
        return [drawn[place] for place in range(len(requests))]

    def check_health(self) -> None:
        """See `Dynamics.check_health`."""
        if time.monotonic() - self._answered_at > _CHECK_EVERY_S:
            self._ask(1, 1)

    def _ask(self, observations: int, candidates: int) -> None:
        black = np.zeros((observations, self._model.image_size, self._model.image_size, 3), np.uint8)
        self._model.sample(black, ["nothing happens"] * observations, candidates)
        self._answered_at = time.monotonic()
