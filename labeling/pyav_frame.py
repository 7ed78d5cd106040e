"""A frame of PyAV as it is displayed: upright, with square pixels, in one field, and in the colors of a screen."""

from __future__ import annotations

from functools import cache
from typing import cast

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import Colorspace, ColorTrc, Interpolation, VideoReformatter

from labeling.decoding import RGB, Gray
from labeling.tone_map import Deep, from_hlg, from_pq

# The same pixels on every CPU, whatever vector instructions it has.
SCALING = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
# Pictures that do not say how their colors are coded: from this size on as BT.709, as players have it, else as BT.601.
HD_WIDTH, HD_HEIGHT = 1280, 720
UNSPECIFIED = 2
TONE_MAPS = {ColorTrc.SMPTE2084: from_pq, ColorTrc.ARIB_STD_B67: from_hlg}


@cache
def _luma_depth(pixel_format: str) -> int | None:
    """Bits of a luminance value if the first plane holds these and nothing else, in the low bits; None if not."""
    pixels = av.VideoFormat(pixel_format)
    is_plain = pixel_format.startswith(("yuv", "nv", "gray")) and pixels.is_planar and not pixels.is_big_endian
    return pixels.components[0].bits if is_plain else None


@cache
def _has_alpha(pixel_format: str) -> bool:
    return any(component.is_alpha for component in av.VideoFormat(pixel_format).components)


class PyAVFrame:
    """A frame as FFmpeg decoded it; colors are only converted when asked for."""

    def __init__(self, frame: av.VideoFrame, sample_aspect: float, reformatter: VideoReformatter) -> None:
        assert frame.pts is not None
        self.pts = frame.pts
        self._frame = frame
        self._sample_aspect = sample_aspect
        self._reformatter = reformatter

    @property
    def size(self) -> tuple[int, int]:
        """See `decoding.Frame.size`."""
        return self._frame.width, self._frame.height

    @property
    def is_plain(self) -> bool:
        """Return whether the picture is displayed as it is coded, but for scaling and turning."""
        a, b, c, d = display_matrix(self._frame)
        is_mirrored = a * d < b * c
        is_special = self._frame.interlaced_frame or _has_alpha(self._frame.format.name)
        has_other_colors = self._is_untagged_hd or self._frame.color_trc in TONE_MAPS
        return not (is_mirrored or is_special or has_other_colors)

    @property
    def _is_untagged_hd(self) -> bool:
        is_hd = self._frame.width >= HD_WIDTH or self._frame.height >= HD_HEIGHT
        return is_hd and self._frame.colorspace == UNSPECIFIED

    def luma(self, step: int) -> Gray:
        """See `decoding.Frame.luma`."""
        frame, depth = self._frame, _luma_depth(self._frame.format.name)
        if depth is None:
            frame, depth = self._reformatter.reformat(frame, format="gray", threads=1), 8
        plane = frame.planes[0]
        if depth == 8:
            return np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, -1)[::step, : plane.width : step]
        deep = np.frombuffer(memoryview(plane), np.uint16).reshape(plane.height, -1)[::step, : plane.width : step]
        return (deep >> (depth - 8)).astype(np.uint8)

    def square(self, size: int) -> RGB:
        """See `decoding.Frame.square`."""
        width, height = self._frame.width * self._sample_aspect, float(self._frame.height)
        scale = size / min(width, height)
        width, height = max(size, round(width * scale)), max(size, round(height * scale))
        left, top = (width - size) // 2, (height - size) // 2
        return upright(self._scaled(width, height)[top : top + size, left : left + size], display_matrix(self._frame))

    def _scaled(self, width: int, height: int) -> RGB:
        """Return the whole picture in the colors of a screen, as coded (not turned)."""
        frame = _first_field(self._frame) if self._frame.interlaced_frame else self._frame
        tone_map = TONE_MAPS.get(cast(ColorTrc, frame.color_trc))
        pixel_format = "rgb48le" if tone_map else "rgba" if _has_alpha(frame.format.name) else "rgb24"
        scaled = self._reformatter.reformat(
            frame,
            width,
            height,
            pixel_format,
            src_colorspace=Colorspace.ITU709 if self._is_untagged_hd else None,
            interpolation=SCALING,
            threads=1,
        ).to_ndarray()
        if tone_map:
            return tone_map(cast(Deep, scaled))
        if pixel_format == "rgba":
            if not scaled[..., 3].any():
                # Uncompressed AVI has four bytes a pixel, of which nobody sets the last.
                return cast(RGB, scaled[..., :3])
            # On black, as players show it.
            return (scaled[..., :3] * (scaled[..., 3:] / np.float32(255)) + 0.5).astype(np.uint8)
        return cast(RGB, scaled)


def _first_field(frame: av.VideoFrame) -> av.VideoFrame:
    """Return the upper lines of an interlaced frame: the others were recorded at another moment."""
    graph = Graph()
    graph.link_nodes(
        graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base),
        graph.add("field", "type=top"),
        graph.add("buffersink"),
    ).configure()
    graph.vpush(frame)
    return graph.vpull()


Matrix = tuple[int, int, int, int]
"""How a picture is to be turned: x' = a x + c y and y' = b x + d y, each of -1, 0 and 1."""
UPRIGHT: Matrix = (1, 0, 0, 1)


def display_matrix(frame: av.VideoFrame) -> Matrix:
    """Return how the container says that this frame is to be turned and mirrored, to the next right angle."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return UPRIGHT
    a, b, _, c, d, *_ = np.frombuffer(cast(memoryview, data), np.int32).tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return (-1 if a < 0 else 1), 0, 0, (-1 if d < 0 else 1)
    return 0, (-1 if b < 0 else 1), (-1 if c < 0 else 1), 0


def upright(image: RGB, matrix: Matrix) -> RGB:
    """Turn and mirror a picture as its matrix says."""
    a, b, c, d = matrix
    if not a:
        image = image.transpose(1, 0, 2)
    return image[:: b or d, :: a or c]
