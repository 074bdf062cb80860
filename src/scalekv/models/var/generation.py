"""The next-scale loop of VAR: draw a segment, add its smoothed codes, show the sum to the next segment.

Everything is explicit: the classes, where keys and values go, the randomness.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scalekv.errors import InvalidInput
from scalekv.models.forcing import Forced, Masks
from scalekv.models.layers import AttentionCache, mix_guidance
from scalekv.models.randomness import Generators
from scalekv.models.stopping import Answer, take
from scalekv.models.var.codebook import Codebook, shrink
from scalekv.models.var.sampling import filter_logits, guidance_ramp, sample_tokens, smooth_weights
from scalekv.models.var.transformer import ClassCondition, VARTransformer
from scalekv.planning import Segment

OnSegment = Callable[[Segment, Tensor, Tensor], Answer]
"""Called after each segment with the segment, the latent so far (B, latent_channels, H, W) and the guided logits, not
yet filtered, that were drawn from (B, tokens, vocab_size). Decoding the latent at any time gives a full-size image. A
tensor that it returns replaces the latent; ``True`` stops the run, and so does a `Stop`, with other latents."""


@dataclass(frozen=True)
class Generation:
    """What the loop drew.

    Args:
        latent: (B, latent_channels, H, W) float32, the latent to decode.
        tokens: per drawn segment (B, h, w) int64; with ``smooth`` the draws, which the latent is not made of.
    """

    latent: Tensor
    tokens: list[Tensor]


@torch.no_grad()
def generate(
    transformer: VARTransformer,
    condition: ClassCondition,
    codebook: Codebook,
    cache: AttentionCache,
    *,
    guidance: float | Sequence[float] = 1.5,
    top_k: int = 0,
    top_p: float = 0.0,
    smooth: bool = False,
    generator: Generators = None,
    forced_tokens: Sequence[Tensor] = (),
    forced_mask: Masks = None,
    on_segment: OnSegment | None = None,
    gradients: bool = False,
) -> Generation:
    """Draw the tokens of every segment (the published autoregressive loop, restated).

    Args:
        transformer: the network.
        condition: the classes, from `VARTransformer.prepare_classes`; a fresh one if the weights have changed.
        codebook: of the tokenizer, on the device of the network.
        cache: a fresh cache for the network's schedule.
        guidance: weight of the last segment, see `guidance_ramp`, or one weight per segment.
        top_k: see `filter_logits`.
        top_p: see `filter_logits`.
        smooth: mix codes softly instead of looking up drawn ones, see `smooth_weights`; tokens are drawn and discarded
            to keep the random stream in the published order.
        generator: one for the batch, one per image, or None; see `draw_rows`.
        forced_tokens: (B, h, w) or (B, h * w) for the first segments; they replace what was drawn, after the draw has
            consumed its randomness.
        forced_mask: where they do, see `Forced`; default everywhere.
        on_segment: called after each segment.
        gradients: run the network with gradients, so that the logits of ``on_segment`` have some; the draws have none.

    Raises:
        InvalidInput: a list of weights shorter than the schedule, guidance without unconditional rows, forced tokens of
            a wrong shape, or as the parts above.
    """
    schedule = transformer.schedule
    weights = _weights(guidance, transformer, condition)
    shapes = [(condition.batch, segment.height, segment.width) for segment in schedule]
    highest = len(codebook.embedding) - 1
    forced = Forced(forced_tokens, forced_mask, shapes, "forced_tokens", highest)
    final, progress = shapes[-1][1:], guidance_ramp(1.0, schedule)
    latent, seen, tokens = None, None, []
    for segment, shape in zip(schedule, shapes, strict=True):
        step = segment.index
        cache.begin(segment)
        with torch.set_grad_enabled(gradients):
            logits = transformer(seen, condition, segment, cache)
            if condition.guided:
                logits = mix_guidance(logits, 1 + weights[step])
        filtered = filter_logits(logits.detach(), top_k, top_p)
        drawn, inside = forced.into(sample_tokens(filtered, generator).view(shape), step)
        tokens.append(drawn)
        codes = codebook.lookup(drawn)
        if smooth:
            mixed = codebook.mixture(smooth_weights(filtered, progress[step], generator).unflatten(1, shape[1:]))
            codes = mixed if inside is None else codes.where(inside[:, None], mixed)
        added = codebook.residual(codes, step, len(schedule), (final[0], final[1]))
        latent = added if latent is None else latent + added
        if on_segment is not None:
            latent, ends = take(on_segment(segment, latent, logits), latent)
            if ends:
                break
        if not schedule.is_last(segment):
            following = schedule[step + 1]
            seen = shrink(latent, (following.height, following.width)).flatten(2).transpose(1, 2)
    assert latent is not None
    return Generation(latent, tokens)


def _weights(
    guidance: float | Sequence[float], transformer: VARTransformer, condition: ClassCondition
) -> Sequence[float]:
    schedule = transformer.schedule
    weights = guidance_ramp(guidance, schedule) if isinstance(guidance, (int, float)) else list(guidance)
    if len(weights) < len(schedule):
        raise InvalidInput(f"Got {len(weights)} guidance weights for {len(schedule)} segments; give one, or one each.")
    if not condition.guided and any(weights[: len(schedule)]):
        raise InvalidInput(f"Guidance {guidance} needs unconditional rows; prepare the classes with guided=True.")
    return weights
