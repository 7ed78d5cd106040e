"""Images as the tables keep them, and as models are shown them."""

from __future__ import annotations

import io
import re

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps

from labeling.decoding import RGB
from lake.errors import DecodeError
from models.protocols import Images

MOST_SIDES = 100
"""An image that is longer than wide by more becomes, with its shorter side resized, thousands of times as large."""


_PADDING = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")

_DEEP = ("I", "F")
"""Modes of Pillow whose pixels have no agreed white; converted, they would be white wherever they are above 255."""


def encode_jpeg(image: RGB, quality: int) -> bytes:
    """An image as the tables keep it: JPEG, 4:4:4."""
    # Full color resolution: what changes between two frames may be no more than the color of something small.
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    encoded: bytes = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()
    return encoded


def decode_images(encoded: list[bytes]) -> Images:
    """Decode images of one size into a batch. Raises ValueError if bytes are not an image, or sizes differ."""
    return np.stack([_image(data) for data in encoded])


def _image(data: bytes) -> npt.NDArray[np.uint8]:
    image: npt.NDArray[np.uint8] | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise ValueError("an encoded frame is not an image")
    return image


def square_jpeg(content: bytes, size: int, quality: int) -> bytes:
    """An image file as JPEG (4:4:4, RGB, square): shorter side resized to `size`, center cropped, without alpha.

    Raises DecodeError for what is not a whole image, or a strip, or has more than 8 bits a gray pixel.
    """
    return encode_jpeg(_square(_read(content), size), quality)


def _read(content: bytes) -> npt.NDArray[np.uint8]:
    try:
        # Not OpenCV: it fills up an image that is cut off, and says nothing.
        with Image.open(io.BytesIO(content)) as image:
            if max(image.size) > MOST_SIDES * min(image.size):
                raise DecodeError(f"a strip of {image.width} x {image.height} pixels: cut it")
            if image.mode.startswith(_DEEP):
                raise DecodeError(
                    f"of more than 8 bits a pixel ({image.mode}): convert it, so that black and white are known"
                )
            found = np.asarray(_opaque(ImageOps.exif_transpose(image)))
            if image.format == "JPEG" and (damage := jpeg_damage(content)):
                raise DecodeError(f"not a whole image: {damage}")
            return found
    except (MemoryError, DecodeError):
        raise
    except Exception as error:  # whatever a broken image provokes is that image's failure
        raise DecodeError(f"not a whole image: {error}") from None


def _opaque(image: Image.Image) -> Image.Image:
    """Return an image in RGB; what is transparent shows the black behind it, as in videos."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")


def jpeg_damage(content: bytes) -> str:
    """Return libjpeg's complaint of a JPEG file whose gaps decoders fill by guessing; empty if there is none.

    Pillow, OpenCV and FFmpeg hide most of them.
    """
    try:
        # The whole file is decoded, and an eighth of its pixels computed.
        simplejpeg.decode_jpeg(content, "GRAY", min_factor=8, strict=True)
    except ValueError as error:
        complaint = str(error)
        padding = _PADDING.fullmatch(complaint)
        # Cameras fill up a picture with zeros before its end marker.
        is_padding = padding and not any(content[: content.rfind(b"\xff\xd9")][-int(padding[1]) :])
        return complaint if complaint.startswith(("Corrupt JPEG", "Premature end")) and not is_padding else ""
    return ""


def _square(image: npt.NDArray[np.uint8], size: int) -> RGB:
    height, width = image.shape[:2]
    scale = size / min(width, height)
    width, height = max(size, round(width * scale)), max(size, round(height * scale))
    # Averages what falls into one pixel: the other filters skip pixels when they shrink, and small things with them.
    scaled = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    square: RGB = np.ascontiguousarray(scaled[top : top + size, left : left + size])
    return square
