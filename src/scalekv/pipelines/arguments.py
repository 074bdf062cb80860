"""Checks of what users pass to a pipeline call: early, before anything is encoded or planned."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from numbers import Real
from operator import index
from typing import Any

import torch
from torch import Tensor

from scalekv.errors import InvalidInput

OUTPUT_TYPES = ("pil", "np", "pt", "latent")

LARGEST = 1e6
"""Most that logits are multiplied by in one go; far more would overflow float32."""

CACHE_DTYPES = ("float32", "bfloat16", "float16")


def check_cache_dtype(given: Any) -> torch.dtype | None:
    """What a cache holds, as a type or by name, such as ``"bfloat16"``; ``None`` stays.

    Raises:
        InvalidInput: another type, or none.
    """
    if given is None:
        return None
    name = (given if isinstance(given, str) else str(given)).removeprefix("torch.")
    if not isinstance(given, (str, torch.dtype)) or name not in CACHE_DTYPES:
        raise InvalidInput(
            f"cache_dtype is {given!r:.80}, and a cache holds {', '.join(CACHE_DTYPES[:-1])} or {CACHE_DTYPES[-1]}; "
            f"choose one of these, or None for that of the model."
        )
    found: torch.dtype = getattr(torch, name)
    return found


def check_texts(name: str, texts: Any) -> list[str]:
    """One text or several as a list.

    Raises:
        InvalidInput: no text at all, something else than text, or text that cannot be written as UTF-8.
    """
    listed = [texts] if isinstance(texts, str) else list(texts) if isinstance(texts, (list, tuple)) else None
    if listed is None or not all(isinstance(text, str) for text in listed):
        raise InvalidInput(f"{name} must be a text or a list of texts, got {_shown(texts)}.")
    if not listed:
        raise InvalidInput(f"{name} is an empty list; give at least one text.")
    for text in listed:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(
                f"{name} is no valid text: character {error.start + 1} is half of a surrogate pair "
                f"({text[error.start]!a}); read the text as UTF-8."
            ) from error
    return listed


def check_features(name: str, features: Any, channels: int) -> list[Tensor]:
    """Text features as a list of (tokens, channels).

    Raises:
        InvalidInput: something else than a list of such tensors, or numbers that are not finite.
    """
    listed = list(features) if isinstance(features, (list, tuple, Tensor)) else None
    if not listed or not all(isinstance(row, Tensor) and row.is_floating_point() for row in listed):
        raise InvalidInput(f"{name} must be a list with one floating-point tensor per prompt, got {_shown(features)}.")
    for row in listed:
        if row.ndim != 2 or row.shape[1] != channels or not len(row):
            raise InvalidInput(
                f"{name} holds a tensor of shape {tuple(row.shape)}, expected (tokens, {channels}) per prompt."
            )
        if not bool(row.isfinite().all()):
            raise InvalidInput(f"{name} holds numbers that are not finite; encode the text in bfloat16 or float32.")
    return listed


def check_count(name: str, value: Any, least: int = 1) -> int:
    """``value`` as an int of at least ``least``.

    Raises:
        InvalidInput: no whole number, or too small.
    """
    try:
        count = index(value) if not isinstance(value, bool) else None
    except TypeError:
        count = None
    if count is None or count < least:
        raise InvalidInput(f"{name} must be a whole number of at least {least}, got {_shown(value)}.")
    return count


def check_numbers(name: str, value: Any, segments: int, above: float = -math.inf) -> list[float]:
    """One number, or a list of at least one per segment, as one per segment; longer lists are cut, as published.

    Raises:
        InvalidInput: not numbers, not finite, not above ``above``, beyond what logits bear, or too few.
    """
    listed = list(value) if isinstance(value, (list, tuple)) else [value] * segments
    numbers = [_real(one) for one in listed]
    for number in numbers:
        if not above < number < math.inf:
            limit = "" if above == -math.inf else f" above {above:g}"
            raise InvalidInput(f"{name} must be a number{limit}, or one per segment, got {_shown(value)}.")
        least = 1 / LARGEST if above == 0 else -LARGEST
        if not least <= number <= LARGEST:
            raise InvalidInput(
                f"{name} must lie between {least:g} and {LARGEST:g}, or logits overflow, got {_shown(value)}."
            )
    if len(listed) < segments:
        raise InvalidInput(f"{name} has {len(listed)} numbers for {segments} segments; give one, or one per segment.")
    return numbers[:segments]


def check_tensors(name: str, tensors: Any) -> list[Tensor]:
    """Tensors as a list; ``None`` is no tensor.

    Raises:
        InvalidInput: something else.
    """
    listed: list[Any] = [] if tensors is None else list(tensors) if isinstance(tensors, (list, tuple)) else [None]
    if not all(isinstance(one, Tensor) for one in listed):
        raise InvalidInput(f"{name} must be a list of tensors, one per segment, got {_shown(tensors)}.")
    return listed


def check_mask(mask: Any) -> Tensor | list[Tensor] | None:
    """One map, a list of maps, or nothing.

    Raises:
        InvalidInput: something else.
    """
    if mask is None or isinstance(mask, Tensor):
        return mask
    if not isinstance(mask, (list, tuple)) or not all(isinstance(one, Tensor) for one in mask):
        raise InvalidInput(f"forced_mask must be a tensor or a list of one per segment, got {_shown(mask)}.")
    return list(mask)


def check_callback(callback: Any, names: Any, allowed: Sequence[str]) -> None:
    """Refuse a callback that cannot be called, and names of tensors that it cannot get.

    Raises:
        InvalidInput: no function, or a name that is not in ``allowed``.
    """
    if callback is not None and not callable(callback):
        raise InvalidInput(f"callback_on_step_end must be a function, got {_shown(callback)}.")
    if isinstance(names, str) or not isinstance(names, Collection):
        raise InvalidInput(f"callback_on_step_end_tensor_inputs must be a list of names, got {_shown(names)}.")
    for name in names:
        check_choice("callback_on_step_end_tensor_inputs", name, allowed)


def check_like(name: str, tensor: Any, like: Tensor) -> Tensor:
    """``tensor`` in the type and on the device of ``like``, whose shape it has.

    Raises:
        InvalidInput: no tensor, another shape, or numbers that are not finite.
    """
    if not isinstance(tensor, Tensor) or tensor.shape != like.shape or tensor.is_complex():
        raise InvalidInput(f"The {name} must have shape {tuple(like.shape)}, got {_shown(tensor)}.")
    if not bool(tensor.isfinite().all()):
        raise InvalidInput(f"The {name} hold numbers that are not finite.")
    return tensor.to(like)


def check_share(name: str, value: Any) -> float:
    """``value`` as a number within 0 and 1.

    Raises:
        InvalidInput: no number, or outside.
    """
    number = _real(value)
    if not 0 <= number <= 1:
        raise InvalidInput(f"{name} must lie between 0 (off) and 1, got {_shown(value)}.")
    return number


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """``value`` if it is one of ``choices``.

    Raises:
        InvalidInput: it is not.
    """
    if not isinstance(value, str) or value not in choices:
        raise InvalidInput(f"{name} must be one of {', '.join(choices)}, got {_shown(value)}.")
    return value


def check_generators(generator: Any, images: int) -> torch.Generator | list[torch.Generator] | None:
    """One generator, one per image, or none.

    Raises:
        InvalidInput: something else, or a list of another length.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    if not isinstance(generator, (list, tuple)) or not all(isinstance(one, torch.Generator) for one in generator):
        raise InvalidInput(f"generator must be a torch.Generator or a list of them, got {_shown(generator)}.")
    if len(generator) != images:
        raise InvalidInput(f"Got {len(generator)} generators for {images} images; give one per image, or a single one.")
    return list(generator)


