"""A frame shows what its PTS says, whatever the file; what cannot be decoded is a gap or one clear error."""

import shutil
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from decord._ffi.base import DECORDError

from labeling.decode_decord import DecordDecoder
from labeling.decoding import Cut, Frame, Gap, open_video
from labeling.h264 import PictureNumbers
from lake.errors import DecodeError
from tests.media import (
    H264,
    MISSING,
    MJPEG,
    MPEG2,
    NAMES,
    Medium,
    encode,
    ffmpeg,
    mux,
    packets,
    picture,
    read_counter,
    real_clips,
)

pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason=MISSING)


def read(
    path: Path, start_pts: int | None = None, decoder: str = "pyav"
) -> tuple[Fraction, list[tuple[int, int] | Gap]]:
    """The time base, and (PTS, number shown) of every frame, with the gaps between them."""
    video = open_video(str(path), decoder)  # type: ignore[arg-type]
    items = [
        item if isinstance(item, Gap) else (item.pts, read_counter(item.square(224)))
        for item in video.read(start_pts)
        if not isinstance(item, Cut)
    ]
    video.close()
    return Fraction(*video.time_base), items


def test_every_frame_of_every_file_shows_what_its_pts_says(corpus: dict[str, Medium]) -> None:
    for name, medium in corpus.items():
        if medium.outcome == "refused":
            with pytest.raises(DecodeError, match=r"cannot be opened|no video stream"):
                read(medium.path)
            continue
        time_base, items = read(medium.path)
        frames = [item for item in items if not isinstance(item, Gap)]
        assert [shown for _, shown in frames] == [medium.shown_at(pts * time_base) for pts, _ in frames], name
        assert (len(frames) == medium.frames) is (medium.outcome == "whole"), name
        assert any(isinstance(item, Gap) for item in items) is (medium.outcome == "damaged"), name


def test_frames_after_damage_are_found_and_the_gap_lies_between_its_neighbors(corpus: dict[str, Medium]) -> None:
    for name in (name for name in corpus if name.startswith("zeroed")):
        _, items = read(corpus[name].path)
        (place,) = [index for index, item in enumerate(items) if isinstance(item, Gap)]
        gap, before, after = items[place], items[place - 1], items[place + 1]
        assert isinstance(gap, Gap)
        assert not isinstance(before, Gap)
        assert not isinstance(after, Gap)
        assert (gap.start_pts, gap.end_pts) == (before[0], after[0]), name
        # The tenth that was zeroed, and no more than the groups of 25 (AV1: 32) frames that it touches.
        assert len(items) > 60, name


def test_a_seek_gives_the_rest_of_the_same_stream(corpus: dict[str, Medium]) -> None:
    for name, medium in corpus.items():
        if medium.outcome != "refused" and name not in NAMES:
            _, items = read(medium.path)
            for place in range(40, len(items), 45):
                item = items[place]
                if not isinstance(item, Gap):
                    assert read(medium.path, item[0])[1] == items[place:], (name, item)


def test_a_pts_that_is_not_there_is_an_error(corpus: dict[str, Medium]) -> None:
    with pytest.raises(DecodeError, match="no frame with PTS 7 "):
        read(corpus["h264.mp4"].path, 7)


def test_deep_color_and_anamorphic_pixels(corpus: dict[str, Medium], tmp_path: Path) -> None:
    def first(path: Path) -> Frame:
        frame = next(iter(open_video(str(path), "pyav").read(None)))
        assert not isinstance(frame, Gap | Cut)
        return frame

    plain, deep = first(corpus["h264.mp4"].path), first(corpus["hevc-10bit.mkv"].path)
    assert abs(plain.luma(2).astype(int) - deep.luma(2)).mean() < 4
    # Stored at half its width, to be shown at its full one.
    wide = encode(tmp_path / "wide.mp4", [picture(6)], "-vf", "scale=96:144,setsar=2")
    assert read_counter(first(wide).square(224)) == 6


