"""Opening a video file: the one place where bytes from outside reach FFmpeg."""

from typing import IO, Literal

import av
import av.error
from av.container import InputContainer

FORMATS = (
    *("mov", "matroska", "webm", "avi", "flv", "mpegts", "mpeg", "mpegvideo", "mxf", "ogg", "asf"),
    *("h264", "hevc", "m4v", "dv", "ivf"),
)
"""Containers that hold pictures themselves, as FFmpeg calls them, and streams without one. Playlists and scripts, which
name files, are formats too."""


class UnknownFormat(ValueError):
    """The file is not of a container that is read."""


def open_container(file: IO[bytes], metadata_errors: Literal["ignore", "replace"] = "ignore") -> InputContainer:
    """Open a video of which nothing but this file is read, whatever its content names. The caller closes both.

    Raises ``av.FFmpegError`` when it is damaged, and ``UnknownFormat``.
    """
    # A file object instead of a name, and no protocol: FFmpeg has no way to open anything else.
    options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "none"}
    try:
        return av.open(file, "r", metadata_errors=metadata_errors, options=options)
    except av.error.ArgumentError as error:
        raise UnknownFormat(
            f"it is not a video container that is read ({', '.join(FORMATS)}); playlists are not followed"
        ) from error
