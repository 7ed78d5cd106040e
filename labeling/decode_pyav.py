"""Decoding with PyAV, which bundles FFmpeg."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, TypeAlias

import av
import av.error
import av.logging
from av.bitstream import BitStreamFilterContext
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from labeling.avi import FrameNumbers, is_cut_off
from labeling.decoding import Cut, Frame, Gap
from labeling.frame_order import (
    NO_KEY_FRAME,
    Damage,
    FrameOrder,
    JoinedNumbers,
    JoinedTimes,
    NumberedFrames,
    TimedFrames,
)
from labeling.h264 import PictureNumbers
from labeling.images import jpeg_damage
from labeling.joined import recordings
from labeling.pyav_frame import PyAVFrame
from lake.errors import DecodeError
from lake.video import open_container

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet

    Event: TypeAlias = "Packet[VideoStream] | Damage | Cut"
    Decoded: TypeAlias = "av.VideoFrame | Damage | Cut | _Aspect"

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
# Streams without a container, whose packets have no time at all: theirs is their number.
RAW = {"h264", "hevc", "m4v"}
# Frames per second of a stream that does not say.
RAW_RATE = Fraction(25)
# Containers whose recordings may follow each other without anything that says so.
JOINED = {"mpeg", "mpegts", "mpegvideo"}
# Containers of which FFmpeg reads the first recording only.
UNREAD = {"mov,mp4,m4a,3gp,3g2,mj2", "flv"}
# Codecs other than H.264 of which a frame in the middle of a file may be interlaced.
INTERLACED = {"mpeg1video", "mpeg2video", "mpeg4", "vc1", "dvvideo", "prores"}
# Bytes of packets that are kept while the place to start from is looked for.
MAX_KEPT = 2**28
# Packets of a stream that may all be decoded as they are shown, although others are not.
UNORDERED_PACKETS = 64
# An MPEG-4 packet as short as this says that the frame before is to be shown once more.
MAX_EMPTY_VOP = 19


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


def _note(container: InputContainer, chosen: VideoStream) -> str | None:
    others = [
        f"{stream.codec_context.width} x {stream.codec_context.height}"
        for stream in container.streams.video
        if stream.index != chosen.index and not stream.disposition & Disposition.attached_pic
    ]
    size = f"{chosen.codec_context.width} x {chosen.codec_context.height}"
    track = f"track {chosen.index}, {size},"
    return f"of {len(others) + 1} video tracks {track} was read; others: {', '.join(others)}" if others else None


class _Aspect(NamedTuple):
    """From the frame of this PTS on, a pixel is `value` times as wide as high."""

    pts: int
    value: float


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
        unit = 1 / (self._stream.guessed_rate or RAW_RATE) if self.container_format in RAW else self._stream.time_base
        assert unit is not None
        self.time_base = unit.numerator, unit.denominator
        self.note = _note(self._container, self._stream)
        starts = recordings(self._file, self.container_format)
        # Where each recording after the first starts, in bytes, as far as FFmpeg reads on there.
        self._starts = starts[1:] if starts and self.container_format == "avi" else []
        is_matroska = self.container_format == "matroska,webm"
        self._is_joined = self.container_format in JOINED or (is_matroska and (starts is None or len(starts) > 1))
        self.is_numbered = self.container_format in {"avi", *RAW} or self._has_decoding_times_only()

    @property
    def container_format(self) -> str:
        """The name that FFmpeg has for the container."""
        return self._container.format.name

    @property
    def sample_aspect(self) -> float:
        """Width of a pixel by its height, at the start of the video."""
        return float(self._stream.sample_aspect_ratio or 1)

    @property
    def may_be_interlaced(self) -> bool:
        """Return whether the codec says that frames may consist of two fields."""
        codec = self._stream.codec_context
        return PictureNumbers(codec.extradata).has_fields if codec.name == "h264" else codec.name in INTERLACED

    def close(self) -> None:
        """See `decoding.Decoder.close`."""
        self._container.close()
        self._file.close()

    def read(self, start_pts: int | None) -> Iterator[Frame | Gap | Cut]:
        """See `decoding.Decoder.read`."""
        if start_pts is None:
            yield from self._decode(None)
            return
        numerator, denominator = self.time_base
        margin = SEEK_MARGIN_S * denominator // numerator
        for seek_to in (start_pts, start_pts - margin, None):
            items = self._decode(seek_to)
            for item in items:
                if not isinstance(item, PyAVFrame) or item.pts < start_pts:
                    continue
                if item.pts > start_pts:
                    break
                yield item
                yield from items
                return
        raise DecodeError(f"there is no frame with PTS {start_pts} any more")

    def _decode(self, seek_to: int | None) -> Iterator[PyAVFrame | Gap | Cut]:
        order = NumberedFrames() if self.is_numbered else TimedFrames(self._stream.codec_context.name)
        changes: deque[Cut | _Aspect] = deque()
        aspect = self.sample_aspect
        last: int | None = None
        damage: Damage | None = None
        for event in chain(_before_damage(self._frames(order, self.packets(seek_to))), order.end()):
            if isinstance(event, av.VideoFrame) and last is not None and event.pts is not None and event.pts <= last:
                # Damage may also put packets that are whole in a wrong place.
                damage = damage or Damage("TimestampOrder", f"a frame with PTS {event.pts} follows one with {last}")
            elif isinstance(event, Damage):
                damage = damage or event
            elif isinstance(event, Cut | _Aspect):
                changes.append(event)
            else:
                assert event.pts is not None
                if damage is not None:
                    yield Gap(last, event.pts, damage.error_type, damage.message)
                    damage = None
                while changes and changes[0].pts <= event.pts:
                    change = changes.popleft()
                    aspect = change.value if isinstance(change, _Aspect) else aspect
                    yield Cut(change.pts)
                last = event.pts
                yield PyAVFrame(event, aspect, self._reformatter)
        if last is None and seek_to is None:
            raise DecodeError(damage.message if damage else "holds no frame that can be decoded")
        if damage is not None:
            yield Gap(last, None, damage.error_type, damage.message)

    def _rewind(self) -> None:
        if not self._fresh:
            self._container.close()
            self._file.seek(0)
            self._container, self._stream = open_stream(self._file)
        self._fresh = False
        if self._stream.codec_context.name == "mpeg4":
            self._unpack = BitStreamFilterContext("mpeg4_unpack_bframes", self._stream)

    def packets(self, seek_to: int | None = None) -> Iterator[Event]:
        """Yield what the container holds for the codec, where it is damaged, and where another recording begins.

        With `seek_to`, from the last key frame at or before that time on. Times are put right.
        """
        self._rewind()
        if seek_to is None:
            return self._packets()
        if self._is_joined or self.container_format in RAW:
            # A time may be in the file twice, so the place is found by going there.
            return _from_key(self._packets(), seek_to)
        # Where it cannot be done, what is decoded from the start instead is the same, only later.
        with suppress(av.error.FFmpegError):
            self._container.seek(seek_to, stream=self._stream)
        return self._packets()

    def _frames(self, order: FrameOrder, packets: Iterator[Event]) -> Iterator[Decoded]:
        codec = self._stream.codec_context
        # Of a container that does not say, the aspect is that of the codec, which may change.
        aspect = self._stream.sample_aspect_ratio
        is_of_codec = aspect == codec.sample_aspect_ratio
        is_first = True
        for packet in packets:
            if isinstance(packet, Cut):
                yield packet
                continue
            if isinstance(packet, Damage):
                order.damaged()
                yield packet
                continue
            if is_first and not packet.is_keyframe:
                yield NO_KEY_FRAME
            is_first = False
            try:
                with av.logging.Capture() as log:
                    frames = codec.decode(packet)
            except av.error.FFmpegError as error:
                # Some codecs (dav1d) refuse everything after an error until they are flushed.
                codec.flush_buffers()
                order.damaged()
                yield Damage(type(error).__name__, _describe(error))
                continue
            if packet.size:
                order.sent(packet)
            if is_of_codec and packet.pts is not None and codec.sample_aspect_ratio != aspect:
                aspect = codec.sample_aspect_ratio
                yield _Aspect(packet.pts, float(aspect or 1))
            # A codec that continues after damage, with a picture that it has made up, says so in its log only.
            if log and order.needs(packet):
                order.damaged()
                yield Damage("CodecDamage", log[0][2].strip())
            for frame in frames:
                yield from order.received(frame)

    def _packets(self) -> Iterator[Event]:
        numbers = FrameNumbers(self._stream) if self.container_format == "avi" else None
        joined = JoinedTimes() if self._is_joined else JoinedNumbers(self._starts)
        codec = self._stream.codec_context
        pictures = PictureNumbers(codec.extradata) if codec.name == "h264" else None
        count = 0
        for packet in self._demuxed():
            if isinstance(packet, Damage):
                yield packet
                continue
            if numbers is not None and numbers.correct(packet):
                yield Damage("ContainerDamage", "frames are missing from the file")
            if cut := joined.correct(packet):
                yield cut
            if pictures is not None and pictures.lost_before(bytes(packet)):
                yield Damage("MissingPicture", "pictures that others refer to are missing from the stream")
            if packet.size and self.container_format in RAW:
                packet.dts = count
                count += 1
            if damage := self._damage(packet):
                yield damage
            # AVI repeats a frame by a packet of nothing, which codecs would take for the end of the stream.
            elif packet.size or packet.dts is None:
                yield from self._numbered(packet) if self.is_numbered else [packet]
        if self.container_format in UNREAD and (more := len(recordings(self._file, self.container_format) or [0]) - 1):
            reason = f"{more} more recordings follow in the file, and only the first is read: split the file"
            yield Damage("JoinedFile", reason)

    def _damage(self, packet: Packet[VideoStream]) -> Damage | None:
        """Return what is wrong with the packet, as far as can be seen without decoding it."""
        if packet.is_corrupt:
            return Damage("CorruptPacket", "the container holds a damaged packet")
        is_jpeg = packet.size and self._stream.codec_context.name == "mjpeg"
        return Damage("CorruptFrame", harm) if is_jpeg and (harm := jpeg_damage(bytes(packet))) else None

    def _numbered(self, packet: Packet[VideoStream]) -> Iterator[Packet[VideoStream]]:
        """Give a packet its number as time, unless it says no more than that the last frame stays."""
        if self._stream.codec_context.name != "mpeg4":
            packet.pts = packet.dts
            yield packet
            return
        # DivX puts two frames into one packet, because AVI has no place for one that is shown after a later one.
        for one in self._unpack.filter(packet) if packet.size else [packet]:
            one.pts = one.dts
            if one.size > MAX_EMPTY_VOP or not one.size:
                yield one

    def _demuxed(self) -> Iterator[Packet[VideoStream] | Damage]:
        self._fresh = False
        packets = self._container.demux(self._stream)
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
            complaints = [message for _, source, message in log if source == self.container_format]
            if complaints:
                yield Damage("ContainerDamage", complaints[0].strip())
            if packet is None:
                return
            if not packet.size and packet.dts is None and self.container_format == "avi" and is_cut_off(self._file):
                # Before the codec gives its last frames: what they waited for, and their number, is not known.
                yield Damage("CutOff", "the file ends before its header says")
            errors = 0
            yield packet

    def _has_decoding_times_only(self) -> bool:
        """Return whether frames are shown in another order than decoded, and no packet says when."""
        if not self._stream.codec_context.reorder_depth:
            return False
        packets = islice(self._demuxed(), UNORDERED_PACKETS)
        return all(isinstance(packet, Damage) or packet.pts in (None, packet.dts) for packet in packets)


def _before_damage(events: Iterator[Decoded]) -> Iterator[Decoded]:
    """Leave out the last frame before damage: what spoilt the packets after it may have begun within its own."""
    held: av.VideoFrame | None = None
    for event in events:
        if isinstance(event, av.VideoFrame):
            if held is not None:
                yield held
            held = event
            continue
        if isinstance(event, Damage):
            held = None
        yield event
    if held is not None:
        yield held


def _from_key(packets: Iterator[Event], pts: int) -> Iterator[Event]:
    """Leave out what precedes the last key frame at or before `pts`."""
    kept: list[Event] = []
    size = 0
    for packet in packets:
        if isinstance(packet, av.Packet):
            size += packet.size
            if packet.is_keyframe and packet.pts is not None and packet.pts <= pts:
                kept, size = [], packet.size
            elif size > MAX_KEPT or (packet.dts is not None and packet.dts > pts):
                kept.append(packet)
                break
        kept.append(packet)
    yield from kept
    yield from packets
