"""Which decoded frames can be used, and at what time each of them is shown."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from labeling.decoding import Cut

if TYPE_CHECKING:
    import av
    from av.packet import Packet
    from av.video.stream import VideoStream

# Codecs whose every packet shows exactly one frame; others have packets that show none (VP8's hidden frames, fields).
ONE_FRAME_A_PACKET = {"av1", "libdav1d", "hevc", "vp9"}
# No codec lets a picture wait for more others than this before it is shown: the size of H.264's and HEVC's buffer.
MAX_REORDER = 16


@dataclass(frozen=True)
class Damage:
    """Why frames are missing."""

    error_type: str
    message: str


NO_KEY_FRAME = Damage("NoKeyFrame", "frames cannot be decoded without the key frame before them")
MISSING_FRAME = Damage("MissingFrame", "frames did not come out of the codec")
CORRUPT_FRAME = Damage("CorruptFrame", "a frame is damaged")


class FrameOrder(Protocol):
    """Keeps what went into the codec against what comes out of it.

    Codecs lose frames without an error, and after a loss they continue with wrong pictures, flagged or not, up to the
    next key frame. So a frame is usable if a key frame at or before it went in after the last loss, and if nothing
    that went in between is missing.
    """

    def sent(self, packet: Packet[VideoStream]) -> None:
        """Note a packet that the codec has taken."""
        ...

    def needs(self, packet: Packet[VideoStream]) -> bool:
        """Return whether frames that can be used may depend on this packet."""
        ...

    def damaged(self) -> None:
        """Note a loss."""
        ...

    def received(self, frame: av.VideoFrame) -> Iterator[av.VideoFrame | Damage]:
        """Yield the frames that can be used now that this one came out of the codec, or why it cannot be used."""
        ...

    def end(self) -> Iterator[av.VideoFrame | Damage]:
        """Yield what is left when the codec has given everything."""
        ...


class TimedFrames:
    """`FrameOrder` for packets with a presentation time: a frame has that of its packet."""

    def __init__(self, codec: str) -> None:
        self._tolerance = 0 if codec in ONE_FRAME_A_PACKET else 1
        self._due: list[int] = []
        self._clean_from: int | None = None
        self._last: int | None = None

    def damaged(self) -> None:
        """See `FrameOrder.damaged`."""
        self._clean_from = None

    def sent(self, packet: Packet[VideoStream]) -> None:
        """See `FrameOrder.sent`."""
        pts = packet.dts if packet.pts is None else packet.pts
        if pts is None:
            return
        if packet.is_keyframe and self._clean_from is None:
            self._clean_from = pts
        # What an edit list hides is decoded, because others refer to it, and does not come out.
        if not packet.is_discard:
            heapq.heappush(self._due, pts)

    def needs(self, packet: Packet[VideoStream]) -> bool:
        """See `FrameOrder.needs`."""
        # Pictures shown before the key frame that they follow refer to pictures that were lost, or left out.
        return self._clean_from is not None and (packet.pts is None or packet.pts >= self._clean_from)

    def received(self, frame: av.VideoFrame) -> Iterator[av.VideoFrame | Damage]:
        """See `FrameOrder.received`."""
        problem = self._problem(frame)
        if problem is None:
            self._last = frame.pts
        yield problem or frame

    def end(self) -> Iterator[av.VideoFrame | Damage]:
        """See `FrameOrder.end`."""
        if self._has_missing(None):
            yield MISSING_FRAME

    def _problem(self, frame: av.VideoFrame) -> Damage | None:
        if frame.pts is None:
            return Damage("NoTimestamp", "a frame has no presentation time")
        if self._last is not None and frame.pts <= self._last:
            return Damage("TimestampOrder", f"a frame with PTS {frame.pts} follows one with {self._last}")
        loss = CORRUPT_FRAME if frame.is_corrupt else MISSING_FRAME if self._has_missing(frame.pts) else None
        if loss is not None:
            self.damaged()
        elif self._clean_from is None or frame.pts < self._clean_from:
            loss = NO_KEY_FRAME
        return loss

    def _has_missing(self, pts: int | None) -> bool:
        """Settle what was due before the frame with this PTS, or at the end of the stream (None)."""
        missing = 0
        while self._due and (pts is None or self._due[0] <= pts):
            due = heapq.heappop(self._due)
            missing += due != pts and self._clean_from is not None and due >= self._clean_from
        return missing > self._tolerance


class NumberedFrames:
    """`FrameOrder` for packets that only have a number, that of decoding: the k-th frame shown has the k-th number.

    Codecs give frames in the order in which they are shown, each with the number of its packet. Which of the numbers
    since the key frame a frame is shown at depends on how many came before it, so one that is lost moves all others.
    Therefore a frame is held back until all packets that went in before its own have shown theirs.
    """

    def __init__(self) -> None:
        self.damaged()

    def damaged(self) -> None:
        """See `FrameOrder.damaged`."""
        self._key: int | None = None
        self._has_key_come = False
        # Of packets since the key frame: the places of those that have shown nothing yet, and the numbers to be shown.
        self._waiting: dict[int, int] = {}
        self._numbers: deque[int] = deque()
        self._sent, self._newest = 0, -1
        self._held: deque[tuple[int, av.VideoFrame]] = deque()

    def sent(self, packet: Packet[VideoStream]) -> None:
        """See `FrameOrder.sent`."""
        if packet.pts is None:
            # What it shows cannot be told from what others show.
            self.damaged()
            return
        if self._key is None:
            if not packet.is_keyframe:
                return
            self._key = packet.pts
        self._waiting[packet.pts] = self._sent
        self._numbers.append(packet.pts)
        self._sent += 1

    def needs(self, packet: Packet[VideoStream]) -> bool:
        """See `FrameOrder.needs`."""
        return self._key is not None

    def received(self, frame: av.VideoFrame) -> Iterator[av.VideoFrame | Damage]:
        """See `FrameOrder.received`."""
        place = self._waiting.pop(frame.pts, None) if frame.pts is not None else None
        if frame.is_corrupt or place is None:
            yield self._lose(CORRUPT_FRAME) if frame.is_corrupt else NO_KEY_FRAME
            return
        self._newest = max(self._newest, place)
        self._has_key_come |= frame.pts == self._key
        frame.pts = self._numbers.popleft()
        if not self._has_key_come:
            # Shown before the key frame, from which it was not decoded alone.
            yield NO_KEY_FRAME
            return
        self._held.append((place, frame))
        oldest = next(iter(self._waiting.values()), self._sent)
        if oldest < self._newest - MAX_REORDER:
            yield self._lose(MISSING_FRAME)
        # Frames that are shown before the key frame may be missing: that shows when others have come.
        elif self._newest >= MAX_REORDER:
            yield from self._release(oldest)

    def end(self) -> Iterator[av.VideoFrame | Damage]:
        """See `FrameOrder.end`."""
        if self._waiting and self._newest < MAX_REORDER:
            # Frames that are shown before the key frame may be those that are missing.
            yield self._lose(MISSING_FRAME)
            return
        yield from self._release(next(iter(self._waiting.values()), self._sent))
        if self._waiting:
            yield self._lose(MISSING_FRAME)

    def _release(self, oldest: int) -> Iterator[av.VideoFrame]:
        while self._held and self._held[0][0] < oldest:
            yield self._held.popleft()[1]

    def _lose(self, loss: Damage) -> Damage:
        self.damaged()
        return loss


class JoinedNumbers:
    """Tells where another recording begins in a file whose frames are numbered from its start to its end."""

    def __init__(self, starts: Sequence[int]) -> None:
        """`starts` are the places in the file, in bytes, of the recordings after the first."""
        self._starts = deque(starts)

    def correct(self, packet: Packet[VideoStream]) -> Cut | None:
        """Return the cut before this packet, if another recording begins with it."""
        if not self._starts or packet.pos is None or packet.dts is None or packet.pos < self._starts[0]:
            return None
        self._starts.popleft()
        return Cut(packet.dts)


class JoinedTimes:
    """Lets the times of a recording that was appended to another one continue those of the first.

    A recording begins with a key frame, at a time of its own: where time steps back there, everything from there on is
    moved. Without this most of it would seem to have been shown before.
    """

    def __init__(self) -> None:
        self._shift = 0
        self._last: int | None = None
        self._latest = 0
        self._step = 1

    def correct(self, packet: Packet[VideoStream]) -> Cut | None:
        """Put the packet's times right; return the cut before it, if another recording begins with it."""
        if packet.dts is None or packet.pts is None:
            packet.dts = packet.dts if packet.dts is None else packet.dts + self._shift
            packet.pts = packet.pts if packet.pts is None else packet.pts + self._shift
            return None
        begins = packet.is_keyframe and self._last is not None and packet.dts + self._shift < self._last
        if begins:
            assert self._last is not None
            self._shift = self._step + max(self._last - packet.dts, self._latest - packet.pts)
        packet.dts += self._shift
        packet.pts += self._shift
        if self._last is not None and not begins and packet.dts > self._last:
            self._step = packet.dts - self._last
        # The step back of another packet does not count: the recording begins with the next key frame.
        self._last = packet.dts if self._last is None else max(self._last, packet.dts)
        self._latest = max(self._latest, packet.pts)
        return Cut(packet.pts) if begins else None
