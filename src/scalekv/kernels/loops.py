"""The loops themselves, over flat arrays. Read `launch.py` first: it says what they do, and when.

A tensor ``(rows, heads, tokens, channels)`` is the address of its first number, an empty array of their type, and the
strides of rows, heads and tokens; channels lie side by side. (To make numpy arrays of tensors took as long as the
shorter loops take.) Numbers are float32, or the bits of bfloat16 as uint16. All of the loops are in this file: what
numba keeps on disk is made anew when the file changes, not when another one does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

Loop = TypeVar("Loop", bound=Callable[..., Any])

_NAN, _INFINITE, _MAGNITUDE = np.uint32(0x7FC00000), np.uint32(0x7F800000), np.uint32(0x7FFFFFFF)
_HEADER, _ALL = 4, 2**48

BATCH = 32
"""Vectors that are worked on together: loops over them are long enough to be quick, and all of it fits near a core."""


def _compiled(loop: Loop) -> Loop:
    """Machine code at the first call, kept on disk where there is a place for it; threads may run it side by side."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        compiled: Loop = njit(cache=True, **options)(loop)
    except RuntimeError:  # no folder that can be written
        compiled = njit(**options)(loop)
    return compiled


def _inner(loop: Loop) -> Loop:
    """Part of others."""
    compiled: Loop = njit(error_model="numpy")(loop)
    return compiled


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(typing: Any, address: Any) -> Any:
    """The memory at an address."""
    return types.voidptr(types.intp), lambda context, build, signature, given: build.inttoptr(
        given[0], cgutils.voidptr_t
    )


@_inner
def _opened(tensor: Any) -> Any:
    """All that lies from the first number of a tensor on, as an array, and the strides."""
    address, kind, strides = tensor
    return carray(_pointer(address), _ALL, kind.dtype), strides


def _typed(general: Callable[..., None]) -> Callable[[Loop], Loop]:
    """What a loop is for numbers of some dtype."""
    register: Callable[[Loop], Loop] = overload(general)
    return register


def _widen(source: Any, first: Any, out: Any, target: Any, count: Any) -> None:
    """So many numbers of ``source`` from ``first`` on as float32, to ``out`` from ``target`` on."""


@_typed(_widen)
def _widen_as(source: Any, first: Any, out: Any, target: Any, count: Any) -> Callable[..., None]:
    if source.dtype == types.uint16:

        def from_bfloat16(source: Any, first: Any, out: Any, target: Any, count: Any) -> None:
            for channel in range(count):
                out[target + channel] = _float32(np.uint32(source[first + channel]) << np.uint32(16))

        return from_bfloat16

    def from_float32(source: Any, first: Any, out: Any, target: Any, count: Any) -> None:
        for channel in range(count):
            out[target + channel] = source[first + channel]

    return from_float32


def _narrow(source: Any, out: Any, target: Any, count: Any) -> None:
    """The first numbers of float32 as those of ``out`` from ``target`` on, rounded to the nearest, ties to even."""


@_typed(_narrow)
def _narrow_as(source: Any, out: Any, target: Any, count: Any) -> Callable[..., None]:
    if out.dtype == types.uint16:

        def to_bfloat16(source: Any, out: Any, target: Any, count: Any) -> None:
            for channel in range(count):
                out[target + channel] = _upper(_bits(source[channel]))

        return to_bfloat16

    def to_float32(source: Any, out: Any, target: Any, count: Any) -> None:
        for channel in range(count):
            out[target + channel] = source[channel]

    return to_float32


@_inner
def _upper(bits: Any) -> Any:
    """The bits of the bfloat16 number nearest to a float32 number of these bits."""
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return rounded if bits & _MAGNITUDE <= _INFINITE else _NAN >> np.uint32(16)


@_inner
def _unfold(here: Any, there: Any) -> None:
    """Sums of neighbours, then their differences."""
    half = len(here) // 2
    sums, differences = there[:half], there[half:]
    for place in range(half):
        first, second = here[2 * place], here[2 * place + 1]
        sums[place] = first + second
        differences[place] = first - second


@_inner
def _fold(here: Any, there: Any) -> None:
    """Sums of the two halves' numbers and their differences in turn."""
    half = len(here) // 2
    low, high = here[:half], here[half:]
    for place in range(half):
        first, second = low[place], high[place]
        there[2 * place] = first + second
        there[2 * place + 1] = first - second


