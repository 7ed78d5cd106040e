"""Find lost pictures of an H.264 stream by the number that each picture carries (ITU-T H.264, 7.3 and 7.4.3).

FFmpeg fills such a hole with a copy of another picture, and only says so at a level at which it logs every packet.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

# Types of NAL units: a slice, a slice of a picture that refers to no other, and parameters of sequences and pictures.
SLICE, IDR_SLICE, SEQUENCE, PICTURE = 1, 5, 7, 8
# Bytes of a slice that hold its frame_num: three numbers of at most 33 bits come first, and it has 16.
SLICE_BYTES = 24
# Bytes of parameters that can hold what is read of them, with all scaling lists.
PARAMETER_BYTES = 2048
# Profiles whose parameters also describe the samples.
HIGH_PROFILES = {44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244}
# The most pictures of a cycle of picture order counts (7.4.2.1.1).
MAX_CYCLE = 255


class _Bits:
    """Bits of a NAL unit, from the most significant on."""

    def __init__(self, nal: bytes) -> None:
        # Encoders put a 3 after two zero bytes, so that nothing looks like a start code.
        content = nal.replace(b"\0\0\3", b"\0\0")
        self._value, self._left = int.from_bytes(content, "big"), 8 * len(content)

    def take(self, count: int) -> int:
        """Return the next bits as a number. Raises ValueError at the end."""
        self._left -= count
        if self._left < 0:
            raise ValueError("the NAL unit is cut off")
        return self._value >> self._left & (1 << count) - 1

    def exp_golomb(self) -> int:
        """Return a number of variable length (9.1)."""
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > 32:
                raise ValueError("a number is too long")
        return (1 << zeros) - 1 + self.take(zeros)

    def signed(self) -> int:
        """Return a number of variable length and either sign (9.1.1)."""
        code = self.exp_golomb()
        return (code + 1) // 2 if code % 2 else -(code // 2)


class _Sequence(NamedTuple):
    """Parameters of a sequence, as far as they matter here."""

    frame_num_bits: int
    has_planes_apart: bool
    may_skip: bool
    """True if numbers may be left out."""
    has_fields: bool


class PictureNumbers:
    """Follows frame_num: it grows by one after each picture that others refer to, and by nothing else."""

    def __init__(self, extradata: bytes | None) -> None:
        """`extradata` is that of the codec: parameters, and how long the lengths of NAL units are, if they have any."""
        self._sequences: dict[int, _Sequence] = {}
        self._sequence_of: dict[int, int] = {}
        self._last: int | None = None
        self._length_size = 0
        extradata = extradata or b""
        if extradata[:1] == b"\1" and len(extradata) >= 7:
            self._length_size = (extradata[4] & 3) + 1
            for nal in _of_configuration(extradata):
                self._read_parameters(nal)
        else:
            self.lost_before(extradata)

    @property
    def has_fields(self) -> bool:
        """Return whether pictures may be interlaced."""
        return any(sequence.has_fields for sequence in self._sequences.values())

    def lost_before(self, packet: bytes) -> bool:
        """Return whether pictures that others refer to are missing between the last packet and this one."""
        for nal in self._nals(packet):
            kind = nal[0] & 31
            if kind in (SEQUENCE, PICTURE):
                self._read_parameters(nal)
            elif kind in (SLICE, IDR_SLICE):
                return self._follow(nal, kind == IDR_SLICE)
        return False

    def _follow(self, nal: bytes, is_idr: bool) -> bool:
        number, last = self._number(nal), self._last
        if number is None:
            self._last = None
            return False
        if nal[0] & 0x60 or is_idr:
            self._last = number[0]
        if last is None or is_idr or number[1].may_skip:
            return False
        # The second field of a picture has the number of the first, and an operation in a picture may set its number
        # to zero after it.
        return number[0] not in (last, (last + 1) % (1 << number[1].frame_num_bits), 0, 1)

    def _number(self, nal: bytes) -> tuple[int, _Sequence] | None:
        """Return the frame_num of a slice; None if it cannot be read: the codec says what is wrong."""
        bits = _Bits(nal[1:SLICE_BYTES])
        try:
            _, _, picture = (bits.exp_golomb() for _ in range(3))
            sequence = self._sequences[self._sequence_of[picture]]
            bits.take(2 * sequence.has_planes_apart)
            return bits.take(sequence.frame_num_bits), sequence
        except (KeyError, ValueError):
            return None

    def _nals(self, packet: bytes) -> Iterator[bytes]:
        if not self._length_size:
            yield from (nal for nal in packet.split(b"\0\0\1")[1:] if nal)
            return
        place = 0
        while place + self._length_size < len(packet):
            start = place + self._length_size
            place = start + int.from_bytes(packet[place:start], "big")
            if place > start:
                yield packet[start:place]

    def _read_parameters(self, nal: bytes) -> None:
        try:
            if nal[0] & 31 == PICTURE:
                bits = _Bits(nal[1:SLICE_BYTES])
                number = bits.exp_golomb()
                self._sequence_of[number] = bits.exp_golomb()
            elif len(nal) > 4:
                bits = _Bits(nal[4:PARAMETER_BYTES])
                number = bits.exp_golomb()
                self._sequences[number] = _sequence(nal[1], bits)
        except ValueError:
            # Slices that refer to it are not looked at.
            return


def _of_configuration(extradata: bytes) -> Iterator[bytes]:
    """Yield the parameters in the configuration of MP4 and Matroska (ISO 14496-15, 5.3.3.1)."""
    place = 5
    for mask in (31, 255):
        count, place = extradata[place] & mask if place < len(extradata) else 0, place + 1
        for _ in range(count):
            start = place + 2
            place = start + int.from_bytes(extradata[place:start], "big")
            if nal := extradata[start:place]:
                yield nal


def _sequence(profile: int, bits: _Bits) -> _Sequence:
    """Read seq_parameter_set_data (7.3.2.1.1) from after its id to frame_mbs_only_flag."""
    has_planes_apart = profile in HIGH_PROFILES and _samples(bits)
    frame_num_bits = bits.exp_golomb() + 4
    if frame_num_bits > 16:
        raise ValueError("frame_num is too long")
    order = bits.exp_golomb()
    if order == 0:
        bits.exp_golomb()
    elif order == 1:
        bits.take(1)
        for _ in range(2):
            bits.signed()
        if (cycle := bits.exp_golomb()) > MAX_CYCLE:
            raise ValueError("a cycle is too long")
        for _ in range(cycle):
            bits.signed()
    bits.exp_golomb()
    may_skip = bool(bits.take(1))
    for _ in range(2):
        bits.exp_golomb()
    return _Sequence(frame_num_bits, has_planes_apart, may_skip, has_fields=not bits.take(1))


def _samples(bits: _Bits) -> bool:
    """Skip chroma format, bit depths, and scaling lists; return whether color planes are coded apart."""
    chroma = bits.exp_golomb()
    has_planes_apart = chroma == 3 and bool(bits.take(1))
    for _ in range(2):
        bits.exp_golomb()
    bits.take(1)
    if bits.take(1):
        for index in range(12 if chroma == 3 else 8):
            if bits.take(1):
                _skip_scaling_list(bits, 16 if index < 6 else 64)
    return has_planes_apart


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed()) % 256
        last = following or last
