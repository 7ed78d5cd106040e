"""Errors as RFC 9457 problem details: one shape for all of them, machine readable, with the remedy in words."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException


class Problem(Exception):
    """A request that cannot be answered. `kind` is stable, for programs; `detail` says what to do about it."""

    def __init__(self, status: HTTPStatus, kind: str, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail, self.headers = status, kind, detail, headers or {}

    def document(self, instance: str) -> dict[str, Any]:
        """Return the problem document of a request at the path `instance`."""
        return {
            "type": f"urn:worldlake:problem:{self.kind}",
            "title": self.status.phrase,
            "status": self.status.value,
            "detail": self.detail,
            "instance": instance,
        }

    def response(self, instance: str) -> JSONResponse:
        """Return the answer to a request at the path `instance`."""
        return JSONResponse(
            self.document(instance), self.status.value, self.headers, media_type="application/problem+json"
        )


class ProblemDocument(BaseModel):
    """RFC 9457: what every error looks like."""

    type: str = Field(description="stable, for programs", examples=["urn:worldlake:problem:image"])
    title: str = Field(examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["pairs[0].obs is not an image: send JPEG, PNG or WebP"])
    instance: str = Field(examples=["/v1/label"])


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the errors of an endpoint for the OpenAPI document."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def bad_request(kind: str, detail: str) -> Problem:
    """Return the problem of a request that is well-formed but cannot be served."""
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, kind, detail)


def busy(detail: str, retry_after_s: float = 1.0) -> Problem:
    """Return the problem of a service that is overloaded; the same request may succeed later."""
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "busy", detail, {"Retry-After": f"{max(1, round(retry_after_s))}"})


def too_large(most: int) -> Problem:
    """Return the problem of a body that is too large."""
    return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body", f"a request has at most {most:,} bytes")


def internal() -> Problem:
    """Return the problem of an error of the service itself."""
    return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "the service failed; its log says why")


def install(app: FastAPI) -> None:
    """Answer every error of an application with a problem document."""

    @app.exception_handler(Problem)
    async def _problem(request: Request, problem: Problem) -> JSONResponse:
        return problem.response(request.url.path)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        return bad_request("invalid", f"{where}: {first['msg']}").response(request.url.path)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        status = HTTPStatus(error.status_code)
        kind = status.phrase.lower().replace(" ", "-")
        return Problem(status, kind, str(error.detail), dict(error.headers or {})).response(request.url.path)

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> JSONResponse:
        return internal().response(request.url.path)
