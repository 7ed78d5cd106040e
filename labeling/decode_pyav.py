"""Decoding with PyAV, which bundles FFmpeg."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

import av
import av.error
import av.logging
import numpy as np
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from labeling.decoding import RGB, Frame, Gap, Gray
from lake.errors import DecodeError
from lake.video import open_container

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet

# FFmpeg resynchronizes after damage without an error code: that frames are missing stands in its log only.
av.logging.set_level(av.logging.ERROR)
av.logging.set_skip_repeated(False)
logging.getLogger("libav").propagate = False
logging.getLogger("libav").addHandler(logging.NullHandler())

# A demuxer that fails this often without a packet in between is not getting anywhere.
MAX_READ_ERRORS = 1000
# Where the frame asked for precedes its key frame in display order (open GOP), the key frame before that one serves:
# encoders put one at least every 250 frames, which is 10 s at 25 frames/s.
SEEK_MARGIN_S = 10
# Codecs whose every packet shows exactly one frame; others have packets that show none (VP8's hidden frames, fields).
ONE_FRAME_A_PACKET = {"av1", "libdav1d", "hevc", "vp9"}
# Bytes of an AVI chunk before its content: the index has where the one starts, FFmpeg where the other does.
CHUNK_HEADER = 8
# The same pixels on every CPU, whatever vector instructions it has.
SCALING = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT


@dataclass(frozen=True)
class Damage:
    """Why frames are missing."""

    error_type: str
    message: str


class _Ledger:
    """Keeps what went into the codec against what comes out of it.

    Codecs lose frames without an error, and after a loss they continue with wrong pictures, flagged or not, up to the
    next key frame. So a frame is usable if a key frame at or before it went in after the last loss, and if nothing
    that went in between is missing.
    """

    def __init__(self, codec: str) -> None:
        self._tolerance = 0 if codec in ONE_FRAME_A_PACKET else 1
        self._due: list[int] = []
        self._clean_from: int | None = None

    def damaged(self) -> None:
        """Note a loss."""
        self._clean_from = None

    def sent(self, packet: Packet[VideoStream]) -> None:
        """Note a packet that the codec has taken."""
        pts = packet.dts if packet.pts is None else packet.pts
        if pts is None:
            return
        if packet.is_keyframe and self._clean_from is None:
            self._clean_from = pts
        # What an edit list hides is decoded, because others refer to it, and does not come out.
        if not packet.is_discard:
            heapq.heappush(self._due, pts)

    def missing_before(self, pts: int | None) -> Damage | None:
        """Settle what was due before the frame with this PTS, or at the end of the stream (None)."""
        missing = 0
        while self._due and (pts is None or self._due[0] <= pts):
            due = heapq.heappop(self._due)
            missing += due != pts and self._clean_from is not None and due >= self._clean_from
        return Damage("MissingFrame", "frames did not come out of the codec") if missing > self._tolerance else None

    def problem(self, frame: av.VideoFrame, last: int | None) -> Damage | None:
        """Why this frame cannot be used after the one with PTS `last`; None if it can."""
        if frame.pts is None:
            return Damage("NoTimestamp", "a frame has no presentation time")
        if last is not None and frame.pts <= last:
            return Damage("TimestampOrder", f"a frame with PTS {frame.pts} follows one with {last}")
        loss = Damage("CorruptFrame", "a frame is damaged") if frame.is_corrupt else self.missing_before(frame.pts)
        if loss is not None:
            self.damaged()
        elif self._clean_from is None or frame.pts < self._clean_from:
            loss = Damage("NoKeyFrame", "frames cannot be decoded without the key frame before them")
        return loss


class _FrameNumbers:
    """Gives packets of an AVI file the number that its index has for their place.

    AVI frames have no time but their number, and after damage FFmpeg keeps counting as if nothing had been lost.
    """

    def __init__(self, stream: VideoStream) -> None:
        self._numbers = {entry.pos + CHUNK_HEADER: entry.timestamp for entry in stream.index_entries}
        self._shift = 0

    def correct(self, packet: Packet[VideoStream]) -> bool:
        """Put the packet's times right; true if frames were lost before it."""
        number = self._numbers.get(packet.pos) if packet.pos is not None else None
        if number is None or packet.dts is None:
            return False
        shift = number - packet.dts
        has_lost = shift != self._shift
        self._shift = shift
        packet.dts += shift
        if packet.pts is not None:
            packet.pts += shift
        return has_lost


