"""Uploaded images, decoded in processes that can be killed."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from labeling.images import square_jpeg
from labeling.sampling import flow_picture, motion_between
from lake.errors import ChildLost, DecodeError
from lake.isolation import Isolated
from serve.isolated_pool import Processes
from serve.jpegs import picture_only
from serve.problems import bad_request

Result = TypeVar("Result")

FORMATS = ("JPEG", "PNG", "WEBP")
TIMEOUT_S = 10.0
"""For the images of a request: a photograph takes some ten milliseconds."""
PROCESSES = 4
"""Of an ingress. A file that hangs a decoder occupies one of them only."""
_PIXEL_BYTES, _TABLE_BYTES = 6, 4096
"""Of a JPEG that stays as it is. Noise at the best quality has less; what has more carries something along."""


class TooLarge(DecodeError):
    """An image of too many pixels."""


@dataclass(frozen=True)
class Pair:
    """Two images as the lake would keep them, and the motion between them as sampling measures it."""

    obs: bytes
    next_obs: bytes
    motion: float
    camera_motion: float


class Uploads:
    """Decodes uploads in processes, each with one request at a time, that are killed when they take too long."""

    def __init__(self, size: int, quality: int, max_pixels: int) -> None:
        """`size` is the side of the model's images in pixels, `quality` that of their JPEGs."""
        self._size, self._quality, self._max_pixels = size, quality, max_pixels
        self._processes = Processes([Isolated(TIMEOUT_S, 2 << 30) for _ in range(PROCESSES)])

    async def pairs(self, contents: list[tuple[bytes, bytes]]) -> list[Pair]:
        """Return frame pairs of uploaded files. Raises Problem for a file that is not an image or is too large."""
        return await self._call(_pairs, contents)

    async def images(self, contents: list[bytes]) -> list[bytes]:
        """Return uploaded files as square JPEGs. Raises Problem as `pairs` does."""
        return await self._call(_images, contents)

    async def _call(self, function: Callable[..., list[Result]], contents: Sequence[object]) -> list[Result]:
        try:
            return await self._processes.call(function, contents, self._size, self._quality, self._max_pixels)
        except TooLarge as error:
            raise bad_request("too-many-pixels", str(error)) from None
        except DecodeError as error:
            raise bad_request("image", str(error)) from None
        except ChildLost:
            raise bad_request("image", "an image could not be decoded in time: send a plain JPEG") from None

    def close(self) -> None:
        """Stop the processes."""
        self._processes.close()


def _pairs(contents: list[tuple[bytes, bytes]], size: int, quality: int, max_pixels: int) -> list[Pair]:
    pairs = []
    for row, files in enumerate(contents):
        names = (f"pairs[{row}].obs", f"pairs[{row}].next_obs")
        obs, next_obs = (
            _normalized(content, name, size, quality, max_pixels) for content, name in zip(files, names, strict=True)
        )
        pairs.append(Pair(obs, next_obs, *motion_between(*(_luma(image) for image in (obs, next_obs)))))
    return pairs


def _images(contents: list[bytes], size: int, quality: int, max_pixels: int) -> list[bytes]:
    return [_normalized(content, "image", size, quality, max_pixels) for content in contents]


def _normalized(content: bytes, name: str, size: int, quality: int, max_pixels: int) -> bytes:
    """Return an image as the lake stores it. An image from a lake is not changed, so that it gets the same label.

    Of any other file that looks like one from a lake, only the picture itself is kept.
    """
    try:
        with warnings.catch_warnings():
            # Its own limit on pixels comes after ours.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                width, height = image.size
                is_ours = image.format == "JPEG" and image.size == (size, size) and image.mode == "RGB"
                is_ours = is_ours and not image.getexif()
    except MemoryError:
        raise
    except Image.DecompressionBombError:
        raise TooLarge(f"{name} has more than {max_pixels:,} pixels: send a smaller picture") from None
    except Exception:
        raise DecodeError(f"{name} is not an image: send JPEG, PNG or WebP") from None
    if width * height > max_pixels:
        raise TooLarge(f"{name} has {width} x {height} pixels, more than {max_pixels:,}: send a smaller picture")
    picture = picture_only(content) if is_ours else None
    if picture is not None and len(picture) > _TABLE_BYTES + _PIXEL_BYTES * size * size:
        picture = None
    try:
        again = square_jpeg(picture or content, size, quality)
    except DecodeError as error:
        raise DecodeError(f"{name} is {error}") from None
    return picture or again


def _luma(jpeg: bytes) -> npt.NDArray[np.uint8]:
    return flow_picture(np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE), np.uint8))
