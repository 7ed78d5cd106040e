"""What endpoints work with; handed to each of them when the application is built."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Protocol, TypeVar
from uuid import uuid4

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from labeling.policy import Policy
from lake.errors import Refused
from lake.tables import Lake
from models.protocols import Images
from serve.answers import Answers
from serve.guard import Guard
from serve.problems import Problem, busy
from serve.replicas import Rows
from serve.schemas import WriteMode
from serve.settings import Limits
from serve.uploads import Uploads
from serve.videos import Videos
from serve.writing import WriteFailed

Answer = TypeVar("Answer")

_MOST_UNWRITTEN = 4096
"""Rows that are promised to be written soon: a lake that is away must not fill the memory."""

log = logging.getLogger("serve.writing")


class Models(Protocol):
    """The models, wherever they run."""

    async def label(self, rows: Rows) -> Rows:
        """See `replicas.Dynamics.label`, of one request."""
        ...

    async def score(self, obs: Images, candidates: Images, action: str) -> Sequence[float]:
        """See `replicas.Dynamics.score`, of one request."""
        ...

    async def sample(self, obs: Images, action: str, n: int, seed: int) -> tuple[Images, Images]:
        """See `replicas.World.sample`, of one request."""
        ...


class Writing(Protocol):
    """Whoever writes into the lake."""

    async def write(self, rows: Rows) -> Rows:
        """See `writing.Writer.write`, of one request."""
        ...


@dataclass(frozen=True)
class Services:
    """`world_size` is None where no world model is served."""

    lake: Lake
    models: Models
    writer: Writing
    answers: Answers
    guard: Guard
    uploads: Uploads
    videos: Videos
    policy: Policy
    labeler_id: str
    dynamics_size: int
    world_size: int | None
    limits: Limits
    _unwritten: dict[asyncio.Task[Rows], int] = field(default_factory=dict)

    async def label(self, rows: Rows) -> Rows:
        """Label and verify pairs (`stream.SAMPLES`): the same rows with action, scores and `reasons`."""
        # Under ids that nothing else in a batch has: the same pair may be asked for twice at once.
        ids = {str(uuid4()): row["triple_id"] for row in rows}
        asked = [{**row, "triple_id": own} for own, row in zip(ids, rows, strict=True)]
        labelled = await self.models.label(asked)
        return [
            {**row, "triple_id": ids[row["triple_id"]], "reasons": self.policy.reasons(row, row["dataset"])}
            for row in labelled
        ]

    async def write(self, rows: Rows, mode: WriteMode) -> Rows:
        """Write labelled rows; returns them as they are in the lake. Raises Problem where they cannot be written."""
        labelled = [row for row in rows if not row["error_type"]]
        if mode == "no" or not labelled:
            return rows
        if mode == "soon":
            self._write_later(labelled)
            return rows
        written = {row["triple_id"]: row for row in await self._written(labelled)}
        return [written.get(row["triple_id"], row) for row in rows]

    async def _written(self, rows: Rows) -> Rows:
        try:
            return await self.writer.write(rows)
        except Refused as refused:
            raise Problem(HTTPStatus.CONFLICT, "write", str(refused).splitlines()[0]) from None
        except WriteFailed as failed:
            raise busy(str(failed).splitlines()[0], 5) from None

    def _write_later(self, rows: Rows) -> None:
        if sum(self._unwritten.values()) + len(rows) > _MOST_UNWRITTEN:
            raise busy("too many labels wait to be written", 5)
        task = asyncio.create_task(self._written(rows))
        self._unwritten[task] = len(rows)
        task.add_done_callback(self._forget_task)

    def _forget_task(self, task: asyncio.Task[Rows]) -> None:
        rows = self._unwritten.pop(task)
        if not task.cancelled() and (error := task.exception()):
            log.warning("%d labels that were to be written soon are not: %s", rows, error)

    async def within(self, asked_s: float | None, work: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer, within the deadline. Raises Problem where there is none in time, or nobody to give it."""
        limit = min(asked_s or self.limits.deadline_s, self.limits.deadline_s)
        try:
            async with asyncio.timeout(limit):
                return await work()
        except TimeoutError:
            raise Problem(
                HTTPStatus.GATEWAY_TIMEOUT, "deadline", f"there was no answer within {limit:g} s: ask for less"
            ) from None
        except BackPressureError:
            raise busy("too many requests wait for the model") from None
        except (DeploymentUnavailableError, RayActorError):
            # Ray asks another replica where the request had not got to the one that died.
            raise busy("the model is being restarted", 5) from None


class Remote:
    """`Models` and `Writing` behind Ray Serve handles."""

    def __init__(self, dynamics: Any, world: Any | None, writer: Any) -> None:
        self._dynamics, self._world, self._writer = dynamics, world, writer

    async def write(self, rows: Rows) -> Rows:
        """See `Writing`."""
        written: Rows = await self._writer.write.remote(rows)
        return written

    async def label(self, rows: Rows) -> Rows:
        """See `Models`."""
        labelled: Rows = await self._dynamics.label.remote(rows)
        return labelled

    async def score(self, obs: Images, candidates: Images, action: str) -> Sequence[float]:
        """See `Models`."""
        scores: Sequence[float] = await self._dynamics.score.remote((obs, candidates, action))
        return scores

    async def sample(self, obs: Images, action: str, n: int, seed: int) -> tuple[Images, Images]:
        """See `Models`."""
        assert self._world is not None
        drawn: tuple[Images, Images] = await self._world.sample.remote((obs, action, n, seed))
        return drawn