def open_stream(file: IO[bytes]) -> tuple[InputContainer, VideoStream]:
    """Open the file and find its best video stream, which decodes with one thread. Raises DecodeError."""
    try:
        container = open_container(file, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise DecodeError(f"cannot be opened: {_describe(error)}") from error
    stream = container.streams.best("video")
    # The cover of a sound file is a video stream to FFmpeg.
    if not isinstance(stream, VideoStream) or not stream.time_base or stream.disposition & Disposition.attached_pic:
        container.close()
        raise DecodeError("holds no video stream")
    # The pipeline runs one decoder per core.
    stream.codec_context.thread_count = 1
    return container, stream


def open_file(path: str) -> IO[bytes]:
    """Open the file itself. Raises DecodeError."""
    try:
        return Path(path).open("rb")
    except (OSError, ValueError) as error:
        raise DecodeError(f"cannot be opened: {_describe(error)}") from error


def open_video(path: str) -> PyAVDecoder:
    """Open the best video stream of a file. Raises DecodeError."""
    return PyAVDecoder(path)


def _describe(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


@cache
def _luma_depth(pixel_format: str) -> int | None:
    """Bits of a luminance value if the first plane holds these and nothing else, in the low bits; None if not."""
    pixels = av.VideoFormat(pixel_format)
    is_plain = pixel_format.startswith(("yuv", "nv", "gray")) and pixels.is_planar and not pixels.is_big_endian
    return pixels.components[0].bits if is_plain else None


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
        scaled = self._reformatter.reformat(self._frame, width, height, "rgb24", interpolation=SCALING, threads=1)
        left, top = (width - size) // 2, (height - size) // 2
        cropped = scaled.to_ndarray()[top : top + size, left : left + size]
        return np.rot90(cropped, round(self._frame.rotation / 90))


class PyAVDecoder:
    """`decoding.Decoder` on PyAV."""

    def __init__(self, path: str) -> None:
        self._file = open_file(path)
        try:
            self._container, self._stream = open_stream(self._file)
        except DecodeError:
            self._file.close()
            raise
        self._fresh = True
        self._reformatter = VideoReformatter()

    @property
    def container_format(self) -> str:
        """The name that FFmpeg has for the container."""
        return self._container.format.name

    @property
    def sample_aspect(self) -> float:
        """Width of a pixel by its height."""
        return float(self._stream.sample_aspect_ratio or 1)

    @property
    def time_base(self) -> tuple[int, int]:
        """See `decoding.Decoder.time_base`."""
        assert self._stream.time_base is not None
        return self._stream.time_base.numerator, self._stream.time_base.denominator

    def close(self) -> None:
        """See `decoding.Decoder.close`."""
        self._container.close()
        self._file.close()

    def read(self, start_pts: int | None) -> Iterator[Frame | Gap]:
        """See `decoding.Decoder.read`."""
        if start_pts is None:
            yield from self._decode(None)
            return
        numerator, denominator = self.time_base
        margin = SEEK_MARGIN_S * denominator // numerator
        for seek_to in (start_pts, start_pts - margin, None):
            items = self._decode(seek_to)
            for item in items:
                if isinstance(item, Gap) or item.pts < start_pts:
                    continue
                if item.pts > start_pts:
                    break
                yield item
                yield from items
                return
        raise DecodeError(f"there is no frame with PTS {start_pts} any more")

    def _decode(self, seek_to: int | None) -> Iterator[PyAVFrame | Gap]:
        self._position(seek_to)
        ledger = _Ledger(self._stream.codec_context.name)
        last: int | None = None
        # One frame is held back: what spoilt the packets after it may have begun within its own.
        held: PyAVFrame | None = None
        damage: Damage | None = None
        for event in self._frames(ledger):
            problem = event if isinstance(event, Damage) else ledger.problem(event, held.pts if held else last)
            if problem is not None:
                damage, held = damage or problem, None
                continue
            if held is not None:
                last = held.pts
                yield held
            assert isinstance(event, av.VideoFrame)
            held = PyAVFrame(event, self.sample_aspect, self._reformatter)
            if damage is not None:
                yield Gap(last, held.pts, damage.error_type, damage.message)
                damage = None
        damage = damage or ledger.missing_before(None)
        if held is not None:
            last = held.pts
            yield held
        if last is None and seek_to is None:
            raise DecodeError(damage.message if damage else "holds no frame that can be decoded")
        if damage is not None:
            yield Gap(last, None, damage.error_type, damage.message)

    def _position(self, seek_to: int | None) -> None:
        """Start over at the last key frame at or before `seek_to`, or at the start of the file."""
        if not self._fresh:
            self._container.close()
            self._file.seek(0)
            self._container, self._stream = open_stream(self._file)
        self._fresh = False
        if seek_to is not None:
            try:
                self._container.seek(seek_to, stream=self._stream)
            except av.error.FFmpegError:
                # Not seekable there: what is decoded from the start instead is the same, only later.
                return

    def _frames(self, ledger: _Ledger) -> Iterator[av.VideoFrame | Damage]:
        for packet in self.packets():
            if isinstance(packet, Damage):
                ledger.damaged()
                yield packet
                continue
            try:
                frames = packet.decode()
            except av.error.FFmpegError as error:
                # Some codecs (dav1d) refuse everything after an error until they are flushed.
                self._stream.codec_context.flush_buffers()
                ledger.damaged()
                yield Damage(type(error).__name__, _describe(error))
            else:
                ledger.sent(packet)
                yield from frames

    def packets(self) -> Iterator[Packet[VideoStream] | Damage]:
        """Yield what the container holds for the codec, and where it is damaged; once for each time it is opened."""
        self._fresh = False
        packets = self._container.demux(self._stream)
        numbers = _FrameNumbers(self._stream) if self._container.format.name == "avi" else None
        errors = 0
        while errors < MAX_READ_ERRORS:
            try:
                with av.logging.Capture() as log:
                    packet = next(packets, None)
            except av.error.FFmpegError as error:
                errors += 1
                packets = self._container.demux(self._stream)
                yield Damage(type(error).__name__, _describe(error))
                continue
            complaints = [message for _, source, message in log if source == self._container.format.name]
            if complaints:
                yield Damage("ContainerDamage", complaints[0].strip())
            if packet is None:
                return
            errors = 0
            if numbers is not None and numbers.correct(packet):
                yield Damage("ContainerDamage", "frames are missing from the file")
            if packet.is_corrupt:
                yield Damage("CorruptPacket", "the container holds a damaged packet")
            # AVI repeats a frame by a packet of nothing, which codecs would take for the end of the stream.
            elif packet.size or packet.dts is None:
                yield packet
