"""Keys and values as bytes and back. Shapes are ``(rows, heads, tokens, head_dim)``, coded ``(..., bytes)`` of uint8.

Every vector is coded by itself, whatever stands beside it: a prompt in a batch gets the bytes it gets alone. Integers
[ours]: a vector is turned by a Hadamard matrix with fixed random signs, which spreads channels that stick out over all
(QuaRot, arXiv 2404.00456), then rounded to levels between its own minimum and maximum (as KIVI, arXiv 2402.02750, does
with values). Both products with the matrix are sums of whole numbers that float32 holds exactly, so that they do not
depend on the order of summation, hence not on the batch or the block: a vector is scaled to 16-bit integers before it
is turned, and codes are turned back before they are scaled. On CPUs compiled loops give the same bits (`kernels/`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache

import torch
from torch import Tensor

from scalekv.kernels import IntegerForm, runs_on
from scalekv.kernels import decode as decode_in_loops
from scalekv.kernels import encode as encode_in_loops
from scalekv.kernels import merge as merge_in_loops
from scalekv.planning.codecs import VectorCodec

FIXED = 2.0**15
"""The largest number of a vector before it is turned."""

SMALLEST = 1e-30
"""A vector whose numbers are all below this is held as zeros."""

TRIMMED = {4: 0.95}
"""By bits, the part of the range from minimum to maximum that levels cover, where all of it is not best; what is cut
off is less than half a level."""

LOOP_CHANNELS = 128
"""The most channels of vectors that compiled loops code: mixed codes fit into 16 bits."""

FP8_LARGEST = 448.0
_FP8 = torch.float8_e4m3fn


@lru_cache(maxsize=16)
def hadamard(width: int, device: torch.device) -> Tensor:
    """The Hadamard matrix of a power of two, ``(width, width)`` of -1 and 1. Kept for the process, as weights are."""
    block = torch.ones(1, 1)
    while len(block) < width:
        block = torch.cat([torch.cat([block, block], 1), torch.cat([block, -block], 1)])
    return block.to(device)


@lru_cache(maxsize=16)
def signs(head_dim: int, device: torch.device) -> Tensor:
    """The signs that channels get before they are mixed, ``(head_dim,)`` of -1 and 1. Kept for the process."""
    drawn = torch.randint(0, 2, (head_dim,), generator=torch.Generator().manual_seed(0))
    return (drawn * 2.0 - 1).to(device)


def kept_matrices(head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What turning vectors of ``head_dim`` keeps for the process."""
    return hadamard(_multiplied(head_dim, device), device), signs(head_dim, device)


def rotation_width(head_dim: int) -> int:
    """Channels that are mixed with each other."""
    return head_dim & -head_dim


def _multiplied(head_dim: int, device: torch.device) -> int:
    """Channels that a product with a matrix mixes. On a CPU a small one and sums take half the time of a large one."""
    return rotation_width(head_dim) if device.type == "cuda" else min(32, rotation_width(head_dim))


def mixed(numbers: Tensor) -> Tensor:
    """The product of blocks of channels with a Hadamard matrix, blocks as wide as :func:`rotation_width` says.

    Args:
        numbers: ``(..., head_dim)`` float32, contiguous, whole and below ``2**24`` when added up.

    Returns:
        The same shape.
    """
    head_dim = numbers.shape[-1]
    done = _multiplied(head_dim, numbers.device)
    found = torch.matmul(numbers.view(-1, done), hadamard(done, numbers.device)).view(numbers.shape)
    while done < rotation_width(head_dim):
        first, second = found.view(-1, 2, done).unbind(1)
        first.add_(second)
        torch.sub(first, second, alpha=2, out=second)
        done *= 2
    return found


@lru_cache(maxsize=16)
def _form(codec: VectorCodec, head_dim: int) -> IntegerForm:
    covered = TRIMMED.get(codec.bits, 1.0)
    return IntegerForm(codec.bits, signs(head_dim, torch.device("cpu")), FIXED, SMALLEST, covered)


