"""Turning one segment of a video into frame pairs. Runs in a process that may be killed at any time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, pairwise

import cv2

from labeling.decoding import RGB, Cut, Decoder, Frame, Gap, Gray, open_video
from labeling.images import encode_jpeg
from labeling.samplers.base import ROUNDING, amount
from labeling.sampling import (
    CUT_SIDE,
    Thumbnail,
    content_change,
    flow_picture,
    motion_between,
    thumbnail,
)
from labeling.settings import DecoderName, SamplingSettings

# One decode process has one core.
cv2.setNumThreads(1)


@dataclass(frozen=True)
class FramePair:
    """Two frames of one clip, as JPEG (4:4:4, RGB, square).

    `motion` and `camera_motion` are those between these two frames, as `sampling.motion_between` gives them.
    """

    obs_pts: int
    next_pts: int
    obs: bytes
    next_obs: bytes
    motion: float
    camera_motion: float


@dataclass(frozen=True)
class SpanFailure:
    """A span of the video that could not be used, with the usable frames around it (None: the video starts or ends)."""

    start_pts: int | None
    end_pts: int | None
    stage: str
    error_type: str
    message: str


@dataclass(frozen=True)
class Segment:
    """Result of one call. `next_start_pts` is where the next segment starts, None at the end of the stream.

    `time_base` is seconds per PTS unit as (numerator, denominator); `frames` counts the usable frames decoded, and
    `longest` is the most frames of a clip. `note` is that of the decoder.
    """

    time_base: tuple[int, int]
    pairs: list[FramePair]
    failures: list[SpanFailure]
    next_start_pts: int | None
    frames: int
    longest: int
    note: str | None


@dataclass(frozen=True)
class _Candidate:
    pts: int
    position: float
    motion: float
    small: Gray
    square: RGB


@dataclass
class _Clips:
    """Cuts a run of frames into clips and each clip into pairs; holds the candidates of one clip."""

    settings: SamplingSettings
    image_size: int
    unit_s: float
    pairs: list[FramePair] = field(default_factory=list)
    frames: int = 0
    longest: int = 0
    _clip: list[_Candidate] = field(default_factory=list)
    _clip_start: int = 0
    _number: int = 0
    _next: float = 0
    _size: tuple[int, int] = (0, 0)
    _last: Thumbnail | None = None

    def __post_init__(self) -> None:
        self._clip_units = max(1, round(self.settings.max_clip_seconds / self.unit_s))
        self._stride = amount(self.settings.sampler.stride)
        self._in_seconds = isinstance(self.settings.sampler.stride, str)

    def add(self, frame: Frame) -> None:
        """Take the next frame."""
        shown = thumbnail(frame.luma(max(1, min(frame.size) // CUT_SIDE)))
        is_cut = self._last is not None and content_change(self._last, shown) > self.settings.shot_threshold
        if is_cut or frame.size != self._size or (self._clip and frame.pts - self._clip_start >= self._clip_units):
            self.end_clip()
        self._last, self._size = shown, frame.size
        if not self._number:
            self._clip_start = frame.pts
        position = (frame.pts - self._clip_start) * self.unit_s if self._in_seconds else self._number
        # The first frame at or after each multiple of the stride.
        if not self._clip or position + ROUNDING >= self._next:
            self._next = ((position + ROUNDING) // self._stride + 1) * self._stride
            self._add_candidate(frame, position, flow_picture(frame.luma(1)))
        self._number += 1
        self.longest = max(self.longest, self._number)
        self.frames += 1

    def _add_candidate(self, frame: Frame, position: float, small: Gray) -> None:
        is_measured = self.settings.sampler.measures_motion and self._clip
        motion = motion_between(self._clip[-1].small, small)[0] if is_measured else 0.0
        self._clip.append(_Candidate(frame.pts, position, motion, small, frame.square(self.image_size)))

    def end_clip(self) -> None:
        """End the clip: later frames belong to another one."""
        positions = [candidate.position for candidate in self._clip]
        motion = [candidate.motion for candidate in self._clip]
        kept = [self._clip[index] for index in self.settings.sampler.choose(positions, motion)]
        if len(kept) > 1:
            images = [encode_jpeg(candidate.square, self.settings.jpeg_quality) for candidate in kept]
            for (obs, next_obs), (obs_image, next_image) in zip(pairwise(kept), pairwise(images), strict=True):
                between = motion_between(obs.small, next_obs.small)
                self.pairs.append(FramePair(obs.pts, next_obs.pts, obs_image, next_image, *between))
        self._clip, self._number, self._last = [], 0, None


@dataclass
class _Source:
    """An open video, read up to the frame at which the next segment starts."""

    key: tuple[str, int, int, DecoderName]
    decoder: Decoder
    items: Iterator[Frame | Gap | Cut]
    pending: Frame | None = None


# The video of the last call stays open, so that its next segment starts without a seek.
_held: list[_Source] = []


def sample_segment(path: str, start_pts: int | None, settings: SamplingSettings, image_size: int) -> Segment:
    """Sample the frame pairs of `segment_seconds` from the frame with `start_pts` (None: the first) on.

    The result depends on the arguments and the file only, not on earlier calls. A shot that is still running at the
    end of the segment is cut there. Raises DecodeError.
    """
    source = _source(path, start_pts, settings.decoder)
    numerator, denominator = source.decoder.time_base
    units_per_s = denominator / numerator
    clips = _Clips(settings, image_size, 1 / units_per_s)
    failures: list[SpanFailure] = []
    pairs_before = 0
    end: int | None = None
    next_start: int | None = None
    # Not a generator: one that is dropped half-way would close the items with it.
    for item in chain([source.pending] if source.pending else [], source.items):
        if isinstance(item, Cut):
            clips.end_clip()
            continue
        if isinstance(item, Gap):
            clips.end_clip()
            # Gaps without a pair between them are one failure, or a file of scrambled times would have thousands.
            start = failures.pop().start_pts if failures and len(clips.pairs) == pairs_before else item.start_pts
            failures.append(SpanFailure(start, item.end_pts, "decode", item.error_type, item.message))
            pairs_before = len(clips.pairs)
            continue
        if end is None:
            end = item.pts + max(1, round(settings.segment_seconds * units_per_s))
        if item.pts >= end:
            next_start = item.pts
            source.pending = item
            break
        clips.add(item)
    clips.end_clip()
    if next_start is None:
        source.decoder.close()
    else:
        _held.append(source)
    return Segment(
        (numerator, denominator), clips.pairs, failures, next_start, clips.frames, clips.longest, source.decoder.note
    )


def sample_video(path: str, settings: SamplingSettings, image_size: int) -> Iterator[Segment]:
    """Every segment of a video in order, in this process. Raises DecodeError."""
    start: int | None = None
    while True:
        segment = sample_segment(path, start, settings, image_size)
        yield segment
        if (start := segment.next_start_pts) is None:
            return


def _source(path: str, start_pts: int | None, decoder: DecoderName) -> _Source:
    """The video that the last call left open at this frame, or else a fresh one."""
    file = os.stat(path)
    key = (path, file.st_size, file.st_mtime_ns, decoder)
    while _held:
        source = _held.pop()
        if source.key == key and source.pending is not None and source.pending.pts == start_pts:
            return source
        source.decoder.close()
    opened = open_video(path, decoder)
    return _Source(key, opened, opened.read(start_pts))
