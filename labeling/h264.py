"""Finds lost pictures of an H.264 stream by the number that each picture carries (ITU-T H.264, 7.3 and 7.4.3).

FFmpeg fills such a hole with a copy of another picture, and only says so at a level at which it logs every packet.
"""

from __future__ import annotations

from collections.abc import Iterator

# Types of NAL units: a slice, a slice of a picture that refers to no other, and the sequence's parameters.
SLICE, IDR_SLICE, PARAMETERS = 1, 5, 7
# Bytes of a slice that hold its frame_num: three numbers of at most 33 bits come first, and it has 16.
SLICE_START = 24
# Profiles whose parameters also describe the samples.
HIGH_PROFILES = {44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244}


class _Bits:
    """Bits of a NAL unit, from the most significant on."""

    def __init__(self, nal: bytes) -> None:
        # Encoders put a 3 after two zero bytes, so that nothing looks like a start code.
        content = nal.replace(b"\0\0\3", b"\0\0")
        self._value, self._left = int.from_bytes(content, "big"), 8 * len(content)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("the NAL unit is cut off")
        return self._value >> self._left & (1 << count) - 1

    def exp_golomb(self) -> int:
        """A number of variable length (9.1)."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)

    def signed(self) -> int:
        """A number of variable length and either sign (9.1.1)."""
        code = self.exp_golomb()
        return (code + 1) // 2 if code % 2 else -(code // 2)


class PictureNumbers:
    """Follows frame_num: it grows by one after each picture that others refer to, and by nothing else."""

    def __init__(self, extradata: bytes | None) -> None:
        """`extradata` is that of the codec: parameters, and how long the lengths of NAL units are, if they have any."""
        self._bits: int | None = None
        self._may_skip = False
        self._last: int | None = None
        self._length_size = 0
        if extradata and extradata[0] == 1 and len(extradata) > 8:
            self._length_size = (extradata[4] & 3) + 1
            self._read_parameters(extradata[8:])
        else:
            self.lost_before(extradata or b"")

    def lost_before(self, packet: bytes) -> bool:
        """Return whether pictures that others refer to are missing between the last packet and this one."""
        try:
            return self._has_gap(packet)
        except ValueError:
            # The codec says what is wrong with it.
            return False

    def _has_gap(self, packet: bytes) -> bool:
        for nal in self._nals(packet):
            kind = nal[0] & 31
            if kind == PARAMETERS:
                self._read_parameters(nal)
            elif kind in (SLICE, IDR_SLICE) and self._bits is not None:
                return self._follow(nal, kind == IDR_SLICE)
        return False

    def _follow(self, nal: bytes, is_idr: bool) -> bool:
        assert self._bits is not None
        bits = _Bits(nal[1:SLICE_START])
        for _ in range(3):  # first_mb_in_slice, slice_type, pic_parameter_set_id
            bits.exp_golomb()
        number, last = bits.take(self._bits), self._last
        if nal[0] & 0x60 or is_idr:
            self._last = number
        if last is None or is_idr or self._may_skip:
            return False
        # The second field of a picture has the number of the first. Zero also follows an operation that resets it.
        return number not in (last, (last + 1) % (1 << self._bits), 0)

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
        """Read seq_parameter_set_data (7.3.2.1.1) as far as gaps_in_frame_num_value_allowed_flag."""
        profile, bits = nal[1], _Bits(nal[4:])
        bits.exp_golomb()
        if profile in HIGH_PROFILES:
            _skip_samples(bits)
        frame_num_bits = bits.exp_golomb() + 4
        order = bits.exp_golomb()
        if order == 0:
            bits.exp_golomb()
        elif order == 1:
            bits.take(1)
            for _ in range(2):
                bits.signed()
            for _ in range(bits.exp_golomb()):
                bits.signed()
        bits.exp_golomb()
        self._bits, self._may_skip = frame_num_bits, bool(bits.take(1))


def _skip_samples(bits: _Bits) -> None:
    """Skip chroma format, bit depths, and scaling lists."""
    chroma = bits.exp_golomb()
    if chroma == 3:
        bits.take(1)
    for _ in range(2):
        bits.exp_golomb()
    bits.take(1)
    if not bits.take(1):
        return
    for index in range(12 if chroma == 3 else 8):
        if bits.take(1):
            last = following = 8
            for _ in range(16 if index < 6 else 64):
                if following:
                    following = (last + bits.signed()) % 256
                last = following or last