@_inner
def _mix(numbers: Any, spare: Any, channels: int, lying: bool) -> Any:
    """The product of all vectors of a batch with a Hadamard matrix; in one of the two arrays, the other is lost.

    All passes are the same loop over everything (Pease, 1968). One way it takes vector after vector, and gives the
    first numbers of all, then the second ones, and so on; the other way, ``lying``, it takes them so and gives vectors.
    """
    here, there = numbers, spare
    while channels > 1:
        if lying:
            _fold(here, there)
        else:
            _unfold(here, there)
        here, there = there, here
        channels //= 2
    return here


@_inner
def _pack(bits: int, codes: Any, out: Any) -> None:
    """Codes of a batch, channel after channel, as bytes in the same order; see `cache/codecs.py`."""
    if bits == 8:
        out[: len(codes)] = codes
    elif bits == 4:
        half = len(codes) // 2
        first, second = codes[:half], codes[half:]
        for place in range(half):
            out[place] = first[place] | (second[place] << 4)
    else:
        size = len(codes) // 4
        last = codes[3 * size :]
        for part in range(3):
            quarter, target = codes[part * size : (part + 1) * size], out[part * size : (part + 1) * size]
            shift = 6 - 2 * part
            for place in range(size):
                target[place] = quarter[place] | ((last[place] << shift) & 0xC0)


@_inner
def _unpack(bits: int, packed: Any, codes: Any) -> None:
    """Undo it."""
    if bits == 8:
        codes[:] = packed[: len(codes)]
    elif bits == 4:
        half = len(codes) // 2
        first, second = codes[:half], codes[half:]
        for place in range(half):
            first[place] = packed[place] & 15
            second[place] = packed[place] >> 4
    else:
        size = len(codes) // 4
        last = codes[3 * size :]
        one, two, three = packed[:size], packed[size : 2 * size], packed[2 * size : 3 * size]
        for part in range(3):
            quarter, source = codes[part * size : (part + 1) * size], packed[part * size : (part + 1) * size]
            for place in range(size):
                quarter[place] = source[place] & 63
        for place in range(size):
            last[place] = (one[place] >> 6) | ((two[place] >> 6) << 2) | ((three[place] >> 6) << 4)


@_inner
def _bfloat16(number: Any) -> Any:
    """A float32 number rounded to bfloat16."""
    return _float32(np.uint32(_upper(_bits(number))) << np.uint32(16))


@_inner
def _bits(number: Any) -> Any:
    """Those of a float32 number."""
    return np.float32(number).view(np.uint32)


@_inner
def _float32(bits: Any) -> Any:
    """The number of 32 bits."""
    return np.uint32(bits).view(np.float32)


@_inner
def _over(numerator: Any, denominator: Any) -> Any:
    """A quotient, 0 where nothing is divided by."""
    return np.float32(0) if denominator == 0 else numerator / denominator


@_inner
def _room(channels: int) -> Any:
    """Room for a batch: its numbers; twice whole ones, codes, bytes; and least, most, unit, low, factor of each."""
    size = BATCH * channels
    return (
        np.zeros(size, np.float32),
        np.empty(size, np.int32),
        np.empty(size, np.int32),
        np.empty(size, np.uint8),
        np.empty(size, np.uint8),
        np.empty(BATCH, np.int32),
        np.empty(BATCH, np.int32),
        np.empty(BATCH, np.float32),
        np.empty(BATCH, np.float32),
        np.empty(BATCH, np.float32),
    )


@_inner
def _encode(form: Any, turns: Any, numbers: Any, vectors: int, room: Any, out: Any, targets: Any) -> None:
    """Code a batch of vectors.

    Args:
        form: bits, the largest number before vectors are turned, its product with the root of their channels, the
            smallest magnitude, the share of the range that levels leave out at either end.
        turns: signs of the channels.
        numbers: ``BATCH`` vectors in float32.
        vectors: so many of them count.
        room: see :func:`_room`.
        out: bytes, are written.
        targets: where those of each vector begin.
    """
    bits, fixed, fixed_root, smallest, margin_share = form
    _, whole, spare, codes, packed, least, most, units, lows, factors = room
    channels, coded = len(turns), len(turns) * bits // 8
    _peaks(numbers, np.uint64(vectors), np.uint64(channels), least)
    for vector in range(vectors):
        largest = _float32(least[vector])
        if largest < smallest:
            largest = np.float32(0)
        finite = least[vector] < np.int32(_INFINITE)
        units[vector] = largest / fixed_root if finite else _float32(_NAN)
        factors[vector] = _over(fixed, largest) if finite else np.float32(0)
    _scale(numbers, np.uint64(vectors), turns, factors, whole)
    mixed = _mix(whole, spare, channels, False)
    _ranges(mixed, least, most)
    levels = np.float32((1 << bits) - 1)
    for vector in range(vectors):
        unit, low, high = units[vector], np.float32(least[vector]), np.float32(most[vector])
        margin = (high - low) * margin_share
        low, high = low + margin, high - margin
        lowest = low * unit
        minimum = _bfloat16(lowest - abs(lowest) * np.float32(2.0**-8))
        low = _over(minimum, unit)
        scale = _bfloat16((high - low) * unit / levels * np.float32(1 + 2.0**-8))
        lows[vector], factors[vector] = low, _over(unit, scale)
        _put(out, targets[vector], scale)
        _put(out, targets[vector] + 2, minimum)
        if not np.isfinite(unit):
            lows[vector], factors[vector] = 0, 0
    _quantise(mixed, lows, factors, np.int32(levels), codes)
    _pack(bits, codes, packed)
    for vector in range(vectors):
        target = np.uint64(targets[vector] + _HEADER)
        for place in range(np.uint64(coded)):
            out[target + place] = packed[place * np.uint64(BATCH) + np.uint64(vector)]


