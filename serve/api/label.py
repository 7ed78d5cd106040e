"""`/v1/label`: what happened between two frames."""

from __future__ import annotations

import base64
import binascii
from http import HTTPStatus
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Depends, Header, Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from serve.problems import Problem, bad_request, responses
from serve.schemas import Label, LabelIn, LabelOut
from serve.services import Services
from serve.uploads import Pair

_SCORES = ("motion", "camera_motion", "direction", "copy", "text")
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": LabelIn.model_json_schema(ref_template="#/components/schemas/{model}")},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["obs", "next_obs"],
                    "properties": {name: {"type": "string", "format": "binary"} for name in ("obs", "next_obs")},
                }
            },
        },
    }
}


def router(services: Services) -> APIRouter:
    """The endpoints."""
    api = APIRouter(tags=["label"], dependencies=[Depends(services.guard.require("label"))])

    @api.post(
        "/v1/label",
        summary="Name the action between two frames, of one or several pairs",
        responses=responses(400, 401, 403, 413, 415, 422, 429, 503, 504),
        openapi_extra=_BODY,
    )
    async def label(
        request: Request,
        x_deadline_s: Annotated[float | None, Header(ge=1, le=3600, description="seconds to answer within")] = None,
    ) -> LabelOut:
        contents = await _contents(request, services)

        async def work() -> list[Label]:
            pairs = await services.uploads.pairs(contents)
            labelled = await services.models.label([_row(pair) for pair in pairs])
            return [_label(row, services) for row in labelled]

        labels = await services.within(x_deadline_s, work)
        return LabelOut(labeler_id=services.labeler_id, policy_id=services.policy.id, labels=labels)

    return api


async def _contents(request: Request, services: Services) -> list[tuple[bytes, bytes]]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        try:
            pairs = LabelIn.model_validate_json(await request.body()).pairs
        except (ValidationError, binascii.Error) as error:
            raise bad_request("invalid", _first(error)) from None
        if len(pairs) > services.limits.pairs:
            raise bad_request("too-many-pairs", f"{len(pairs)} pairs: send at most {services.limits.pairs} at once")
        return [(pair.obs, pair.next_obs) for pair in pairs]
    if kind == "multipart/form-data":
        form = await request.form(max_files=2, max_fields=0)
        files = [form.get(name) for name in ("obs", "next_obs")]
        if not all(isinstance(file, UploadFile) for file in files):
            raise bad_request("invalid", "send two files, obs and next_obs")
        obs, next_obs = [await file.read() for file in files if isinstance(file, UploadFile)]
        return [(obs, next_obs)]
    raise Problem(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "media-type",
        f"{kind or 'no content type'}: send application/json or multipart/form-data",
    )


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc']) or 'body'}: {first['msg']}"
    return str(error)


def _row(pair: Pair) -> dict[str, Any]:
    # An id that no other request in a batch has: by it labels find their way back.
    return {
        "triple_id": str(uuid4()),
        "obs": pair.obs,
        "next_obs": pair.next_obs,
        "motion": pair.motion,
        "camera_motion": pair.camera_motion,
    }


def _label(row: dict[str, Any], services: Services) -> Label:
    scores = {name: row[name] for name in _SCORES}
    if row["error_type"]:
        return Label(action=None, confidence=None, scores=scores, verdict="failed", reasons=[row["message"]])
    reasons = services.policy.reasons(row, None)
    verdict = "rejected" if reasons else "accepted"
    return Label(action=row["action"], confidence=row["confidence"], scores=scores, verdict=verdict, reasons=reasons)


def encoded(content: bytes) -> str:
    """Bytes as JSON has them."""
    return base64.b64encode(content).decode()
