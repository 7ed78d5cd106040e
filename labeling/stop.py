"""A wish to stop that every worker can see: they finish what they have begun and begin nothing else."""

from __future__ import annotations

import math
import time

import ray
from ray.actor import ActorHandle

# A worker that cannot learn it in this time (the flag's node died) goes on.
_ANSWER_S = 5.0


class _Flag:
    def __init__(self) -> None:
        self._raised = False
        self._asked_at = time.monotonic()

    def raise_(self) -> None:
        self._raised = True

    def is_raised(self) -> bool:
        self._asked_at = time.monotonic()
        return self._raised

    def quiet_s(self) -> float:
        return time.monotonic() - self._asked_at


class Stop:
    """The flag of one run, by name: a handle among the arguments of an actor would keep it from being restarted."""

    def __init__(self, run_id: str) -> None:
        self._name = f"stop-{run_id}"
        self._seen = False

    def create(self) -> ActorHandle:
        """Put the flag up; it lives as long as the driver, which keeps what this returns."""
        return ray.remote(num_cpus=0, max_restarts=-1)(_Flag).options(name=self._name).remote()

    def request(self) -> None:
        """Ask for it."""
        self._seen = True
        ray.get(ray.get_actor(self._name).raise_.remote())

    def quiet_s(self) -> float:
        """Seconds since a worker last asked, which those that decode do after every segment: their sign of life."""
        try:
            return float(ray.get(ray.get_actor(self._name).quiet_s.remote(), timeout=_ANSWER_S))
        except (ValueError, ray.exceptions.RayError):
            return math.inf

    def requested(self) -> bool:
        """Whether it was asked for."""
        if not self._seen:
            try:
                self._seen = bool(ray.get(ray.get_actor(self._name).is_raised.remote(), timeout=_ANSWER_S))
            except (ValueError, ray.exceptions.RayError):
                return False
        return self._seen