def has_loops(codec: VectorCodec, numbers: Tensor) -> bool:
    """Whether compiled loops code these.

    Args:
        codec: of them.
        numbers: ``(rows, heads, tokens, head_dim)``.
    """
    head_dim = numbers.shape[-1]
    integers = bool(codec.bits) and codec.name != "fp8"
    return integers and rotation_width(head_dim) == head_dim <= LOOP_CHANNELS and runs_on(numbers)


def encode(codec: VectorCodec, source: Tensor, out: Tensor) -> None:
    """Code vectors.

    Args:
        codec: of these.
        source: ``(..., head_dim)`` of a floating-point dtype.
        out: ``(..., bytes)`` uint8, is written.
    """
    if codec.exact:
        out.copy_(source.contiguous().view(torch.uint8))
    elif codec.name == "fp8":
        _encode_fp8(source, out)
    elif has_loops(codec, source):
        encode_in_loops(_form(codec, source.shape[-1]), source, out)
    else:
        _encode_integers(codec, source, out)


def decode(codec: VectorCodec, packed: Tensor, out: Tensor) -> None:
    """Turn coded vectors back into numbers.

    Args:
        codec: they were coded with.
        packed: ``(..., bytes)`` uint8.
        out: ``(..., head_dim)`` of the dtype that was coded, is written.
    """
    if codec.exact:
        out.copy_(packed.view(out.dtype))
        return
    if has_loops(codec, out):
        decode_in_loops(_form(codec, out.shape[-1]), packed, out)
        return
    numbers = _decode_fp8(packed) if codec.name == "fp8" else _decode_integers(codec, packed, out.shape[-1])
    if out.dtype == torch.float16:
        numbers.clamp_(-torch.finfo(torch.float16).max, torch.finfo(torch.float16).max)
    out.copy_(numbers)


def _encode_integers(codec: VectorCodec, source: Tensor, out: Tensor) -> None:
    head_dim, levels = source.shape[-1], 2**codec.bits - 1
    turned, largest = _turned(source)
    unit = largest / (FIXED * math.sqrt(rotation_width(head_dim)))
    low, high = turned.amin(-1, keepdim=True), turned.amax(-1, keepdim=True)
    margin = (high - low) * ((1 - TRIMMED.get(codec.bits, 1.0)) / 2)
    low, high = low + margin, high - margin
    minimum = _below(low * unit)
    low = _over(minimum, unit)
    scale = _above((high - low) * unit / levels)
    turned.sub_(low).mul_(_over(unit, scale)).round_()
    if codec.bits in TRIMMED:
        turned.clamp_(0, levels)
    out[..., : codec.header] = torch.cat([scale, minimum], -1).bfloat16().view(torch.uint8)
    _pack(codec.bits, _as_bytes(codec.bits, turned), out[..., codec.header :])


