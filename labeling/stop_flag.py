"""Cluster-wide stop flag: workers finish what they have begun and begin nothing else."""

from __future__ import annotations

import time
from contextlib import suppress

import ray
from ray.actor import ActorHandle

# A worker that gets no answer in this time (the flag's node died) continues.
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
        self._alive_at = time.monotonic()

    def create(self) -> ActorHandle:
        """Put the flag up; it lives as long as the driver, which keeps what this returns."""
        return ray.remote(num_cpus=0, max_restarts=-1)(_Flag).options(name=self._name).remote()

    def request(self) -> None:
        """Ask for it, again and again: a flag that was started anew, as its node died, has forgotten."""
        self._seen = True
        with suppress(ValueError, ray.exceptions.RayError):
            ray.get(ray.get_actor(self._name).raise_.remote(), timeout=_ANSWER_S)

    def is_stalled(self, silent_s: float, limit_s: float) -> bool:
        """Return whether a run without an outcome for `silent_s` had no other sign of life for `limit_s` either.

        Workers that decode ask for this flag after every segment, also where hours without motion have no outcome.
        """
        if silent_s < limit_s / 2:
            return False
        # Asked long before it counts: an answer that fails to come says nothing.
        with suppress(ValueError, ray.exceptions.RayError):
            quiet_s = ray.get(ray.get_actor(self._name).quiet_s.remote(), timeout=_ANSWER_S)
            self._alive_at = max(self._alive_at, time.monotonic() - quiet_s)
        return silent_s > limit_s and time.monotonic() - self._alive_at > limit_s

    def requested(self) -> bool:
        """Return whether a stop was requested."""
        if not self._seen:
            try:
                self._seen = bool(ray.get(ray.get_actor(self._name).is_raised.remote(), timeout=_ANSWER_S))
            except (ValueError, ray.exceptions.RayError):
                return False
        return self._seen
