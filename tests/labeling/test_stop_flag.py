from __future__ import annotations

import time

import pytest

from labeling.stop_flag import Stop

pytestmark = pytest.mark.ray


def test_workers_that_ask_are_alive_and_hear_of_a_stop_request(ray_cluster: str) -> None:
    driver, worker = Stop("run"), Stop("run")
    flag = driver.create()
    assert not worker.requested()
    time.sleep(1.5)
    assert driver.is_stalled(3600, 1)
    assert not driver.is_stalled(0.9, 1), "there was an outcome"
    assert not worker.requested()
    assert not driver.is_stalled(3600, 30)
    driver.request()
    assert worker.requested()
    del flag


def test_a_flag_that_does_not_answer_is_no_sign_of_death(ray_cluster: str) -> None:
    gone = Stop("gone")
    assert not gone.is_stalled(3600, 1)
    time.sleep(1.5)
    assert gone.is_stalled(3600, 1)
