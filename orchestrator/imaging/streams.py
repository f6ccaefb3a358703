"""Read from the headers of AV1 and HEVC streams how many pixels a decoder of them will make."""

from __future__ import annotations

__all__ = ["Cursor", "av1_pixels", "hevc_pixels"]

_SEQUENCE_HEADER = 1
_SEQUENCE_PARAMETERS = 33


def av1_pixels(stream: bytes) -> int:
    """Return the most pixels that a sequence header of a stream announces."""
    at, most = 0, 0
    while at < len(stream):
        kind, has_extension, has_size = stream[at] >> 3 & 15, stream[at] >> 2 & 1, stream[at] >> 1 & 1
        at += 1 + has_extension
        length, shift = (0, 0) if has_size else (len(stream) - at, 0)
        while has_size:
            byte = stream[at] if at < len(stream) else 0
            length |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            has_size = byte >> 7 and shift < 56
        if kind == _SEQUENCE_HEADER:
            most = max(most, _of_av1_header(stream[at : at + min(length, 2**10)]))
        at += length
    return most


def _of_av1_header(header: bytes) -> int:
    """Return width times height of a sequence header. Raises ValueError if it is cut."""
    take = _Bits(header).take
    take(4)
    if take(1):
        take(5)
    else:
        delay_bits = 0
        if take(1):  # times
            take(64)
            if take(1):
                zeros = 0
                while not take(1):
                    zeros += 1
                take(min(zeros, 32))
            if take(1):
                delay_bits = take(5) + 1
                take(42)
        has_delays = take(1)
        for _ in range(take(5) + 1):
            take(12)
            if take(5) > 7:
                take(1)
            if delay_bits and take(1):
                take(2 * delay_bits + 1)
            if has_delays and take(1):
                take(4)
    width_bits, height_bits = take(4) + 1, take(4) + 1
    return (take(width_bits) + 1) * (take(height_bits) + 1)


def hevc_pixels(settings: bytes, stream: bytes) -> int:
    """Return the most pixels that the parameters of a stream announce, in its settings (`hvcC`) or within it."""
    cursor, units = Cursor(settings, 22), []
    for _ in range(cursor.take(1)):
        cursor.take(1)
        units += [cursor.take_bytes(cursor.take(2)) for _ in range(cursor.take(2))]
    cursor, width = Cursor(stream, 0), (settings[21] & 3) + 1
    while not cursor.is_at_end():
        units.append(cursor.take_bytes(cursor.take(width)))
    announced = [
        _of_hevc_parameters(unit) for unit in units if unit and unit[0] >> 1 & 63 == _SEQUENCE_PARAMETERS
    ]
    if not announced:
        raise ValueError("a stream says no size")
    return max(announced)


def _of_hevc_parameters(unit: bytes) -> int:
    """Return width times height of a sequence parameter set (H.265, 7.3.2.2). Raises ValueError if it is cut."""
    bits = _Bits(unit[2 : 2**10].replace(b"\0\0\3", b"\0\0"))
    bits.take(4)
    layers = bits.take(3)
    bits.take(1 + 96)
    present = [(bits.take(1), bits.take(1)) for _ in range(layers)]
    if layers:
        bits.take(2 * (8 - layers))
    for has_profile, has_level in present:
        bits.take(88 * has_profile + 8 * has_level)
    bits.take_golomb()
    if bits.take_golomb() == 3:
        bits.take(1)
    return bits.take_golomb() * bits.take_golomb()


class Cursor:
    """Reader of whole numbers, one after the other. Raises ValueError at the end."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at

    def take(self, size: int) -> int:
        """Return the number in the next `size` bytes."""
        self._at += size
        if self._at > len(self._data):
            raise ValueError("a box is cut")
        return int.from_bytes(self._data[self._at - size : self._at], "big")

    def take_bytes(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        self.take(size)
        return self._data[self._at - size : self._at]

    def is_at_end(self) -> bool:
        """Return whether nothing is left."""
        return self._at >= len(self._data)


class _Bits:
    """Reader of numbers of any number of bits. Raises ValueError at the end."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, bits: int) -> int:
        """Return the number in the next `bits` bits."""
        self._left -= bits
        if self._left < 0:
            raise ValueError("the head of a stream is cut")
        return self._value >> self._left & ((1 << bits) - 1)

    def take_golomb(self) -> int:
        """Return the number in the next bits, coded as Exp-Golomb (H.265, 9.2)."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)
