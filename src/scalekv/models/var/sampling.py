"""Drawing tokens from logits: filters, the draw itself, and the smooth mixture for pictures to look at.

Layouts: logits (B, tokens, vocab_size), tokens (B, tokens) int64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scalekv.errors import InvalidInput
from scalekv.models.randomness import Generators, draw_rows, exponential_like
from scalekv.planning import Schedule


def guidance_ramp(scale: float, schedule: Schedule) -> list[float]:
    """The published ramp: guidance weight ``t`` per segment, from 0 on the first to ``scale`` on the last.

    Guided logits are ``(1 + t) * conditional - t * unconditional``, so a weight t is what others call a scale of 1 + t.
    """
    last = max(1, len(schedule) - 1)
    return [scale * segment.index / last for segment in schedule]


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Rule out unlikely tokens of (..., vocab_size) ``logits`` by setting them to minus infinity.

    Args:
        logits: of the whole vocabulary.
        top_k: how many of the likeliest stay, those equal to the last of them too; 0 keeps all.
        top_p: of what is left, the least likely whose probabilities sum to at most ``1 - top_p`` go; 0 keeps all. The
            likeliest always stays.

    Raises:
        InvalidInput: ``top_k`` negative or above the vocabulary, or ``top_p`` outside of 0 .. 1.
    """
    if not 0 <= top_k <= logits.shape[-1]:
        raise InvalidInput(f"top_k must lie between 0 (off) and the vocabulary of {logits.shape[-1]}, got {top_k}.")
    if not 0 <= top_p <= 1:
        raise InvalidInput(f"top_p must lie between 0 (off) and 1, got {top_p}.")
    if top_k > 0:
        threshold = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if top_p > 0:
        ordered, places = logits.sort(dim=-1)
        unlikely = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
        unlikely[..., -1] = False
        logits = logits.masked_fill(torch.zeros_like(unlikely).scatter(-1, places, unlikely), -torch.inf)
    return logits


def sample_tokens(filtered: Tensor, generator: Generators = None) -> Tensor:
    """Draw every token of (B, tokens, vocab_size) filtered logits; see `draw_rows`."""
    return draw_rows(filtered.softmax(-1), generator)


def smooth_weights(filtered: Tensor, progress: float, generator: Generators = None) -> Tensor:
    """Soft choices instead of draws: nicer to look at, not for measurements.

    Args:
        filtered: (B, tokens, vocab_size) filtered logits.
        progress: 0 at the first segment to 1 at the last; choices harden with it.
        generator: see `draw_rows`.

    Returns:
        (B, tokens, vocab_size), rows sum to 1.
    """
    heat = max(0.27 * (1 - 0.95 * progress), 0.005)
    return gumbel_softmax(filtered * (1 + progress), heat, exponential_like(filtered, generator))


def gumbel_softmax(logits: Tensor, heat: float, noise: Tensor) -> Tensor:
    """Softmax of logits with Gumbel noise, made of Exp(1) ``noise``, at the temperature ``heat``."""
    return ((logits - noise.log()) / heat).softmax(-1)


def draw_classes(count: int, classes: int, generator: Generators = None) -> list[int]:
    """Random classes in the published way: one draw of all, before anything else.

    With one generator per image every image gets the class that it gets alone.
    """

    def draw(number: int, own: torch.Generator | None) -> list[int]:
        equal = torch.full((1, classes), 1 / classes, device=None if own is None else own.device)
        drawn: list[int] = torch.multinomial(equal, number, replacement=True, generator=own)[0].tolist()
        return drawn

    if generator is None or isinstance(generator, torch.Generator):
        return draw(count, generator)
    return [draw(1, own)[0] for own in generator]
