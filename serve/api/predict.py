"""`/v1/predict`: what an action will lead to, verified."""

from __future__ import annotations

import math
from typing import Annotated

import cv2
import numpy as np
from fastapi import APIRouter, Depends, Header

from labeling.images import decode_images
from models.verification import resized
from serve.problems import bad_request, responses
from serve.schemas import Candidate, PredictIn, PredictOut, encoded
from serve.services import Services


def router(services: Services) -> APIRouter:
    """Return the endpoints."""
    api = APIRouter(tags=["predict"], dependencies=[Depends(services.guard.require("predict"))])

    @api.post(
        "/v1/predict",
        summary="Draw what an action leads to, and choose by verification",
        responses=responses(400, 401, 403, 413, 415, 422, 429, 503, 504),
    )
    async def predict(
        asked: PredictIn,
        x_deadline_s: Annotated[float | None, Header(ge=1, le=3600, description="seconds to answer within")] = None,
    ) -> PredictOut:
        if asked.n > services.limits.candidates:
            raise bad_request("too-many-candidates", f"n {asked.n}: ask for at most {services.limits.candidates}")
        return await services.within(x_deadline_s, lambda: _predict(asked, services))

    return api


async def _predict(asked: PredictIn, services: Services) -> PredictOut:
    assert services.world_size is not None
    obs = decode_images(await services.uploads.images([asked.image]))
    small = resized(obs, services.world_size)[0]
    shown, candidates = await services.models.sample(small, asked.action, asked.n, asked.seed)
    # As `models.verification.predict`, whose two calls go to two replicas here.
    before, after = (resized(images, services.dynamics_size) for images in (shown[None], candidates))
    scores = await services.models.score(before[0], after, asked.action)
    # NaN would win: to numpy it is the largest of all.
    best = int(np.nan_to_num(np.array(scores), nan=-np.inf).argmax())
    drawn = [
        Candidate(image=encoded(_png(image)), score=score if math.isfinite(score) else None)
        for image, score in zip(candidates, scores, strict=True)
    ]
    return PredictOut(best=drawn[best], candidates=drawn if asked.all_candidates else None)


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()