def test_scrambled_times_are_gaps_and_order_is_kept(corpus: dict[str, Medium], tmp_path: Path) -> None:
    scrambled = tmp_path / "scrambled.mp4"
    exchanged = "setts=pts=PTS+if(eq(mod(N\\,10)\\,3)\\,6*DURATION\\,0)"
    ffmpeg("-i", str(corpus["h264.mp4"].path), "-c", "copy", "-bsf:v", exchanged, str(scrambled))
    _, items = read(scrambled)
    frames = [item[0] for item in items if not isinstance(item, Gap)]
    assert frames == sorted(set(frames))
    gaps = {item.error_type for item in items if isinstance(item, Gap)}
    assert gaps
    assert gaps <= {"TimestampOrder", "MissingFrame"}


def test_real_footage_decodes_whole() -> None:
    assert [len(read(path)[1]) for path in real_clips()] == [132, 120, 250]


def test_decord_agrees_on_healthy_files(corpus: dict[str, Medium]) -> None:
    for name, medium in corpus.items():
        if medium.outcome == "whole" and name not in NAMES:
            assert read(medium.path, decoder="decord") == read(medium.path), name
    video = open_video(str(corpus["h264.mp4"].path), "decord")
    assert isinstance(video, DecordDecoder)
    video.close()


def test_decord_is_never_wrong_because_pyav_takes_over_what_is_damaged(corpus: dict[str, Medium]) -> None:
    for name, medium in corpus.items():
        if medium.outcome == "damaged":
            # Twice: decord reports an error from a thread that reads ahead.
            for start in (None, None, read(medium.path)[1][40]):
                if isinstance(start, Gap):
                    continue
                time_base, items = read(medium.path, start[0] if start else None, decoder="decord")
                frames = [item for item in items if not isinstance(item, Gap)]
                assert [shown for _, shown in frames] == [medium.shown_at(pts * time_base) for pts, _ in frames], name
                assert any(isinstance(item, Gap) for item in items), name
                times = [item[0] for item in frames]
                assert times == sorted(set(times)), name
        elif medium.outcome == "refused":
            with pytest.raises(DecodeError, match=r"cannot be opened|no video stream"):
                read(medium.path, decoder="decord")


