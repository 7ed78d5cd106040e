from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator

import pytest
import ray

from labeling.stop import Stop


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


def test_workers_that_ask_are_alive_and_hear_of_a_wish_to_stop(cluster: None) -> None:
    driver, worker = Stop("run"), Stop("run")
    assert driver.quiet_s() == math.inf, "no flag, no sign of life"
    flag = driver.create()
    assert not worker.requested()
    time.sleep(0.5)
    assert driver.quiet_s() >= 0.5
    begun = time.monotonic()
    assert not worker.requested()
    assert driver.quiet_s() <= time.monotonic() - begun
    driver.request()
    assert worker.requested()
    del flag
