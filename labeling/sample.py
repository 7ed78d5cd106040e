"""The sampling stage: a video in, its frame pairs out."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import pyarrow as pa

from labeling.labeler import Labeler
from labeling.segments import Segment, sample_segment
from labeling.stream import SAMPLES, VIDEO, block, describe
from lake.failures import Failure
from lake.ids import triple_id
from lake.isolation import Isolated
from lake.metrics import PAIRS, STAGE_SECONDS
from lake.storage import StorageConfig
from lake.store_errors import outage


class StopFlag(Protocol):
    """A source of stop requests, such as `stop_flag.Stop`."""

    def requested(self) -> bool:
        """Return whether a stop was requested."""
        ...


log = logging.getLogger(__name__)

_VIDEO_COLUMNS = [name for name, _ in VIDEO]


class SampleVideos:
    """A Ray actor with a decode process of its own, which may hang or crash without taking other videos along.

    The blocks of a video depend on its bytes and the labeler only, so a call that Ray repeats yields the same ones;
    where it does not (a process killed by a timeout), the driver sees that sums differ and queues the video again.
    """

    def __init__(
        self, labeler: Labeler, storage: StorageConfig, stop: StopFlag, timeout_s: float, run_id: str | None = None
    ) -> None:
        """Without `run_id` it works for a service."""
        self._labeler = labeler
        self._run_id, self._source = run_id, "label" if run_id else "live"
        self._storage = storage
        self._stop = stop
        self._decoder = Isolated(timeout_s)

    def close(self) -> None:
        """End the decode process, whatever it is at."""
        self._decoder.close()

    def __call__(self, work: pa.Table) -> Iterator[pa.Table]:
        """Sample videos (`WORK`) into blocks of `SAMPLES`, one a segment. A video that fails is a row that says why."""
        for video in work.to_pylist():
            if self._stop.requested():
                return
            begun, of_video = time.monotonic(), {"run_id": self._run_id, "video_id": video["video_id"]}
            # Before and after: what a worker that hangs is at is its last line.
            log.info("sampling begins", extra={**of_video, "uri": video["uri"]})
            try:
                yield from self._sample(video)
                log.info("sampling ends", extra={**of_video, "seconds": round(time.monotonic() - begun, 3)})
            except Exception as error:
                log.info("sampling failed", extra=of_video, exc_info=error)
                if everywhere := outage(error):
                    # Ends the run: it would count every video that is left as failed.
                    raise everywhere from error
                yield block([{**_columns(video), **describe(error).to_row()}], SAMPLES)

    def _sample(self, video: dict[str, Any]) -> Iterator[pa.Table]:
        sampled, longest, start = 0, 0, None
        spans: set[tuple[Any, ...]] = set()
        with tempfile.TemporaryDirectory(prefix="worldlake-") as folder:
            dest = Path(folder, f"video{PurePosixPath(video['uri']).suffix}")
            with STAGE_SECONDS.timed(stage="fetch", source=self._source):
                path = self._storage.fetch(video["uri"], video["etag"], dest)
            while True:
                with STAGE_SECONDS.timed(stage="sample", source=self._source):
                    segment = self._decoder.call(
                        sample_segment, str(path), start, self._labeler.settings.sampling, self._labeler.image_size
                    )
                # Before its pairs leave: what was decoded must be of the bytes that were listed.
                self._storage.verify(video["uri"], video["etag"])
                rows = [*self._pairs(video, segment), *_span_failures(video, segment)]
                if self._run_id:
                    PAIRS.record(sum("triple_id" in row for row in rows), outcome="sampled")
                sampled, start = sampled + len(segment.pairs), segment.next_start_pts
                longest = max(longest, segment.longest)
                spans.update((failure.stage, failure.start_pts, failure.end_pts) for failure in segment.failures)
                if start is None:
                    break
                yield block(rows, SAMPLES)
                if self._stop.requested():
                    return
        if not rows:
            rows = [_columns(video)]
        notes = [segment.note, None if sampled else self._why_none(longest)]
        rows[-1] |= {
            "sampled": sampled,
            "spans_failed": len(spans),
            "note": "; ".join(filter(None, notes)) or None,
        }
        yield block(rows, SAMPLES)

    def _why_none(self, longest: int) -> str:
        sampling = self._labeler.settings.sampling
        most = min(sampling.max_clip_seconds, sampling.segment_seconds)
        return (
            f"no frame pair: the longest clip has {longest} frames, and a pair takes {sampling.sampler.least}; "
            f"clips end after {most:g} s (--max-clip-seconds, --segment-seconds), at cuts, and at damage"
        )

    def _pairs(self, video: dict[str, Any], segment: Segment) -> Iterator[dict[str, Any]]:
        numerator, denominator = segment.time_base
        decided = set(video["decided"])
        for pair in segment.pairs:
            id_ = triple_id(video["video_id"], pair.obs_pts, pair.next_pts, self._labeler.id)
            if id_ not in decided:
                yield {
                    **_columns(video),
                    "triple_id": id_,
                    "obs_pts": pair.obs_pts,
                    "next_pts": pair.next_pts,
                    "time_base": f"{numerator}/{denominator}",
                    "obs_time_s": pair.obs_pts * numerator / denominator,
                    "next_time_s": pair.next_pts * numerator / denominator,
                    "obs": pair.obs,
                    "next_obs": pair.next_obs,
                    "motion": pair.motion,
                    "camera_motion": pair.camera_motion,
                }


def _span_failures(video: dict[str, Any], segment: Segment) -> Iterator[dict[str, Any]]:
    for failure in segment.failures:
        yield {**_columns(video), **Failure(scope="span", **vars(failure)).to_row()}


def _columns(video: dict[str, Any]) -> dict[str, Any]:
    return {name: video[name] for name in _VIDEO_COLUMNS}
