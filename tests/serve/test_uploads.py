from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from serve.uploads import PROCESSES, Uploads


def slowly(contents: list[object], *_: int) -> list[object]:
    """As `uploads._images`, for seconds instead of images."""
    for seconds in contents:
        time.sleep(float(str(seconds)))
    return contents


@pytest.fixture
def uploads() -> Iterator[Uploads]:
    made = Uploads(64, 95, 1_000_000)
    yield made
    made.close()


def test_what_was_asked_before_it_is_no_answer_to_a_request(uploads: Uploads) -> None:
    async def run() -> None:
        given_up = [asyncio.create_task(uploads._call(slowly, [1.0 + place / 100])) for place in range(PROCESSES)]
        await asyncio.sleep(0.5)
        for call in given_up:
            call.cancel()
        asked = [[place / 100] for place in range(2 * PROCESSES)]
        assert await asyncio.gather(*(uploads._call(slowly, one) for one in asked)) == asked

    asyncio.run(run())


def test_a_request_that_takes_long_does_not_hold_up_the_next(uploads: Uploads) -> None:
    async def run() -> None:
        long = asyncio.create_task(uploads._call(slowly, [60]))
        await asyncio.sleep(0.1)
        assert await uploads._call(slowly, [0]) == [0]
        assert not long.done()

    asyncio.run(asyncio.wait_for(run(), 30))
