"""The channel between the workers of a training and its driver."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray

from tests.runs import wait_until
from training.driver_channel import StopRequest, new_channel

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def test_messages_are_taken_once_and_a_stop_request_stays() -> None:
    channel = new_channel()
    ray.get([channel.log.remote({"step": 1}), channel.exported.remote({"config.json": "0"})])
    taken = ray.get(channel.take.remote())
    assert (taken.lines, taken.exported) == ([{"step": 1}], {"config.json": "0"})
    taken = ray.get(channel.take.remote())
    assert (taken.lines, taken.exported) == ([], None)

    stop = StopRequest(channel)
    ray.get(channel.stopping.remote())
    assert not stop.requested()
    channel.stop.remote()
    wait_until(stop.requested, 30)
    # A worker that takes the place of one that died is told, too.
    wait_until(StopRequest(channel).requested, 30)


def test_a_channel_runs_on_the_node_of_the_driver_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = SimpleNamespace(get_node_id=lambda: "ab" * 28)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(ray, "get_runtime_context", lambda: gone)
        channel = new_channel()
    with pytest.raises(ray.exceptions.ActorUnschedulableError):
        ray.get(channel.take.remote(), timeout=60)