def test_pyav_goes_on_after_the_last_frame_of_decord(
    corpus: dict[str, Medium], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where decord meets an error that nothing has announced."""
    path = corpus["h264.mp4"].path
    _, whole = read(path)
    for start in (None, whole[30]):
        assert not isinstance(start, Gap)
        video = open_video(str(path), "decord")
        assert isinstance(video, DecordDecoder)
        monkeypatch.setattr(video, "_reader", BreaksOff(video._reader))
        items = [(item.pts, read_counter(item.square(224))) for item in video.read(start[0] if start else None)]  # type: ignore[union-attr]
        assert items == (whole[30:] if start else whole)
        video.close()


class BreaksOff:
    """A decord reader that fails at its eleventh frame."""

    def __init__(self, reader: Any) -> None:
        self.seek_accurate, self._reader, self._left = reader.seek_accurate, reader, 10

    def next(self) -> Any:
        if not self._left:
            raise DECORDError("error while decoding")
        self._left -= 1
        return self._reader.next()


@pytest.mark.parametrize(
    ("suffix", "codec", "kept"),
    [
        (".mkv", H264, 300),
        (".webm", ("-c:v", "libvpx", "-deadline", "realtime", "-b:v", "2M"), 300),
        (".avi", H264, 300),
        (".mp4", H264, 149),
        (".flv", H264, 149),
    ],
)
def test_files_that_were_appended_are_read_on_or_said_to_be_more(
    tmp_path: Path, suffix: str, codec: tuple[str, ...], kept: int
) -> None:
    parts = [
        encode(tmp_path / f"{first}{suffix}", [picture(first + number) for number in range(150)], *codec)
        for first in (0, 150)
    ]
    joined = tmp_path / f"joined{suffix}"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    time_base, items = read(joined)
    shown = [item for item in items if not isinstance(item, Gap)]
    assert [number for _, number in shown] == list(range(kept))
    assert [round((pts - shown[0][0]) * time_base * 25) for pts, _ in shown] == list(range(kept))
    assert [item.error_type for item in items if isinstance(item, Gap)] == (["JoinedFile"] if kept < 300 else [])
    assert cuts(joined) == ([shown[150][0]] if kept == 300 else [])
    late = shown[kept - 20]
    assert read(joined, late[0])[1] == items[items.index(late) :]


def cuts(path: Path) -> list[int]:
    video = open_video(str(path), "pyav")
    found = [item.pts for item in video.read(None) if isinstance(item, Cut)]
    video.close()
    return found


def test_a_recording_that_begins_without_a_key_frame_is_read_from_its_first_one_on(tmp_path: Path) -> None:
    whole = encode(tmp_path / "whole.ts", [picture(number) for number in range(100)], *MPEG2, "-muxdelay", "0")
    content = whole.read_bytes()
    # Transport streams consist of packets of 188 bytes; the first ones hold the tables that name the streams.
    later = content[: 188 * 3] + content[188 * 40 :]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(content + later)
    _, items = read(joined)
    numbers = [item[1] for item in items if not isinstance(item, Gap)]
    assert numbers[-20:] == list(range(80, 100))
    assert len(numbers) > 150


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("b.avi", ("-c:v", "mpeg4", "-bf", "2", "-g", "12")),
        ("b.hevc", ("-c:v", "libx265", "-x265-params", "log-level=none:keyint=15:open-gop=1:bframes=3:b-adapt=0")),
    ],
)
def test_a_seek_near_the_end_gives_the_frame_that_was_asked_for(
    tmp_path: Path, name: str, codec: tuple[str, ...]
) -> None:
    path = encode(tmp_path / name, [picture(number) for number in range(58)], *codec)
    _, items = read(path)
    assert [item[1] for item in items if not isinstance(item, Gap)] == list(range(58))
    for place in range(38, 58):
        assert read(path, items[place][0])[1] == items[place:], place  # type: ignore[index]


def test_parameters_of_h264_that_are_broken_or_of_another_stream_cost_no_frame(tmp_path: Path) -> None:
    plain = encode(tmp_path / "plain.h264", [picture(number) for number in range(50)], *H264)
    content = plain.read_bytes()
    start = content.index(b"\0\0\1\x67")
    parameters = content[start : content.index(b"\0\0\1", start + 4)]
    # One byte of parameters; a cycle without an end; and the same parameters under another number.
    endless = b"\0\0\1\x67\x42\0\x1e" + bytes((0b11001000,)) + bytes(200) + b"\x80" * 20000
    for name, extra in (("empty", b"\0\0\1\x67"), ("endless", endless), ("cut", parameters[:6])):
        damaged = tmp_path / f"{name}.h264"
        damaged.write_bytes(content.replace(parameters, parameters + extra))
        numbers = PictureNumbers(extra)
        assert not any(numbers.lost_before(packet) for packet, _ in packets(plain))
        with suppress(DecodeError):
            _, items = read(damaged)
            assert [item[1] for item in items if not isinstance(item, Gap)] == list(range(50))


def test_padding_of_motion_jpeg_is_no_damage(tmp_path: Path) -> None:
    plain = encode(tmp_path / "plain.avi", [picture(number) for number in range(20)], *MJPEG)
    padded = [(content[:-2] + bytes(5) + content[-2:], is_key) for content, is_key in packets(plain)]
    assert all(content[-2:] == b"\xff\xd9" for content, _ in padded)
    _, items = read(mux(tmp_path / "padded.avi", plain, padded))
    assert [item[1] for item in items if not isinstance(item, Gap)] == list(range(20))
