"""The pages and what belongs to them. They hold no data and need no key; the endpoints that they ask do."""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import jinja2
from fastapi import APIRouter, FastAPI, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

from lake.scores import SCORES
from serve.auth import COOKIE
from serve.problems import Problem
from serve.services import Services

# Path to template. What a page is about it takes from its own address.
_PAGES = {
    "/": "overview",
    "/triples": "triples",
    "/rejected": "rejected",
    "/videos": "videos",
    "/videos/{video_id}": "video",
    "/runs": "runs",
    "/runs/{run_id}": "run",
    "/live": "live",
}
_SCORES = [{"name": score.name, "label": score.label, "keep": score.keep} for score in SCORES]
# Revalidated every time, which costs a 304: otherwise a browser guesses how long it may keep an old version.
_NO_CACHE = {"Cache-Control": "no-cache"}

_Key = Annotated[str, Form(max_length=200)]
_Next = Annotated[str, Form(max_length=2000)]


class _Static(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_NO_CACHE)
        return response


def install(app: FastAPI, services: Services) -> None:
    """Add the pages to an application."""
    app.mount("/static", _Static(directory=Path(__file__).parent / "static"))
    app.include_router(_router(services))


def _router(services: Services) -> APIRouter:
    pages = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("serve.explorer"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )

    def rendered(request: Request, name: str, status: int = 200, **values: Any) -> HTMLResponse:
        content = environment.get_template(f"{name}.html").render(
            page=name,
            signed_in=COOKIE in request.cookies,
            predicts=services.world_size is not None,
            known_scores=_SCORES,
            **values,
        )
        return HTMLResponse(content, status, _NO_CACHE)

    async def entered(request: Request, token: str, next: str) -> Response:
        try:
            await services.guard.sign_in(request, token)
        except Problem as problem:
            return rendered(request, "login", problem.status, next=_within(next), problem=problem.detail)
        response = RedirectResponse(_within(next), HTTPStatus.SEE_OTHER)
        # A proxy that ends TLS says so; a client that says so only keeps the cookie from itself.
        is_https = "https" in (request.url.scheme, request.headers.get("X-Forwarded-Proto", ""))
        response.set_cookie(COOKIE, token.strip(), httponly=True, secure=is_https, samesite="strict")
        return response

    for path, name in _PAGES.items():

        async def page(request: Request, name: str = name) -> Response:
            if token := request.query_params.get("token"):
                # Away from the address, which is kept in a history and may be shown to others.
                url = request.url.remove_query_params("token")
                return await entered(request, token, f"{url.path}?{url.query}".rstrip("?"))
            return rendered(request, name)

        # Not as a decorator: FastAPI would take `name` for a parameter of the request.
        pages.add_route(path, page, methods=["GET"])

    @pages.get("/login")
    async def login(request: Request, next: Annotated[str, Query(max_length=2000)] = "/") -> Response:
        return rendered(request, "login", next=_within(next))

    @pages.post("/login")
    async def sign_in(request: Request, key: _Key = "", next: _Next = "/") -> Response:
        return await entered(request, key, next)

    @pages.post("/logout")
    async def log_out(request: Request) -> Response:
        response = RedirectResponse("/login", HTTPStatus.SEE_OTHER, {"Clear-Site-Data": '"cache"'})
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response

    return pages


def _within(path: str) -> str:
    """Return the path if it is on this site, else the front page."""
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() else "/"