def seeds_of(generator: torch.Generator | list[torch.Generator] | None, images: int) -> list[int | None]:
    """The initial seed behind every image, ``None`` without generators."""
    if isinstance(generator, list):
        return [one.initial_seed() for one in generator]
    return [None if generator is None else generator.initial_seed()] * images


def aspect_of(aspect_ratio: Any) -> float | None:
    """Height over width of an aspect ratio that is said as width to height: ``"16:9"``, ``"16/9"`` or 1.78.

    Raises:
        InvalidInput: it cannot be read, or is not above 0.
    """
    if aspect_ratio is None:
        return None
    try:
        if isinstance(aspect_ratio, str):
            sides = [float(side) for side in aspect_ratio.replace("/", ":").replace("x", ":").split(":")]
            width, height = (*sides, 1.0)[:2] if len(sides) <= 2 else (math.nan, 1.0)
        else:
            width, height = float(aspect_ratio), 1.0
        ratio = height / width
    except (TypeError, ValueError, ZeroDivisionError):
        ratio = math.nan
    if not 0 < ratio < math.inf:
        raise InvalidInput(
            f"aspect_ratio says width to height, such as '16:9' or 1.78 for a wide picture, got {_shown(aspect_ratio)}."
        )
    return ratio


def _real(value: Any) -> float:
    """``value`` as a float; what is no number, or too large for one, becomes one that is not finite."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _shown(value: Any) -> str:
    text = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    return f"{text[:80]}{'...' if len(text) > 80 else ''} ({type(value).__name__})"
