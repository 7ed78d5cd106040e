"""A client of the API: typed answers, and patience where a service is busy.

with Client("http://127.0.0.1:8000", key="wl_...") as client:
    for label in client.label([(before, after)]).labels:
        print(label.action, label.verdict)
"""

from __future__ import annotations

import base64
import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx
from pydantic import BaseModel

from lake.errors import WorldlakeError
from lake.retry import Schedule, retry, seconds_asked
from serve.lake_schemas import Decided, TriplesPage
from serve.problems import ProblemDocument
from serve.schemas import LabelerOut, LabelOut, PredictOut, SqlOut, VideoTriple, WriteMode

Out = TypeVar("Out", bound=BaseModel)

_BUSY = frozenset({429, 502, 503})
"""Answers after which the same request may do later. Not 504: it was given up, and will be again."""


class ServiceError(WorldlakeError):
    """The service did not answer as asked; `problem` is what it said, and when to ask again, if it said that."""

    def __init__(self, problem: ProblemDocument, retry_after_s: float = 0) -> None:
        super().__init__(f"{problem.title}: {problem.detail}")
        self.problem, self.retry_after_s = problem, retry_after_s


class Client:
    """Asks one service. Images are the bytes of JPEG, PNG or WebP files.

    `url` may be the address that `worldlake serve` prints where a lake has no keys; the token in it is the key.

    Every method raises ServiceError where the service refuses, and httpx.TransportError where it is not there; both
    after `attempts` tries where waiting may help, which takes half a minute by default.
    """

    def __init__(self, url: str, key: str | None = None, *, timeout_s: float = 60, attempts: int = 6) -> None:
        asked = httpx.URL(url)
        key = key or asked.params.get("token")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=asked.copy_with(query=None), headers=headers, timeout=timeout_s)
        self._schedule = Schedule(tuple(0.5 * 2**number for number in range(attempts - 1)))

    def label(
        self,
        pairs: Sequence[tuple[bytes, bytes]],
        *,
        write: WriteMode | None = None,
        idempotency_key: str | None = None,
    ) -> LabelOut:
        """Name the action between the images of each pair. `write`: into the lake or not; None: as for the key.

        A pair is written once, however often it is asked for; under an `idempotency_key`, which is for requests that
        write, it also gets the same answer for a day.
        """
        asked = [{"obs": _text(obs), "next_obs": _text(next_obs)} for obs, next_obs in pairs]
        wanted = {"write": write} if write else {}
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._ask(LabelOut, "POST", "/v1/label", params=wanted, json={"pairs": asked}, headers=headers)

    def label_video(
        self, video: Path | str, *, write: WriteMode | None = None
    ) -> Generator[VideoTriple, None, dict[str, int]]:
        """Name what happens in a video, a file or an `s3://` uri, pair by pair as it is found out; returns the sums.

        Raises ServiceError also in the middle, where the service breaks off. Tried once only, as half may have been
        told.
        """
        wanted = {"write": write} if write else {}
        with ExitStack() as stack:
            if isinstance(video, str):
                body: dict[str, Any] = {"json": {"uri": video}}
            else:
                body = {"files": {"video": stack.enter_context(video.open("rb"))}}
            answer = stack.enter_context(self._http.stream("POST", "/v1/label/video", params=wanted, **body))
            if not answer.is_success:
                answer.read()
                raise ServiceError(_problem(answer))
            event = ""
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if name == "event":
                    event = value
                elif name == "data" and event == "triple":
                    yield VideoTriple.model_validate_json(value)
                elif name == "data" and event == "problem":
                    raise ServiceError(ProblemDocument.model_validate_json(value))
                elif name == "data":
                    sums: dict[str, int] = json.loads(value)
                    return sums
        raise httpx.RemoteProtocolError("the service ended before the video did")

    def predict(
        self, image: bytes, action: str, *, n: int = 4, seed: int = 0, all_candidates: bool = False
    ) -> PredictOut:
        """Draw what an action leads to: the best of n candidates by verification."""
        asked = {"image": _text(image), "action": action, "n": n, "seed": seed, "all_candidates": all_candidates}
        return self._ask(PredictOut, "POST", "/v1/predict", json=asked)

    def triples(self, **filters: str | float) -> Iterator[Decided]:
        """Triples under filters (dataset, labeler, video, action, min_confidence), fetched a page at a time."""
        after: dict[str, str] = {}
        while True:
            page = self._ask(TriplesPage, "GET", "/v1/triples", params={**filters, **after})
            yield from page.triples
            if page.next is None:
                return
            after = {"after": page.next}

    def image(self, triple_id: str, which: Literal["obs", "next_obs"] = "obs") -> bytes:
        """Return the JPEG of an image of a triple."""
        return self._answer("GET", f"/v1/triples/{triple_id}/{which}.jpg").content

    def sql(self, sql: str) -> SqlOut:
        """One SELECT over the tables of the lake."""
        return self._ask(SqlOut, "POST", "/v1/sql", json={"sql": sql})

    def labelers(self) -> list[LabelerOut]:
        """Who has labeled in this lake."""
        return [LabelerOut.model_validate(row) for row in self._answer("GET", "/v1/labelers").json()]

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, kind: type[Out], method: str, path: str, **arguments: Any) -> Out:
        return kind.model_validate_json(self._answer(method, path, **arguments).content)

    def _answer(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        def ask() -> httpx.Response:
            answer = self._http.request(method, path, **arguments)
            if not answer.is_success:
                raise ServiceError(_problem(answer), seconds_asked(answer.headers.get("Retry-After")))
            return answer

        return retry(ask, self._schedule, _may_pass)


def _may_pass(error: Exception) -> bool:
    if isinstance(error, ServiceError):
        return error.problem.status in _BUSY
    # Also in the middle of an answer: whatever is asked here may be asked twice.
    return isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError)


def _problem(answer: httpx.Response) -> ProblemDocument:
    """Return what was said; also by what stands before a service and knows no problem documents."""
    try:
        return ProblemDocument.model_validate_json(answer.content)
    except ValueError:
        return ProblemDocument(
            type="about:blank",
            title=answer.reason_phrase or "no reason given",
            status=answer.status_code,
            detail=answer.text[:200],
            instance=answer.request.url.path,
        )


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