def _turned(source: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors as whole numbers up to ``FIXED``, turned, and their largest magnitudes, ``(..., 1)``."""
    numbers = source.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    largest = _largest(numbers)
    numbers.mul_(_over(torch.full_like(largest, FIXED), largest)).round_()
    return mixed(numbers.mul_(signs(source.shape[-1], source.device))), largest


def _as_bytes(bits: int, whole: Tensor) -> Tensor:
    """Whole numbers as uint8. By way of signed integers, which CPU loops turn float32 to several times quicker."""
    return whole.to(torch.int16).to(torch.uint8) if bits == 8 else whole.to(torch.int8).view(torch.uint8)


def _decode_integers(codec: VectorCodec, packed: Tensor, head_dim: int) -> Tensor:
    width, turns = rotation_width(head_dim), signs(head_dim, packed.device)
    scale, minimum = _header(packed, codec.header).unbind(-1)
    codes = torch.empty((*packed.shape[:-1], head_dim), dtype=torch.float32, device=packed.device)
    _unpack(codec.bits, packed[..., codec.header :], codes)
    numbers = mixed(codes).mul_(turns)
    numbers *= (scale / math.sqrt(width))[..., None]
    firsts = numbers[..., ::width]
    firsts += (minimum * math.sqrt(width))[..., None] * turns[::width]
    return numbers


def _encode_fp8(source: Tensor, out: Tensor) -> None:
    scale = _above(_largest(source) / FP8_LARGEST)
    numbers = source.float() * _over(torch.ones_like(scale), scale)
    out[..., :2] = scale.bfloat16().view(torch.uint8)
    out[..., 2:] = numbers.clamp_(-FP8_LARGEST, FP8_LARGEST).to(_FP8).view(torch.uint8)


def _decode_fp8(packed: Tensor) -> Tensor:
    return packed[..., 2:].view(_FP8).float().mul_(_header(packed, 2))


def _header(packed: Tensor, size: int) -> Tensor:
    return _copied(packed[..., :size]).view(torch.bfloat16).float()


def _copied(packed: Tensor) -> Tensor:
    """A contiguous copy: one vector of an odd number of bytes counts as contiguous, and cannot be viewed."""
    return packed.clone(memory_format=torch.contiguous_format)


def _largest(source: Tensor) -> Tensor:
    """The largest magnitude of each vector, 0 where it is next to nothing: ``(..., 1)`` float32."""
    largest = torch.maximum(source.amax(-1, keepdim=True), source.amin(-1, keepdim=True).neg_()).float()
    return largest.masked_fill_(largest < SMALLEST, 0.0)


def _over(numerator: Tensor, denominator: Tensor) -> Tensor:
    """A quotient, 0 where nothing is divided by."""
    return torch.where(denominator == 0, 0.0, numerator / denominator)


def _above(number: Tensor) -> Tensor:
    """A bfloat16 number not below one that is not negative, in float32."""
    return (number * (1 + 2.0**-8)).bfloat16().float()


def _below(number: Tensor) -> Tensor:
    """A bfloat16 number not above this one, in float32."""
    return (number - number.abs() * 2.0**-8).bfloat16().float()


def _pack(bits: int, codes: Tensor, out: Tensor) -> None:
    """Write codes ``(..., head_dim)`` as bytes ``(..., head_dim * bits / 8)``: a half of the channels beside the other.

    Six bits: the last quarter of the channels is spread over the upper two bits of the three others.
    """
    if bits == 8:
        out.copy_(codes)
    elif bits == 4:
        first, second = codes.chunk(2, -1)
        torch.bitwise_or(first, second << 4, out=out)
    else:
        *quarters, last = _in_words(codes, 4)
        packed = torch.empty((*codes.shape[:-1], 3 * codes.shape[-1] // 4), dtype=torch.uint8, device=codes.device)
        upper = _repeated(0b11000000, last.dtype)
        for place, (quarter, target) in enumerate(zip(quarters, _in_words(packed, 3), strict=True)):
            torch.bitwise_or(quarter, (last << (6 - 2 * place)) & upper, out=target)
        out.copy_(packed)


def _unpack(bits: int, packed: Tensor, out: Tensor) -> None:
    """Undo :func:`_pack` into ``out``, ``(..., head_dim)`` of any dtype."""
    if bits == 8:
        out.copy_(packed)
    elif bits == 4:
        first, second = out.chunk(2, -1)
        first.copy_(packed & 15)
        second.copy_(packed >> 4)
    else:
        codes = torch.empty(out.shape, dtype=torch.uint8, device=out.device)
        *quarters, last = _in_words(codes, 4)
        last.zero_()
        for place, (quarter, source) in enumerate(zip(quarters, _in_words(_copied(packed), 3), strict=True)):
            torch.bitwise_and(source, _repeated(0b00111111, source.dtype), out=quarter)
            last |= (source >> (6 - 2 * place)) & _repeated(0b11 << (2 * place), source.dtype)
        out.copy_(codes)


def _in_words(channels: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Equal parts of the channels, bytes as the widest integers that divide a part: fewer elements, fewer instructions.

    Args:
        channels: ``(..., channels)`` uint8, contiguous.
        parts: how many.
    """
    size = channels.shape[-1] // parts
    kinds = (torch.int64, torch.int32, torch.int16)
    word = next((kind for kind in kinds if size % kind.itemsize == 0), torch.uint8)
    return channels.view(-1, parts, size).view(word).unbind(1)


def _repeated(byte: int, word: torch.dtype) -> int:
    """The number of dtype ``word`` all bytes of which are this one."""
    return int.from_bytes(bytes([byte]) * word.itemsize, "little", signed=word.is_signed)


def blocks(tokens: int, step: int) -> Iterator[slice]:
    """Slices of ``step`` tokens."""
    for start in range(0, tokens, step):
        yield slice(start, min(start + step, tokens))


def decode_tokens(codec: VectorCodec, packed: Tensor, out: Tensor, step: int) -> None:
    """Decode ``step`` tokens at a time, or all together where that takes no scratch.

    Args:
        codec: they were coded with.
        packed: ``(rows, heads, tokens, bytes)``.
        out: ``(rows, heads, tokens, head_dim)``, is written.
        step: tokens.
    """
    if has_loops(codec, out):
        decode_in_loops(_form(codec, out.shape[-1]), packed, out)
        return
    for block in blocks(out.shape[2], step):
        decode(codec, packed[:, :, block], out[:, :, block])


def carry_ranges(
    codec: VectorCodec, old: Tensor | None, new: Tensor, ranges: Iterable[tuple[int, int]], out: Tensor, step: int
) -> None:
    """Carry on runs of candidates: history as it is stored, what is new encoded ``step`` tokens at a time.

    Args:
        codec: of the history.
        old: coded history ``(rows, heads, held, bytes)``, the first candidates; ``None`` if there is none.
        new: the other candidates ``(rows, heads, tokens, head_dim)``.
        ranges: first candidate and the one after the last, of each run.
        out: ``(rows, heads, kept, bytes)``, is written.
        step: tokens.
    """
    held, done = 0 if old is None else old.shape[2], 0
    for start, stop in ranges:
        middle = min(max(start, held), stop)
        if old is not None and start < middle:
            out[:, :, done : done + middle - start] = old[:, :, start:middle]
        target = out[:, :, done + middle - start : done + stop - start]
        source = new[:, :, middle - held : stop - held]
        for block in blocks(source.shape[2], source.shape[2] if has_loops(codec, source) else step):
            encode(codec, source[:, :, block], target[:, :, block])
        done += stop - start


def carry_chosen(codec: VectorCodec, old: Tensor | None, new: Tensor, chosen: Tensor, out: Tensor, step: int) -> None:
    """Carry on chosen candidates: history as it is stored, what is new encoded, ``step`` tokens at a time.

    Args:
        codec: of the history.
        old: coded history ``(rows, heads, held, bytes)``, the first candidates; ``None`` if there is none.
        new: the other candidates ``(rows, heads, tokens, head_dim)``.
        chosen: ``(rows, heads, kept)`` candidates, ascending.
        out: ``(rows, heads, kept, bytes)``, is written.
        step: tokens.
    """
    held = 0 if old is None else old.shape[2]
    for block in blocks(chosen.shape[2], step):
        index, target = chosen[:, :, block], out[:, :, block]
        encode(codec, _picked(new, (index - held).clamp_(min=0)), target)
        if old is not None:
            stored = _picked(old, index.clamp(max=held - 1))
            target.copy_(torch.where((index < held)[..., None], stored, target))


def encode_means(
    codecs: tuple[VectorCodec, VectorCodec],
    pair: tuple[Tensor, Tensor],
    count: Tensor,
    groups: Tensor,
    sums: Tensor,
    outs: tuple[Tensor, Tensor],
) -> None:
    """Code the means of groups of tokens with compiled loops, if there are some for both halves (:func:`has_loops`).

    Args:
        codecs: of the means of keys and values.
        pair: keys and values, each ``(rows, heads, tokens, head_dim)``.
        count: ``(rows, heads, tokens)`` float32, for how many tokens each stands.
        groups: ``(rows, heads, tokens)`` int64, the group of each.
        sums: ``(rows, heads, kept)`` float32, is written: the counts of every group.
        outs: keys and values, each ``(rows, heads, kept, bytes)``, are written.
    """
    first, second = (_form(codec, half.shape[-1]) for codec, half in zip(codecs, pair, strict=True))
    merge_in_loops((first, second), pair, count, groups, sums, outs)


def _picked(source: Tensor, index: Tensor) -> Tensor:
    """The tokens ``index``, ``(rows, heads, n)``, of ``source``, ``(rows, heads, tokens, channels)``."""
    return source.gather(2, index[..., None].expand(*index.shape, source.shape[-1]))
