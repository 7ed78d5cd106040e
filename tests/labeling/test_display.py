"""Pictures are those that a screen shows: upright, opaque, of one moment, and in their colors."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from labeling.decoding import RGB, Cut, Gap, open_video
from labeling.images import square_jpeg
from labeling.pyav_frame import Matrix
from labeling.tone_map import BT2020_LUMINANCE, TO_BT709, WHITE
from tests.media import H264, MISSING, encode, ffmpeg, picture, read_counter

pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason=MISSING)

SIDE = 64
LOSSLESS = ("-c:v", "libx264", "-qp", "0")


def frames(path: Path, decoder: str = "pyav", size: int = SIDE) -> list[RGB]:
    """Every frame, squared."""
    video = open_video(str(path), decoder)  # type: ignore[arg-type]
    found = [np.array(item.square(size)) for item in video.read(None) if not isinstance(item, Cut | Gap)]
    video.close()
    return found


def raw(path: Path, image: npt.NDArray[np.uint8] | npt.NDArray[np.uint16], pixels: str, *options: str) -> Path:
    """Write one picture as a video of two frames."""
    size = f"{image.shape[1]}x{image.shape[0]}"
    source = ("-f", "rawvideo", "-pix_fmt", pixels, "-s", size, "-r", "25", "-i", "pipe:0")
    ffmpeg(*source, *options, str(path), stdin=image.tobytes() * 2)
    return path


CORNERS = np.array([[[200, 40, 40], [40, 200, 40]], [[40, 40, 200], [200, 200, 40]]], np.uint8)


def corners(image: RGB) -> str:
    """The corners of a picture, row by row, by the numbers that they have in `CORNERS`."""
    quarter = SIDE // 4
    found = image[quarter :: 2 * quarter, quarter :: 2 * quarter].reshape(4, 1, 3).astype(int)
    return "".join(str(number) for number in np.abs(found - CORNERS.reshape(1, 4, 3)).sum(axis=2).argmin(axis=1))


@pytest.fixture(scope="module")
def upright(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = CORNERS.repeat(SIDE, axis=0).repeat(SIDE, axis=1)
    return encode(tmp_path_factory.mktemp("display") / "upright.mp4", [image] * 2, *LOSSLESS)


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((1, 0, 0, 1), "0123"),
        ((0, 1, -1, 0), "2031"),
        ((-1, 0, 0, -1), "3210"),
        ((0, -1, 1, 0), "1302"),
        ((-1, 0, 0, 1), "1032"),
        ((1, 0, 0, -1), "2301"),
        ((0, 1, 1, 0), "0213"),
        ((0, -1, -1, 0), "3120"),
    ],
)
def test_turned_and_mirrored_videos_are_upright(tmp_path: Path, upright: Path, matrix: Matrix, shown: str) -> None:
    data = bytearray(upright.read_bytes())
    # In the header of the track, after version, times, id, duration, layer, group and volume (ISO 14496-12, 8.3.2).
    place = data.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    data[place : place + 36] = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4").tobytes()
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(data)
    assert corners(frames(turned)[0]) == shown
    assert corners(frames(turned, "decord")[0]) == shown
    # As ffmpeg, whose players do the same, has it.
    ffmpeg("-i", str(turned), "-frames:v", "1", "-s", f"{SIDE}x{SIDE}", str(tmp_path / "shown.png"))
    assert corners(cv2.imread(str(tmp_path / "shown.png"))[..., ::-1]) == shown


COLORS = np.array(
    [(200, 40, 40), (40, 200, 40), (40, 40, 200), (150, 150, 40), (128, 128, 128), (60, 60, 60), (20, 20, 20)], float
)


def pq(light: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The inverse EOTF of SMPTE ST 2084, of light whose white is 1."""
    power = (np.maximum(light, 0) * WHITE / 10000) ** (2610 / 16384)
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    found: npt.NDArray[np.float64] = ((c1 + c2 * power) / (1 + c3 * power)) ** (2523 / 4096 * 128)
    return found


