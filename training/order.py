"""The order of pairs: a pure function of the seed, the pairs and their factors, independent of readers and workers.

Training iterates over an endless concatenation of epochs. Step s takes its places [s * batch, (s + 1) * batch); its
micro-batch m, on any worker, the places from s * batch + m * micro_batch. So a run can resume in the middle of an
epoch without saved state, and the number of workers changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


class Order:
    """The order of all epochs. `sources` are (indices of triples, factor) each; indices count the sorted triple ids.

    An epoch shows each triple of a source `factor` times; the fraction of a factor, for a share of the triples that is
    drawn anew every epoch.
    """

    def __init__(self, sources: Sequence[tuple[Indices, float]], seed: int) -> None:
        self._sources = sources
        self._seed = seed
        self.epoch_length = sum(_times(len(indices), factor) for indices, factor in sources)
        """Places of an epoch."""
        self._made: tuple[int, Indices] | None = None

    def between(self, start: int, stop: int) -> Indices:
        """Indices of the triples at the places [start, stop), counted from the first place of the first epoch."""
        parts = []
        while start < stop:
            epoch, offset = divmod(start, self.epoch_length)
            if self._made is None or self._made[0] != epoch:
                self._made = (epoch, self._make_epoch(epoch))
            part = self._made[1][offset : offset + stop - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _make_epoch(self, epoch: int) -> Indices:
        random = self._random(epoch)
        parts = []
        for indices, factor in self._sources:
            whole, rest = divmod(_times(len(indices), factor), len(indices))
            parts += [np.repeat(indices, whole), indices[_shuffled(len(indices), random)[:rest]]]
        places = np.concatenate(parts)
        return places[_shuffled(len(places), random)]

    def _random(self, epoch: int) -> np.random.Philox:
        return np.random.Philox(key=np.array([self._seed, epoch], np.uint64))


def micro_batches(
    order: Order, step: int, *, batch_size: int, micro_batch_size: int, rank: int, workers: int
) -> Iterator[tuple[int, Indices]]:
    """Yield the micro-batches of one worker in a step: their numbers, which count over all steps, and indices.

    Micro-batches go round the workers. A worker that the last round leaves without one gets that of the step's first,
    with the number -1: collectives want every worker to take part, and it counts for nothing.
    """
    per_step = batch_size // micro_batch_size
    for first in range(0, per_step, workers):
        micro = first + rank if first + rank < per_step else 0
        start = step * batch_size + micro * micro_batch_size
        number = step * per_step + micro if first + rank < per_step else -1
        yield number, order.between(start, start + micro_batch_size)


def _times(triples: int, factor: float) -> int:
    return round(triples * factor)


def _shuffled(count: int, random: np.random.Philox) -> Indices:
    # Raw draws are the same in every release of numpy; what Generator makes of them may change.
    return np.argsort(random.random_raw(count), kind="stable").astype(np.int64)
