"""The channel between workers and driver during a training: log lines one way, the stop request the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@dataclass
class Messages:
    """Messages of the workers since the driver last asked."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    refusal: Exception | None = None
    exported: dict[str, str] | None = None
    """sha256 by file name of the model that was written; None: it was not, as the training stopped before its end."""


class _Channel:
    def __init__(self) -> None:
        self._messages = Messages()
        self._stop = False

    def log(self, line: dict[str, Any]) -> None:
        self._messages.lines.append(line)

    def refuse(self, reason: Exception) -> None:
        self._messages.refusal = reason

    def exported(self, hashes: dict[str, str]) -> None:
        self._messages.exported = hashes

    def take(self) -> Messages:
        messages, self._messages = self._messages, Messages()
        return messages

    def stop(self) -> None:
        self._stop = True

    def stopping(self) -> bool:
        return self._stop


def new_channel() -> ActorHandle:
    """Start a channel that lives as long as the driver keeps what this returns.

    It runs on the driver's node, so that no other node can take messages along when it dies. It is not restarted: that
    would lose messages and the stop request.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(_Channel).remote()


class StopRequest:
    """The driver's stop request, read without waiting for the answer."""

    def __init__(self, channel: ActorHandle) -> None:
        self._channel = channel
        self._answer = channel.stopping.remote()

    def requested(self) -> bool:
        """Return the newest answer that has come."""
        done, _ = ray.wait([self._answer], timeout=0)
        if not done:
            return False
        stop = bool(ray.get(self._answer))
        self._answer = self._channel.stopping.remote()
        return stop
