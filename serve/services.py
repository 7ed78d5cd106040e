"""What endpoints work with; handed to each of them when the application is built."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol, TypeVar

from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from labeling.policy import Policy
from lake.tables import Lake
from models.protocols import Images
from serve.guard import Guard
from serve.problems import Problem, busy
from serve.replicas import Rows
from serve.settings import Limits
from serve.uploads import Uploads

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


@dataclass(frozen=True)
class Services:
    """`world_size` is None where no world model is served."""

    lake: Lake
    models: Models
    guard: Guard
    uploads: Uploads
    policy: Policy
    labeler_id: str
    dynamics_size: int
    world_size: int | None
    limits: Limits

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
        except DeploymentUnavailableError:
            raise busy("the model is being restarted", 5) from None


class Remote:
    """`Models` behind Ray Serve handles."""

    def __init__(self, dynamics: Any, world: Any | None) -> None:
        self._dynamics, self._world = dynamics, world

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
