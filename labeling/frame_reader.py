"""Reading the frames that labeled rows name, in processes that may be killed, a few units at a time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from labeling.frame_lookup import Picked, Position, pick_frames, read_images
from labeling.settings import SamplingSettings
from labeling.stream import describe
from lake.errors import ChildLost, DecodeError
from lake.failures import Failure
from lake.isolation import Isolated, IsolatedPool
from lake.manifest import Labeled, Moment
from lake.storage import Entry, StorageConfig
from lake.store_errors import outage

# Seconds that a minute of video, or a pair of images, may take: as in labeling.
TIMEOUT_S = 300.0

Frame = tuple[int, bytes]
"""PTS and JPEG."""


@dataclass(frozen=True)
class Unit:
    """Rows of one video, or of one pair of images (obs, next_obs)."""

    video_id: str
    files: tuple[Entry, ...]
    dataset: str
    split: str
    rows: tuple[Labeled, ...]

    @property
    def uri(self) -> str:
        """The video, or the image that is obs."""
        return self.files[0].uri

    @property
    def is_pair(self) -> bool:
        """Return whether the unit is two images."""
        return len(self.files) > 1


@dataclass
class Outcome:
    """Frames of a unit by row, and why rows have none.

    `time_base` is seconds per PTS unit as (numerator, denominator); None for images, whose PTS are 0 and 1.
    """

    unit: Unit
    time_base: tuple[int, int] | None = None
    pairs: list[tuple[Labeled, Frame, Frame]] = field(default_factory=list)
    failures: list[tuple[Labeled, Failure]] = field(default_factory=list)


class Reader:
    """Read the frames of units in isolated processes."""

    def __init__(self, storage: StorageConfig, image_size: int, pool: IsolatedPool) -> None:
        self._storage, self._image_size, self._pool = storage, image_size, pool
        self._settings = SamplingSettings()

    def read(self, units: Iterable[Unit]) -> Iterator[Outcome]:
        """Yield the outcome of every unit as it comes; few are in memory at once.

        Raises Unavailable for errors that affect every other unit as well.
        """
        running: set[Future[Outcome]] = set()
        for unit in units:
            running.add(self._pool.submit(self._read, unit))
            if len(running) >= 2 * self._pool.size:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)

    def _read(self, child: Isolated, unit: Unit) -> Outcome:
        try:
            with tempfile.TemporaryDirectory(prefix="worldlake-") as folder:
                paths = [
                    str(
                        self._storage.fetch(
                            file.uri, file.etag, Path(folder, f"{index}{PurePosixPath(file.uri).suffix}")
                        )
                    )
                    for index, file in enumerate(unit.files)
                ]
                outcome = self._images(child, unit, paths) if unit.is_pair else self._frames(child, unit, paths[0])
            # What was decoded must be of the bytes that were listed.
            for file in unit.files:
                self._storage.verify(file.uri, file.etag)
            return outcome
        except Exception as error:
            if everywhere := outage(error):
                raise everywhere from error
            return Outcome(unit, failures=[(row, describe(error, "pair")) for row in unit.rows])

    def _images(self, child: Isolated, unit: Unit, paths: list[str]) -> Outcome:
        obs, next_obs = child.call(read_images, paths, self._settings, self._image_size)
        return Outcome(unit, pairs=[(row, (0, obs), (1, next_obs)) for row in unit.rows])

    def _frames(self, child: Isolated, unit: Unit, path: str) -> Outcome:
        found = Outcome(unit)
        frames: dict[Moment, Frame] = {}
        reasons: dict[Moment, Failure] = {}
        for picked in self._segments(child, path, frozenset(moment for row in unit.rows for moment in row.moments)):
            if isinstance(picked, Picked):
                found.time_base = picked.time_base
                frames |= picked.frames
                reasons |= {moment: _failure("MissingFrame", reason) for moment, reason in picked.missing.items()}
            else:
                reasons |= picked
        for row in unit.rows:
            failed = next((reasons[moment] for moment in row.moments if moment in reasons), None)
            obs, next_obs = (frames.get(moment) for moment in row.moments)
            if failed is None and obs and next_obs and obs[0] < next_obs[0]:
                found.pairs.append((row, obs, next_obs))
            else:
                found.failures.append((row, failed or _failure("SameFrame", "its two frames are the same one")))
        return found

    def _segments(
        self, child: Isolated, path: str, wanted: frozenset[Moment]
    ) -> Iterator[Picked | dict[Moment, Failure]]:
        """Yield the picked frames of each minute; if the rest cannot be read, yield why it is missing."""
        start: Position | None = None
        while True:
            try:
                picked = child.call(pick_frames, path, wanted, start, self._settings, self._image_size)
            except (DecodeError, ChildLost) as error:
                yield dict.fromkeys(wanted, describe(error, "pair"))
                return
            yield picked
            if picked.goes_on is None:
                return
            start, wanted = picked.goes_on, wanted - picked.frames.keys() - picked.missing.keys()


def _failure(error_type: str, message: str) -> Failure:
    return Failure(scope="pair", stage="decode", error_type=error_type, message=message)


@contextmanager
def reader(storage: StorageConfig, image_size: int) -> Iterator[Reader]:
    """A `Reader` whose processes are gone at the end."""
    with closing(IsolatedPool(len(os.sched_getaffinity(0)), TIMEOUT_S)) as pool:
        yield Reader(storage, image_size, pool)
