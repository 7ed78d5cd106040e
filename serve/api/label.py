"""`/v1/label`: what happened between two frames."""

from __future__ import annotations

import binascii
from collections.abc import Awaitable, Callable
from hashlib import sha256
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from lake.ids import triple_id, upload_columns
from lake.scores import NAMES
from serve.keys import Key
from serve.problems import Problem, bad_request, responses
from serve.queries import asked
from serve.schemas import Label, LabelIn, LabelOut, WriteMode, json_or_files
from serve.services import Services
from serve.uploads import Pair

Deadline = Annotated[float | None, Header(ge=1, le=3600, description="seconds to answer within")]
Write = Annotated[
    WriteMode | None,
    Query(description="whether the labels go into the lake; durable: before the answer. Default: no, or by the key"),
]


def router(services: Services) -> APIRouter:
    """Return the endpoints."""
    api = APIRouter(tags=["label"], dependencies=[Depends(services.guard.require("label"))])

    @api.post(
        "/v1/label",
        summary="Name the action between two frames, of one or several pairs",
        responses=responses(400, 401, 403, 409, 413, 415, 422, 429, 503, 504),
        openapi_extra=json_or_files(LabelIn, "obs", "next_obs"),
    )
    async def label(
        request: Request,
        x_deadline_s: Deadline = None,
        write: Write = None,
        idempotency_key: Annotated[
            str | None,
            Header(min_length=1, max_length=200, description="with write: the same key gets the same answer for a day"),
        ] = None,
    ) -> LabelOut:
        contents = await _contents(request, services)
        mode = write_mode(request, write)
        digests = [(sha256(obs).digest(), sha256(next_obs).digest()) for obs, next_obs in contents]

        async def work() -> LabelOut:
            pairs = await services.uploads.pairs(contents)
            rows = [_row(pair, upload, services) for pair, upload in zip(pairs, digests, strict=True)]
            rows = await services.write(await services.label(rows), mode)
            labels = [as_label(row) for row in rows]
            return LabelOut(labeler_id=services.labeler_id, policy_id=services.policy.id, write=mode, labels=labels)

        if idempotency_key is None:
            return await services.within(x_deadline_s, work)
        if mode == "no":
            raise bad_request("idempotency-key", "an Idempotency-Key is for requests that write: add ?write=durable")
        same = sha256(repr((mode, digests)).encode()).hexdigest()
        return await services.within(x_deadline_s, lambda: _once(request, services, idempotency_key, same, work))

    return api


def write_mode(request: Request, write: WriteMode | None) -> WriteMode:
    """Return the mode that the request asks for, else the default of its key."""
    key: Key | None = getattr(request.state, "key", None)
    return write or ("durable" if key and key.write else "no")


async def _once(
    request: Request, services: Services, key: str, same: str, work: Callable[[], Awaitable[LabelOut]]
) -> LabelOut:
    client: Key | None = getattr(request.state, "key", None)
    who = client.key_id if client else ""
    kept = await asked(lambda: services.answers.find(who, key, same))
    if kept is not None:
        return LabelOut.model_validate_json(kept)
    answer = await work()
    await asked(lambda: services.answers.keep(who, key, same, answer.model_dump_json()))
    return answer


async def _contents(request: Request, services: Services) -> list[tuple[bytes, bytes]]:
    kind = media_type(request)
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
    raise unsupported(request)


def media_type(request: Request) -> str:
    """Return the content type of a request without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def unsupported(request: Request) -> Problem:
    """Return the problem for a request whose content type is not supported."""
    return Problem(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "media-type",
        f"{media_type(request) or 'no content type'}: send application/json or multipart/form-data",
    )


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc']) or 'body'}: {first['msg']}"
    return str(error)


def _row(pair: Pair, digests: tuple[bytes, bytes], services: Services) -> dict[str, Any]:
    upload = upload_columns(*digests)
    return {
        **upload,
        "triple_id": triple_id(upload["video_id"], 0, 1, services.labeler_id),
        "obs_pts": 0,
        "next_pts": 1,
        "obs": pair.obs,
        "next_obs": pair.next_obs,
        "motion": pair.motion,
        "camera_motion": pair.camera_motion,
    }


def as_label(row: dict[str, Any]) -> Label:
    """Return a labeled and verified row as the API has it."""
    scores = {name: row[name] for name in NAMES}
    common: dict[str, Any] = {"triple_id": row["triple_id"], "scores": scores}
    if row["error_type"]:
        return Label(action=None, confidence=None, verdict="failed", reasons=[row["message"]], **common)
    verdict = "rejected" if row["reasons"] else "accepted"
    return Label(action=row["action"], confidence=row["confidence"], verdict=verdict, reasons=row["reasons"], **common)
