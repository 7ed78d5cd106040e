"""Single frames of a video, by time and by number, and in damaged files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from labeling.frame_lookup import LOST, Picked, pick_frames, read_images
from labeling.images import decode_images
from labeling.settings import SamplingSettings
from lake.errors import DecodeError
from lake.manifest import Moment
from tests.labeling import datasets
from tests.media import Medium, read_counter

SIZE = 96


def pick(path: Path, wanted: set[Moment], segment_seconds: float = 60) -> Picked:
    """All segments, put together."""
    settings = SamplingSettings(segment_seconds=segment_seconds)
    whole = pick_frames(str(path), frozenset(wanted), None, settings, SIZE)
    part = whole
    while part.goes_on:
        left = frozenset(wanted - whole.frames.keys() - whole.missing.keys())
        part = pick_frames(str(path), left, part.goes_on, settings, SIZE)
        whole.frames |= part.frames
        whole.missing |= part.missing
    return whole


def numbers(picked: Picked) -> dict[Moment, int]:
    return {moment: read_counter(decode_images([jpeg])[0]) for moment, (_, jpeg) in picked.frames.items()}


@pytest.mark.parametrize("segment_seconds", [60, 1, 0.3])
def test_times_and_numbers(tmp_path: Path, segment_seconds: float) -> None:
    path = datasets.video(tmp_path / "a.mp4", range(100))
    times = {Fraction(0): 0, Fraction("0.04"): 1, Fraction("0.041"): 2, Fraction("2.5"): 63, Fraction("3.97"): 99}
    picked = pick(path, {*times, None}, segment_seconds)
    assert numbers(picked) == {**times, None: 99}
    picked = pick(path, {0, 1, 42, 99, 100}, segment_seconds)
    assert numbers(picked) == {0: 0, 1: 1, 42: 42, 99: 99}
    assert picked.missing == {100: "the video ends after 3.96 s with frame 99"}
    assert pick(path, {Fraction(5)}, segment_seconds).missing.keys() == {Fraction(5)}


def test_what_was_lost_is_missing(corpus: dict[str, Medium]) -> None:
    """Whatever comes out of a damaged file is the frame asked for."""
    for name in ("zeroed-h264.mp4", "zeroed-vp9.webm", "truncated.mp4", "tenfold.avi"):
        medium = corpus[name]
        wanted: set[Moment] = {Fraction(tick, medium.fps) for tick in range(medium.frames)}
        picked = pick(medium.path, wanted)
        assert picked.frames.keys() | picked.missing.keys() == wanted
        assert picked.missing or name == "tenfold.avi"
        last = max(picked.frames, key=lambda moment: moment or 0)
        for moment, number in numbers(picked).items():
            # A time up to a second after the last frame means that one.
            assert number == medium.shown_at(Fraction(moment or 0)) or picked.frames[moment] == picked.frames[last]
        counted = pick(medium.path, set(range(medium.frames)))
        for moment, number in numbers(counted).items():
            assert moment == number


def test_a_cut_off_end_has_no_last_frame(corpus: dict[str, Medium]) -> None:
    assert pick(corpus["truncated.mp4"].path, {None}).missing == {None: LOST}


def test_images_are_square_and_upright(tmp_path: Path) -> None:
    picture = datasets.image(tmp_path / "a.png", 1234)
    [jpeg] = read_images([str(picture)], SamplingSettings(), SIZE)
    [square] = decode_images([jpeg])
    assert (square.shape, read_counter(square)) == ((SIZE, SIZE, 3), 1234)
    from PIL import Image

    with Image.open(picture) as image:
        exif = Image.Exif()
        exif[0x0112] = 6  # to be shown turned by a quarter
        image.rotate(90, expand=True).save(tmp_path / "turned.jpg", quality=95, exif=exif)
        image.convert("RGBA").save(tmp_path / "alpha.png")
    for name in ("turned.jpg", "alpha.png"):
        [again] = decode_images(read_images([str(tmp_path / name)], SamplingSettings(), SIZE))
        assert np.abs(again.astype(int) - square).mean() < 3
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DecodeError, match=r"text\.png is not a whole image"):
        read_images([str(tmp_path / "text.png")], SamplingSettings(), SIZE)
