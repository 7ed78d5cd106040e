"""The dependencies of endpoints, passed to each of them when the application is built."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from typing import Any, Protocol, TypeVar
from uuid import uuid4

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from labeling.policy import Policy
from lake.errors import Refused
from lake.tables import Lake, Rows
from models.protocols import Images
from serve.auth import Guard
from serve.idempotency import Answers
from serve.limits import Limits
from serve.live_writer import WriteFailed
from serve.problems import Problem, busy
from serve.schemas import WriteMode
from serve.soon import Soon
from serve.uploads import Uploads
from serve.videos import Videos

Answer = TypeVar("Answer")


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
    """Writes into the lake."""

    async def write(self, rows: Rows) -> Rows:
        """See `live_writer.LiveWriter.write`, of one request."""
        ...


@dataclass(frozen=True)
class Services:
    """`world_size` is None if no world model is served. `write_here` writes without `writer`, and blocks."""

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
    write_here: Callable[[Rows], object] | None = None

    async def label(self, rows: Rows) -> Rows:
        """Label and verify pairs (`stream.SAMPLES`); returns the rows with action, scores, and `reasons`."""
        # Under ids that nothing else in a batch has: the same pair may be asked for twice at once.
        ids = {str(uuid4()): row["triple_id"] for row in rows}
        asked = [{**row, "triple_id": own} for own, row in zip(ids, rows, strict=True)]
        labeled = await self.models.label(asked)
        return [
            {**row, "triple_id": ids[row["triple_id"]], "reasons": self.policy.reasons(row, row["dataset"])}
            for row in labeled
        ]

    async def write(self, rows: Rows, mode: WriteMode) -> Rows:
        """Write labeled rows; returns them as they are in the lake. Raises Problem if they cannot be written."""
        labeled = [row for row in rows if not row["error_type"]]
        if mode == "no" or not labeled:
            return rows
        if mode == "soon":
            self._soon.add(labeled)
            return rows
        written = {row["triple_id"]: row for row in await self._written(labeled)}
        return [written.get(row["triple_id"], row) for row in rows]

    async def _written(self, rows: Rows) -> Rows:
        try:
            return await self.writer.write(rows)
        except Refused as refused:
            raise Problem(HTTPStatus.CONFLICT, "write", str(refused).splitlines()[0]) from None
        except WriteFailed as failed:
            raise busy(str(failed).splitlines()[0], 5) from None

    async def drain(self) -> None:
        """Write pending `write=soon` rows, because the service is about to end."""
        await self._soon.drain()

    @cached_property
    def _soon(self) -> Soon:
        return Soon(self.writer.write, self.write_here)

    async def within(self, asked_s: float | None, work: Callable[[], Awaitable[Answer]]) -> Answer:
        """Return the answer. Raises Problem if the deadline passes first or no replica can answer."""
        limit = min(asked_s or self.limits.deadline_s, self.limits.deadline_s)
        try:
            async with asyncio.timeout(limit):
                return await work()
        except TimeoutError:
            raise Problem(
                HTTPStatus.GATEWAY_TIMEOUT, "deadline", f"no answer within {limit:g} s: send a smaller request"
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
        labeled: Rows = await self._dynamics.label.remote(rows)
        return labeled

    async def score(self, obs: Images, candidates: Images, action: str) -> Sequence[float]:
        """See `Models`."""
        scores: Sequence[float] = await self._dynamics.score.remote((obs, candidates, action))
        return scores

    async def sample(self, obs: Images, action: str, n: int, seed: int) -> tuple[Images, Images]:
        """See `Models`."""
        assert self._world is not None
        drawn: tuple[Images, Images] = await self._world.sample.remote((obs, action, n, seed))
        return drawn