def hlg(light: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The inverse OOTF and the OETF of ARIB STD-B67, of light whose white is 1."""
    display = np.maximum(light, 0) * WHITE / 1000
    scene = display * (display @ BT2020_LUMINANCE)[:, None] ** ((1 - 1.2) / 1.2)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    bright = a * np.log(np.maximum(12 * scene - b, 1e-9)) + c
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), bright)


@pytest.mark.parametrize(("transfer", "curve"), [("smpte2084", pq), ("arib-std-b67", hlg)])
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_high_dynamic_range_has_the_colors_of_a_screen(tmp_path: Path, transfer: str, curve, decoder: str) -> None:  # type: ignore[no-untyped-def]
    light = (COLORS / 255) ** 2.4 @ np.linalg.inv(TO_BT709.astype(float)).T
    # The last one is a highlight of five times white.
    signal = curve(np.vstack([light, np.full((1, 3), 5.0)]))
    cells = np.rint(np.clip(signal, 0, 1) * 65535).astype(np.uint16).reshape(2, 4, 3)
    image = cells.repeat(SIDE // 2, axis=0).repeat(SIDE // 4, axis=1)
    of_hdr = f"colorspace=bt2020nc:color_trc={transfer}:color_primaries=bt2020:range=tv"
    chain = f"scale=out_color_matrix=bt2020:out_range=tv,format=yuv420p10le,setparams={of_hdr}"
    path = raw(tmp_path / "hdr.mkv", image, "rgb48le", "-vf", chain, "-c:v", "ffv1")
    found = frames(path, decoder)[0][SIDE // 4 :: SIDE // 2, SIDE // 8 :: SIDE // 4].reshape(8, 3).astype(int)
    assert np.abs(found[:7] - COLORS).max() <= 2
    assert found[7].min() > 250


def test_colors_that_are_not_told_are_those_of_the_size(tmp_path: Path) -> None:
    for size, matrix in (((320, 240), "bt601"), ((1280, 720), "bt709")):
        image = np.full((*size[::-1], 3), (200, 40, 40), np.uint8)
        chain = f"scale=out_color_matrix={matrix}:out_range=tv,setparams=colorspace=unknown"
        path = encode(tmp_path / f"{matrix}.mp4", [image] * 5, "-vf", chain, "-c:v", "libx264", "-qp", "2")
        for decoder in ("pyav", "decord"):
            assert np.abs(frames(path, decoder)[0].astype(int) - (200, 40, 40)).max() <= 4, (size, decoder)


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_an_interlaced_picture_is_of_one_moment(tmp_path: Path, decoder: str) -> None:
    left, right = (np.full((288, 352, 3), 60, np.uint8) for _ in range(2))
    left[:, :176] = right[:, 176:] = 200
    codec = ("-c:v", "mpeg2video", "-flags", "+ildct+ilme", "-q:v", "2")
    path = encode(tmp_path / "fields.ts", [left, right] * 4, "-vf", "tinterlace=interleave_top,setfield=tff", *codec)
    image = frames(path, decoder)[0].astype(int)
    assert np.abs(image[8:-8, 4:12] - 200).max() < 12
    assert np.abs(image[8:-8, -12:-4] - 60).max() < 12


@pytest.mark.parametrize(
    ("codec", "pixels", "suffix"),
    [("qtrle", "argb", "mov"), ("png", "rgba", "mov"), ("prores_ks", "yuva444p10le", "mov"), ("ffv1", "bgra", "mkv")],
)
def test_what_is_transparent_shows_black(tmp_path: Path, codec: str, pixels: str, suffix: str) -> None:
    image = np.full((SIDE, SIDE, 4), (200, 100, 50, 255), np.uint8)
    image[: SIDE // 2, :, 3] = 128
    image[SIDE // 2 :, SIDE // 2 :, 3] = 0
    path = raw(tmp_path / f"alpha.{suffix}", image, "rgba", "-c:v", codec, "-pix_fmt", pixels)
    expected = [[100, 50, 25], [200, 100, 50], [0, 0, 0]]
    for decoder in ("pyav", "decord"):
        shown = frames(path, decoder)[0].astype(int)
        assert np.abs(shown[[8, 56, 56], [8, 8, 56]] - expected).max() <= 2
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    stored = np.asarray(Image.open(io.BytesIO(square_jpeg(file.getvalue(), SIDE, 95)))).astype(int)
    assert np.abs(stored[[8, 56, 56], [8, 8, 56]] - expected).max() <= 4


def test_the_fourth_byte_of_uncompressed_pixels_is_no_transparency(tmp_path: Path) -> None:
    image = np.full((SIDE, SIDE, 4), (50, 100, 200, 0), np.uint8)
    path = raw(tmp_path / "plain.avi", image, "bgra", "-c:v", "rawvideo", "-pix_fmt", "bgra")
    assert np.abs(frames(path)[0].astype(int) - (200, 100, 50)).max() <= 2


def test_pixels_that_change_their_shape_half_way(tmp_path: Path) -> None:
    parts = [
        encode(tmp_path / f"{width}.ts", [picture(6)] * 20, "-vf", f"scale={width}:144,setsar={aspect}", *H264)
        for width, aspect in ((192, 1), (96, 2))
    ]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert {read_counter(image) for image in frames(joined, size=224)} == {6}
    video = open_video(str(joined), "pyav")
    assert any(isinstance(item, Cut) for item in video.read(None))
    video.close()