@_inner
def _peaks(numbers: Any, vectors: Any, channels: Any, peaks: Any) -> None:
    """The bits of the largest magnitude of every vector."""
    for vector in range(vectors):
        first, peak = vector * channels, np.int32(0)
        for channel in range(channels):
            peak = max(peak, np.int32(_bits(numbers[first + channel]) & _MAGNITUDE))
        peaks[vector] = peak


@_inner
def _scale(numbers: Any, vectors: Any, turns: Any, factors: Any, out: Any) -> None:
    """Vectors as whole numbers, with signs."""
    channels = np.uint64(len(turns))
    for vector in range(vectors):
        first, factor = vector * channels, factors[vector]
        for channel in range(channels):
            out[first + channel] = np.int32(np.rint(numbers[first + channel] * factor) * turns[channel])


@_inner
def _ranges(mixed: Any, least: Any, most: Any) -> None:
    """The least and the largest number of every vector of a batch, whose channels come one after the other."""
    least[:] = mixed[:BATCH]
    most[:] = mixed[:BATCH]
    for start in range(BATCH, len(mixed), BATCH):
        some = mixed[start : start + BATCH]
        for vector in range(BATCH):
            least[vector], most[vector] = min(least[vector], some[vector]), max(most[vector], some[vector])


@_inner
def _quantise(mixed: Any, lows: Any, factors: Any, highest: Any, codes: Any) -> None:
    """The level of every number; where all of its range is covered, none lies outside."""
    for start in range(0, len(mixed), BATCH):
        some, out = mixed[start : start + BATCH], codes[start : start + BATCH]
        for vector in range(BATCH):
            level = np.int32(np.rint((np.float32(some[vector]) - lows[vector]) * factors[vector]))
            out[vector] = np.uint8(min(max(level, np.int32(0)), highest))


@_inner
def _put(out: Any, place: int, number: Any) -> None:
    """Write a bfloat16 number as two bytes."""
    bits = _bits(number)
    out[place] = np.uint8((bits >> np.uint32(16)) & np.uint32(0xFF))
    out[place + 1] = np.uint8(bits >> np.uint32(24))


@_inner
def _got(packed: Any, place: Any) -> Any:
    """The bfloat16 number of two bytes, in float32."""
    bits = (np.uint32(packed[place]) << np.uint32(16)) | (np.uint32(packed[place + np.uint64(1)]) << np.uint32(24))
    return _float32(bits)


