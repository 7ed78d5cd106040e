"""Answers kept under the `Idempotency-Key` of their request, so that a repeated request gets the same answer."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from http import HTTPStatus

from lake.storage import join
from lake.tables import Lake
from serve.problems import Problem


class Answers:
    """Keeps answers for one to two days, in `<lake>/_serve/answers/<day>/`."""

    def __init__(self, lake: Lake) -> None:
        self._storage, self._folder = lake.storage, join(lake.uri, "_serve/answers")
        self._swept = ""

    def find(self, who: str, key: str, request: str) -> str | None:
        """Return the answer to the same request of the same client under this key; None if there is none.

        Raises Problem (422) if the key came with another request.
        """
        for day in _days():
            content = self._storage.get(self._uri(day, who, key))
            if content is None:
                continue
            kept = json.loads(content)
            if kept["request"] != request:
                detail = "this Idempotency-Key came with another request: take a new one for every request"
                raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "idempotency-key", detail)
            return str(kept["answer"])
        return None

    def keep(self, who: str, key: str, request: str, answer: str) -> None:
        """Keep an answer."""
        today = _days()[0]
        self._storage.put(self._uri(today, who, key), json.dumps({"request": request, "answer": answer}).encode())
        if self._swept != today:
            self._swept = today
            self._sweep()

    def _sweep(self) -> None:
        for page in self._storage.pages(self._folder):
            for entry in page:
                if entry.uri.rsplit("/", 2)[-2] not in _days():
                    self._storage.delete(entry.uri)

    def _uri(self, day: str, who: str, key: str) -> str:
        name = hashlib.sha256(f"{who}\0{key}".encode()).hexdigest()
        return join(self._folder, day, f"{name}.json")


def _days() -> list[str]:
    today = dt.datetime.now(dt.UTC).date()
    return [str(today), str(today - dt.timedelta(days=1))]
