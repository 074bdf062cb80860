"""The next-scale loop of Infinity: draw a segment, add its codes, show the sum to the next segment.

Everything is explicit: the text, the schedule and its positions, where keys and values go, the randomness.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scalekv.errors import InvalidInput
from scalekv.models.forcing import Forced, Masks
from scalekv.models.infinity.condition import TextCondition
from scalekv.models.infinity.rope import RopeTables
from scalekv.models.infinity.sampling import bits_to_codes, patchify, resize, sample_bits, unpatchify
from scalekv.models.infinity.transformer import MAX_SEGMENTS, InfinityTransformer, guidance_layers
from scalekv.models.layers import AttentionCache, mix_guidance
from scalekv.models.randomness import Generators
from scalekv.models.stopping import Answer, take
from scalekv.planning import Schedule, Segment

OnSegment = Callable[[Segment, Tensor, Tensor], Answer]
"""Called after each segment with the segment, the summed codes so far (B, codebook_bits, H, W) and the logits that were
drawn from (B, tokens, 2 * token_bits). Decoding the sum at any time gives a full-size image. A tensor that it returns
replaces the sum; ``True`` stops the run, and so does a `Stop`, with other latents."""


@dataclass(frozen=True)
class Generation:
    """What the loop drew.

    Args:
        codes: (B, codebook_bits, H, W) float32, the latent to decode.
        bits: per drawn segment (B, h, w, codebook_bits) uint8 on the latent grid.
    """

    codes: Tensor
    bits: list[Tensor]


@torch.no_grad()
def generate(
    transformer: InfinityTransformer,
    condition: TextCondition,
    schedule: Schedule,
    rope: RopeTables,
    cache: AttentionCache,
    *,
    guidance: float | Sequence[float] = 3.0,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 0.0,
    cfg_insertion_layer: Sequence[int] = (0,),
    generator: Generators = None,
    forced_bits: Sequence[Tensor] = (),
    forced_mask: Masks = None,
    on_segment: OnSegment | None = None,
    gradients: bool = False,
) -> Generation:
    """Draw the bits of every segment (the published autoregressive loop, restated).

    Args:
        transformer: the network.
        condition: the text, from `InfinityTransformer.prepare_text`; a fresh one if the weights have changed.
        schedule: the segments.
        rope: `InfinityTransformer.build_rope` of the schedule.
        cache: a fresh cache for this schedule.
        guidance: guidance scale, one or one per segment; segments with 1 are purely conditional.
        temperature: softmax temperature above 0, one or one per segment.
        top_k: see `filter_logits`, one or one per segment.
        top_p: see `filter_logits`, one or one per segment.
        cfg_insertion_layer: where guidance is mixed in, see `guidance_layers`.
        generator: one for the batch, one per image, or None; see `sample_bits`.
        forced_bits: (B, h, w, codebook_bits), or (B, 1, h, w, codebook_bits), for the first segments; they replace
            what was drawn, after the draw has consumed its randomness.
        forced_mask: where they do, see `Forced`; default everywhere.
        on_segment: called after each segment.
        gradients: run the network with gradients, so that the logits of ``on_segment`` have some; the draws have none.

    Raises:
        InvalidInput: a list shorter than the schedule, a temperature that is not above 0, guidance without
            unconditional text, forced bits of a wrong shape, or as the parts above.
    """
    scales = _per_segment("guidance", guidance, schedule)
    heats = _per_segment("temperature", temperature, schedule)
    limits = _per_segment("top_k", top_k, schedule), _per_segment("top_p", top_p, schedule)
    _check(transformer, condition, schedule, scales, heats, cfg_insertion_layer)
    width = (transformer.config.codebook_bits,)
    shapes = [(condition.batch, *_grid(segment, transformer), *width) for segment in schedule]
    forced = Forced(forced_bits, forced_mask, shapes, "forced_bits", 1)
    patch, final = transformer.patch_size, _grid(schedule[-1], transformer)
    codes, tokens, bits = None, None, []
    for segment in schedule:
        step = segment.index
        cache.begin(segment)
        with torch.set_grad_enabled(gradients):
            raw = transformer(
                tokens, condition, segment, rope, cache, guidance=scales[step], cfg_insertion_layer=cfg_insertion_layer
            )
            logits = raw * (1 / heats[step])
            if len(raw) > condition.batch:
                logits = mix_guidance(logits, scales[step])
        drawn = sample_bits(logits.detach(), int(limits[0][step]), limits[1][step], generator)
        drawn = unpatchify(drawn.unflatten(1, (segment.height, segment.width)), patch)
        drawn, _ = forced.into(drawn, step)
        bits.append(drawn)
        added = resize(bits_to_codes(drawn), final)
        codes = added if codes is None else codes + added
        if on_segment is not None:
            codes, ends = take(on_segment(segment, codes, logits), codes)
            if ends:
                break
        if not schedule.is_last(segment):
            tokens = patchify(resize(codes, _grid(schedule[step + 1], transformer)), patch)
    assert codes is not None
    return Generation(codes, bits)


def _grid(segment: Segment, transformer: InfinityTransformer) -> tuple[int, int]:
    """Latent pixels of ``segment``."""
    return segment.height * transformer.patch_size, segment.width * transformer.patch_size


def _per_segment(name: str, value: float | Sequence[float], schedule: Schedule) -> list[float]:
    """``value`` for every segment; a longer list than needed is cut, as the published command line allows."""
    values = [value] * len(schedule) if isinstance(value, (int, float)) else list(value)
    if len(values) < len(schedule):
        raise InvalidInput(f"Got {len(values)} values of {name} for {len(schedule)} segments; give one, or one each.")
    return values[: len(schedule)]


def _check(
    transformer: InfinityTransformer,
    condition: TextCondition,
    schedule: Schedule,
    scales: list[float],
    heats: list[float],
    cfg_insertion_layer: Sequence[int],
) -> None:
    guidance_layers(cfg_insertion_layer, transformer.config.depth)
    if len(schedule) > MAX_SEGMENTS:
        raise InvalidInput(f"Infinity draws at most {MAX_SEGMENTS} segments, the schedule has {len(schedule)}.")
    if not all(heat > 0 for heat in heats):
        raise InvalidInput(f"Temperatures must be above 0, got {heats}; use top_k=1 for the likeliest bits.")
    if not condition.guided and any(scale != 1 for scale in scales):
        raise InvalidInput(f"Guidance {scales} needs unconditional text; prepare it with guided=True.")
