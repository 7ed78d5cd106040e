"""Finding given frames of a video, and reading given images. Runs in a process that may be killed at any time."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from labeling.decoding import Cut, Decoder, Frame, Gap, open_video
from labeling.images import encode_jpeg, square_jpeg
from labeling.settings import SamplingSettings
from lake.errors import DecodeError
from lake.manifest import Moment

# How long after the last frame a time still means that frame: annotators and containers round.
END_SLACK_S = 1
LOST = "frames of the video are missing there"


@dataclass(frozen=True)
class Position:
    """The frame from which a search resumes: its PTS, its number in the video, and what is known of the frames before.

    `origin_pts` is the first frame's; `damaged` says that frames are missing before this one.
    """

    pts: int
    number: int
    origin_pts: int
    damaged: bool


@dataclass
class Picked:
    """Result of one call: PTS and JPEG (4:4:4, RGB, square) by moment, and the reason by moment that cannot be had.

    `time_base` is seconds per PTS unit as (numerator, denominator). `goes_on` is where the next call starts; None:
    every moment is in one of the two.
    """

    time_base: tuple[int, int]
    frames: dict[Moment, tuple[int, bytes]] = field(default_factory=dict)
    missing: dict[Moment, str] = field(default_factory=dict)
    goes_on: Position | None = None


def pick_frames(
    path: str, moments: frozenset[Moment], start: Position | None, settings: SamplingSettings, image_size: int
) -> Picked:
    """Look for moments in `segment_seconds` seconds of a video from `start` (None: its first frame) on.

    A frame that was lost is never replaced by its neighbor: the moment is missing. Raises DecodeError.
    """
    video = open_video(path, settings.decoder)
    try:
        return _Search(video, moments, start, settings, image_size).run()
    finally:
        video.close()


class _Search:
    """One pass over frames in order of time. Pixels are converted only of the frames that are wanted."""

    def __init__(
        self,
        video: Decoder,
        moments: frozenset[Moment],
        start: Position | None,
        settings: SamplingSettings,
        image_size: int,
    ) -> None:
        self._video, self._start, self._settings, self._image_size = video, start, settings, image_size
        # Times or numbers, never both: a mapping has either.
        self._wanted = sorted(moment for moment in moments if moment is not None)
        self._wants_last = None in moments
        self._found = Picked(video.time_base)
        self._number = start.number if start else 0
        self._damaged = start.damaged if start else False

    def run(self) -> Picked:
        """See `pick_frames`."""
        first: int | None = None
        last: int | None = None
        gap: Gap | None = None
        for item in self._video.read(self._start.pts if self._start else None):
            if isinstance(item, Cut):
                continue
            if isinstance(item, Gap):
                gap, self._damaged = item, True
                if item.start_pts is None:
                    self._give_up(LOST)
                continue
            if first is None:
                first, self._origin = item.pts, self._start.origin_pts if self._start else item.pts
            if self._seconds(first, item.pts) >= self._settings.segment_seconds and last is not None:
                self._found.goes_on = Position(item.pts, self._number, self._origin, self._damaged)
                return self._found
            self._take(item, is_after_gap=gap is not None)
            last, gap = item.pts, None
            self._number += 1
            if not self._wanted and not self._wants_last:
                return self._found
        assert last is not None  # Decoders raise DecodeError where there is not a single frame.
        self._end(last, is_cut_short=gap is not None)
        return self._found

    def _seconds(self, start_pts: int, pts: int) -> Fraction:
        return (pts - start_pts) * Fraction(*self._video.time_base)

    def _take(self, frame: Frame, is_after_gap: bool) -> None:
        """Settle every moment up to this frame."""
        at = self._seconds(self._origin, frame.pts)
        while self._wanted:
            moment = self._wanted[0]
            by_number = isinstance(moment, int)
            if moment > (self._number if by_number else at):
                return
            del self._wanted[0]
            # Numbers are off once a frame is lost; a time is not, unless the lost frame is the one it means.
            if self._damaged if by_number else is_after_gap and moment < at:
                self._found.missing[moment] = LOST
            else:
                self._keep(moment, frame)

    def _keep(self, moment: Moment, frame: Frame) -> None:
        self._found.frames[moment] = (
            frame.pts,
            encode_jpeg(frame.square(self._image_size), self._settings.jpeg_quality),
        )

    def _end(self, last_pts: int, is_cut_short: bool) -> None:
        """Settle the moments after the last frame."""
        length = self._seconds(self._origin, last_pts)
        meant = [moment for moment in self._wanted if isinstance(moment, Fraction) and moment - length <= END_SLACK_S]
        meant_last: list[Moment] = [*meant, *([None] if self._wants_last else [])]
        self._wanted = [moment for moment in self._wanted if moment not in meant]
        if is_cut_short:
            self._found.missing |= dict.fromkeys(meant_last, LOST)
        elif meant_last:
            # Its pixels were gone when the stream turned out to end.
            frame = next(item for item in self._video.read(last_pts) if not isinstance(item, Gap | Cut))
            for moment in meant_last:
                self._keep(moment, frame)
        self._give_up(
            LOST if is_cut_short else f"the video ends after {float(length):.2f} s with frame {self._number - 1}"
        )

    def _give_up(self, reason: str) -> None:
        self._found.missing |= dict.fromkeys(self._wanted, reason)
        self._wanted = []


def read_images(paths: list[str], settings: SamplingSettings, image_size: int) -> list[bytes]:
    """Images as JPEG: see `images.square_jpeg`. Raises DecodeError for a file that is not a whole image."""
    jpegs = []
    for path in map(Path, paths):
        try:
            jpegs.append(square_jpeg(path.read_bytes(), image_size, settings.jpeg_quality))
        except DecodeError as error:
            raise DecodeError(f"{path.name} is {error}") from None
    return jpegs
