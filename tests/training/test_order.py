"""The order of an epoch is a function of the seed, the triples and the factors, and of nothing else."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from training.order import Order, micro_batches
from training.prefetch import _first_rows

SOURCES = st.lists(
    st.tuples(st.integers(1, 12), st.floats(0.1, 4.0).filter(lambda factor: factor > 0.6)), min_size=1, max_size=3
)


def make(sources: list[tuple[int, float]], seed: int) -> Order:
    start, parts = 0, []
    for count, factor in sources:
        parts.append((np.arange(start, start + count), factor))
        start += count
    return Order(parts, seed)


@given(SOURCES, st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_an_epoch_shows_every_triple_as_often_as_its_factor_says(
    sources: list[tuple[int, float]], seed: int, epoch: int
) -> None:
    order = make(sources, seed)
    shown = Counter(order.between(epoch * order.epoch_length, (epoch + 1) * order.epoch_length).tolist())
    start = 0
    for count, factor in sources:
        times = [shown[index] for index in range(start, start + count)]
        assert sum(times) == round(count * factor)
        assert max(times) - min(times) <= 1
        start += count


@given(SOURCES, st.integers(0, 2**32 - 1), st.lists(st.integers(0, 40), min_size=3, max_size=3).map(sorted))
def test_a_walk_that_stops_goes_on_as_if_it_had_not(
    sources: list[tuple[int, float]], seed: int, places: list[int]
) -> None:
    first, second, third = places
    again = make(sources, seed)
    # Another object, asked for other places before: nothing is remembered that matters.
    again.between(17, 23)
    parts = [again.between(first, second), again.between(second, third)]
    assert np.concatenate(parts).tolist() == make(sources, seed).between(first, third).tolist()


def test_epochs_and_seeds_differ() -> None:
    order = make([(50, 1.0)], 0)
    assert order.between(0, 50).tolist() != order.between(50, 100).tolist()
    assert order.between(0, 50).tolist() != make([(50, 1.0)], 1).between(0, 50).tolist()
    # Written down, so that a release of numpy or of ours that changes the order of a run half-way does not pass.
    assert make([(6, 1.5)], 7).between(0, 9).tolist() == [2, 0, 4, 5, 1, 3, 3, 4, 1]


@given(
    SOURCES,
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(0, 5),
    st.data(),
)
def test_any_number_of_workers_computes_the_same_micro_batches(
    sources: list[tuple[int, float]], per_step: int, micro: int, step: int, data: st.DataObject
) -> None:
    order = make(sources, 3)
    workers = data.draw(st.integers(1, per_step))
    plans = [
        list(
            micro_batches(order, step, batch_size=per_step * micro, micro_batch_size=micro, rank=rank, workers=workers)
        )
        for rank in range(workers)
    ]
    # Collectives want as many rounds of every worker.
    assert len({len(plan) for plan in plans}) == 1
    counted = {number: indices.tolist() for plan in plans for number, indices in plan if number >= 0}
    assert sorted(counted) == list(range(step * per_step, (step + 1) * per_step))
    start = step * per_step * micro
    assert [index for number in sorted(counted) for index in counted[number]] == order.between(
        start, start + per_step * micro
    ).tolist()


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=20), st.integers(1, 5))
def test_rows_are_found_by_id_whatever_blocks_they_lie_in(ids: list[str], blocks: int) -> None:
    chunks = [pa.array(list(part)) for part in np.array_split(np.array(ids, dtype=object), blocks) if len(part)]
    column = pa.chunked_array(chunks, pa.string())
    rows = _first_rows(column)
    assert column.take(pa.array(rows)).to_pylist() == sorted(set(ids))