@_inner
def _at(number: int, shape: Any, strides: Any) -> Any:
    """Where the vector of this number begins."""
    heads, tokens = shape[1], shape[2]
    token, above = number % tokens, number // tokens
    return _place(above // heads, above % heads, token, strides)


@_inner
def _place(row: int, head: int, token: int, strides: Any) -> Any:
    """Where a vector begins. Unsigned: places counted from the end would have to be told apart in every loop."""
    return np.uint64(row * strides[0] + head * strides[1] + token * strides[2])


@_compiled
def encode(start: int, stop: int, shape: Any, form: Any, turns: Any, vectors_in: Any, vectors_out: Any) -> None:
    """Code the vectors from one number to another, counted in the order of rows, heads and tokens."""
    (source, source_strides), (out, strides) = _opened(vectors_in), _opened(vectors_out)
    channels = len(turns)
    room, targets = _room(channels), np.empty(BATCH, np.int64)
    numbers = room[0]
    for batch in range(start, stop, BATCH):
        vectors = min(BATCH, stop - batch)
        for place in range(vectors):
            targets[place] = _at(batch + place, shape, strides)
            first = _at(batch + place, shape, source_strides)
            _widen(source, first, numbers, np.uint64(place * channels), np.uint64(channels))
        _encode(form, turns, numbers, vectors, room, out, targets)


@_compiled
def decode(start: int, stop: int, shape: Any, form: Any, turns: Any, vectors_in: Any, vectors_out: Any) -> None:
    """Turn coded vectors back into numbers; what 128 codes of 8 bits add up to fits into 16."""
    (packed, packed_strides), (out, strides) = _opened(vectors_in), _opened(vectors_out)
    bits, root = form
    channels, coded, size = len(turns), len(turns) * bits // 8, BATCH * len(turns)
    lying, codes, spare = np.zeros(size, np.uint8), np.empty(size, np.int16), np.empty(size, np.int16)
    numbers, firsts = np.empty(channels, np.float32), np.empty(BATCH, np.uint64)
    for batch in range(start, stop, BATCH):
        vectors = min(BATCH, stop - batch)
        for place in range(vectors):
            firsts[place] = _at(batch + place, shape, packed_strides)
            first, lane = firsts[place] + np.uint64(_HEADER), np.uint64(place)
            for byte in range(np.uint64(coded)):
                lying[byte * np.uint64(BATCH) + lane] = packed[first + byte]
        _unpack(bits, lying, codes)
        mixed = _mix(codes, spare, channels, True)
        for place in range(vectors):
            scale, minimum = _got(packed, firsts[place]) / root, _got(packed, firsts[place] + np.uint64(2)) * root
            some = np.uint64(place * channels)
            for channel in range(np.uint64(channels)):
                numbers[channel] = np.float32(mixed[some + channel]) * turns[channel] * scale
            numbers[0] += minimum * turns[0]
            _narrow(numbers, out, _at(batch + place, shape, strides), np.uint64(channels))


@_compiled
def merge(start: int, stop: int, shape: Any, halves: Any, counts: Any, members: Any, totals: Any) -> None:
    """Add up the groups of the heads from one number to another, and code the means of both halves."""
    (count, count_strides), (groups, groups_strides) = _opened(counts), _opened(members)
    sums, sums_strides = _opened(totals)
    channels, (_, heads, tokens, kept) = len(halves[0][1]), shape
    means = np.empty(-(-kept // BATCH) * BATCH * channels, np.float32)
    room, targets, numbers = _room(channels), np.empty(BATCH, np.int64), np.empty(channels, np.float32)
    for vector in range(start, stop):
        row, head = vector // heads, vector % heads
        for group in range(kept):
            sums[_place(row, head, group, sums_strides)] = 0
        for token in range(tokens):
            group = groups[_place(row, head, token, groups_strides)]
            sums[_place(row, head, group, sums_strides)] += count[_place(row, head, token, count_strides)]
        for form, turns, vectors_in, vectors_out in halves:
            (source, source_strides), (out, strides) = _opened(vectors_in), _opened(vectors_out)
            means[:] = 0
            for token in range(tokens):
                weight = count[_place(row, head, token, count_strides)]
                mean = np.uint64(groups[_place(row, head, token, groups_strides)] * channels)
                _widen(source, _place(row, head, token, source_strides), numbers, np.uint64(0), np.uint64(channels))
                for channel in range(np.uint64(channels)):
                    means[mean + channel] += numbers[channel] * weight
            for group in range(kept):
                total = max(sums[_place(row, head, group, sums_strides)], np.float32(1))
                _divide(means, np.uint64(group * channels), np.uint64(channels), total)
            for batch in range(0, kept, BATCH):
                vectors = min(BATCH, kept - batch)
                for place in range(vectors):
                    targets[place] = row * strides[0] + head * strides[1] + (batch + place) * strides[2]
                _encode(form, turns, means[batch * channels : (batch + BATCH) * channels], vectors, room, out, targets)


@_inner
def _sum(numbers: Any, first: Any, count: Any) -> Any:
    """The sum of numbers, which are lost: the last half is added to the first until one is left."""
    left = count
    while left > np.uint64(1):
        half = left >> np.uint64(1)
        high = first + left - half
        for place in range(half):
            numbers[first + place] += numbers[high + place]
        left -= half
    return numbers[first]


@_inner
def _sum_vectors(numbers: Any, vectors: int, channels: int) -> None:
    """As :func:`_sum` of vectors one after the other; the sum is the first."""
    while vectors > 1:
        half = vectors // 2
        low, high = numbers[: half * channels], numbers[(vectors - half) * channels : vectors * channels]
        for place in range(half * channels):
            low[place] += high[place]
        vectors -= half


@_inner
def _divide(numbers: Any, first: Any, count: Any, divisor: Any) -> None:
    """Divide so many numbers from ``first`` on."""
    for place in range(count):
        numbers[first + place] /= divisor


@_inner
def _length(centres: Any, first: Any, channels: Any, squares: Any) -> Any:
    """Half the negative square of the length of the vector from ``first`` on; ``squares`` has room for its numbers."""
    for channel in range(channels):
        squares[channel] = centres[first + channel] * centres[first + channel]
    return _sum(squares, np.uint64(0), channels) * np.float32(-0.5)


@_compiled
def centres(
    start: int, stop: int, shape: Any, pair: Any, places: Any, least: Any, tokens: int, found: Any, members: Any
) -> None:
    """Centres, spreads and lengths of the heads from one number to another, and the groups of the centres."""
    (first, first_strides), (second, second_strides) = _opened(pair[0]), _opened(pair[1])
    (out, _), (spreads, _), (lengths, _) = _opened(found[0]), _opened(found[1]), _opened(found[2])
    (heads, kept, channels), (groups, _) = shape, _opened(members)
    both, size, width = 2 * channels, kept * 2 * channels, np.uint64(channels)
    sums, squares = np.empty(size, np.float32), np.empty(size, np.float32)
    for vector in range(start, stop):
        row, head, centres = vector // heads, vector % heads, out[vector * size : (vector + 1) * size]
        for number in range(kept):
            target = np.uint64(number * both)
            _widen(first, _place(row, head, places[number], first_strides), centres, target, width)
            _widen(second, _place(row, head, places[number], second_strides), centres, target + width, width)
        for place in range(size):
            sums[place], squares[place] = centres[place], centres[place] * centres[place]
        _sum_vectors(sums, kept, both)
        _sum_vectors(squares, kept, both)
        for channel in range(both):
            mean = sums[channel] / np.float32(kept)
            squares[channel] = squares[channel] / np.float32(kept) - mean * mean
        for half in range(2):
            square = max(_sum(squares, np.uint64(half * channels), width), np.float32(0))
            spreads[2 * vector + half] = max(np.sqrt(square), least)
        for number in range(kept):
            for half in range(2):
                _divide(centres, np.uint64(number * both + half * channels), width, spreads[2 * vector + half])
            lengths[vector * kept + number] = _length(centres, np.uint64(number * both), np.uint64(both), squares)
            groups[vector * tokens + places[number]] = number


@_compiled
def lengths(start: int, stop: int, vectors_in: Any, channels: int, numbers_out: Any) -> None:
    """Half the negative square of the length of the vectors from one number to another."""
    (centres, _), (out, _) = _opened(vectors_in), _opened(numbers_out)
    squares = np.empty(channels, np.float32)
    for vector in range(start, stop):
        out[vector] = _length(centres, np.uint64(vector * channels), np.uint64(channels), squares)


@_compiled
def gather(start: int, stop: int, shape: Any, pair: Any, places: Any, spreads: Any, vectors_out: Any) -> None:
    """Copy the vectors of two tensors at some places side by side, in float32, each over the number of its head."""
    (first, first_strides), (second, second_strides) = _opened(pair[0]), _opened(pair[1])
    (heads, kept, channels), (over, _), (out, _) = shape, _opened(spreads), _opened(vectors_out)
    width = np.uint64(channels)
    for vector in range(start, stop):
        above, place, target = vector // kept, places[vector % kept], np.uint64(2 * vector * channels)
        row, head = above // heads, above % heads
        _widen(first, _place(row, head, place, first_strides), out, target, width)
        _widen(second, _place(row, head, place, second_strides), out, target + width, width)
        _divide(out, target, width, over[2 * above])
        _divide(out, target + width, width, over[2 * above + 1])


@_compiled
def largest(
    start: int, stop: int, products: Any, width: int, places: Any, offset: int, members: Any, tokens: int
) -> None:
    """The place of the largest of each row of numbers, the first of equal ones.

    As whole numbers in the order of the float32 numbers, whose largest a processor finds several at a time.
    """
    (near, _), (out, _) = _opened(products), _opened(members)
    for row in range(start, stop):
        numbers = near[row * width : (row + 1) * width]
        most = np.int32(-(2**31))
        for place in range(width):
            most = max(most, _ordered(numbers[place]))
        found = np.int32(width)
        for place in range(width):
            found = min(found, np.int32(place) if _ordered(numbers[place]) == most else np.int32(width))
        out[(row // len(places)) * tokens + places[row % len(places)]] = found + offset


@_inner
def _ordered(number: Any) -> Any:
    """A whole number that stands to those of others as the number does; both zeros are the same one."""
    bits = np.float32(number + np.float32(0)).view(np.int32)
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))
