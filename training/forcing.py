"""Teacher forcing: all segments of a picture in one pass of the transformer's own modules, and what they should say.

The network attends through a cache object; the one here holds every segment of the pass at once and lets a token see
its own segment and all earlier ones, which is what the cached generation sees. Cutting the schedule after any segment
therefore changes nothing for the segments before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from scalekv.models.infinity import InfinityTransformer
from scalekv.models.infinity.condition import TextCondition, TextGroup
from scalekv.models.infinity.rope import RopeTables
from scalekv.models.infinity.sampling import bits_to_codes, patchify, resize
from scalekv.models.layers import ProjectedQuery, widen
from scalekv.planning import Schedule, Segment

Grids = Sequence[tuple[int, int]]


class BlockCausal:
    """Stands where a cache stands: attention among the tokens of all segments, none to later segments.

    Args:
        schedule: the segments of the pass.
        device: where to compute; on CPUs plain matrix products, whose backward pass is several times quicker there.
        together: segments that end before so many tokens share one masked product; every later one has its own.
    """

    dtype = None
    """What comes is taken as it is: autocast decides, where there is any."""

    def __init__(self, schedule: Schedule, device: torch.device, together: int = 100) -> None:
        owner = torch.repeat_interleave(torch.arange(len(schedule)), torch.tensor(schedule.tokens)).to(device)
        self.visible = owner[:, None] >= owner[None, :]
        self.fused = device.type != "cpu"
        ends = [schedule.start(segment.index) + segment.tokens for segment in schedule]
        self.spans = list(pairwise([0, *(end for end in ends[:-1] if end >= together), ends[-1]]))

    def begin(self, segment: Segment) -> None:
        """Nothing to do: there is only one pass."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, projected_query: ProjectedQuery | None = None
    ) -> Tensor:
        """Softmax attention of scale 1 over (rows, heads, tokens, head_dim), each token to its and earlier segments."""
        if self.fused:
            return F.scaled_dot_product_attention(query, key, value, attn_mask=self.visible, scale=1.0)
        parts = [self._seen(query, key, value, start, end) for start, end in self.spans]
        return torch.cat(parts, dim=2)

    def _seen(self, query: Tensor, key: Tensor, value: Tensor, start: int, end: int) -> Tensor:
        """What the tokens from ``start`` to ``end`` make of all up to ``end``."""
        logits = query[:, :, start:end] @ key[:, :, :end].transpose(-1, -2)
        if not start:
            logits = logits.masked_fill(~self.visible[:end, :end], -torch.inf)
        with torch.autocast(logits.device.type, enabled=False):
            weights = logits.softmax(-1)
        return weights @ value[:, :, :end]


class PaddedText(TextCondition):
    """Text of many lengths as one group: a training batch has so many lengths that an attention each would be slow.

    Args:
        words: (B, longest, channels), padding included.
        real: (B, longest) booleans, False for padding.
    """

    def __init__(self, words: Tensor, real: Tensor) -> None:
        super().__init__(list(words), None, guided=False)
        count, longest = real.shape
        rows, places = torch.arange(count, device=real.device), torch.arange(count * longest, device=real.device)
        self._words = words.flatten(0, 1)
        self._groups[real.device] = [TextGroup(rows, places, count, longest, real[:, None, None])]

    def compact_features(self, unconditional: Tensor) -> Tensor:
        """(B * longest, channels)."""
        return self._words


def forced_logits(
    network: InfinityTransformer,
    inputs: Sequence[Tensor],
    condition: TextCondition,
    schedule: Schedule,
    rope: RopeTables,
    cache: BlockCausal,
) -> Tensor:
    """Logits of all segments of ``schedule`` at once.

    Args:
        network: the transformer; its modules run as in ``forward``, with the level embedding before the first block.
        inputs: for every segment but the first (B, tokens, token_bits), what the earlier ones drew.
        condition: the text of the B rows, unguided.
        schedule: the segments, or the first few of a longer schedule.
        rope: tables that begin with those of ``schedule``.
        cache: `BlockCausal` of ``schedule``.

    Returns:
        (B, all tokens, 2 * token_bits) float32.
    """
    exact = torch.autocast(rope.cos.device.type, enabled=False)
    # As in the reference's training: the pooled text steers everything and is never rounded.
    with exact:
        network._fill(condition)
    given = [None, *inputs]
    parts = []
    for segment, tokens in zip(schedule, given, strict=True):
        level = widen(network.lvl_embed(torch.full((1,), segment.index, device=rope.cos.device)))
        parts.append(widen(network._embed(tokens, condition, segment)) + level)
    states = torch.cat(parts, dim=1)
    cos, sin = rope.cos[: schedule.total_tokens], rope.sin[: schedule.total_tokens]
    for block in network.ordered_blocks:
        states = block(states, condition, cos, sin, cache)
    with exact:
        return network._logits(states, condition)


@dataclass(frozen=True)
class Forcing:
    """What the transformer is shown and what it should answer.

    Args:
        inputs: for every segment but the first (B, tokens, token_bits) float32.
        targets: (B, all tokens, token_bits) uint8.
    """

    inputs: list[Tensor]
    targets: Tensor


@torch.no_grad()
def corrected(latent: Tensor, grids: Grids, final: tuple[int, int], strength: Tensor) -> Forcing:
    """Bitwise self-correction: show wrong bits, and ask the next scales to make up for them.

    Every scale codes what the scales before it, as shown, left over (as ``BSQAutoencoder.encode_latent``); of the bits
    of a scale a share is flipped before they are shown, while its own target stays what it was.

    Args:
        latent: (B, bits, h, w) of the encoder, before signs.
        grids: (h, w) of the scales; all of the schedule or its first few.
        final: (h, w) of ``latent``.
        strength: (B,) share of flipped bits; 0 shows the truth.
    """
    rest, shown = latent, torch.zeros_like(latent)
    inputs: list[Tensor] = []
    targets = []
    for index, grid in enumerate(grids):
        if index:
            inputs.append(patchify(resize(shown, grid), 1))
        shrunk = rest if grid == final else F.interpolate(rest, size=grid, mode="area")
        bits = (shrunk > 0).permute(0, 2, 3, 1)
        targets.append(bits.flatten(1, 2))
        flips = torch.rand(bits.shape, device=bits.device) < strength[:, None, None, None]
        code = resize(bits_to_codes(bits ^ flips), final)
        rest, shown = rest - code, shown + code
    return Forcing(inputs, torch.cat(targets, dim=1).to(torch.uint8))


def bit_loss(logits: Tensor, targets: Tensor, schedule: Schedule, falloff: float) -> tuple[Tensor, Tensor]:
    """Cross entropy of bits, tokens of segment k weighted by n_k ^ -falloff.

    Args:
        logits: (B, tokens, 2 * token_bits).
        targets: (B, tokens, token_bits).
        schedule: the segments.
        falloff: 0 weighs all tokens alike, 1 all segments.

    Returns:
        the weighted mean, and the plain mean of every segment (segments,), detached; both in nats per bit.
    """
    pairs = logits.unflatten(-1, (-1, 2))
    margin = pairs[..., 1] - pairs[..., 0]
    each = F.binary_cross_entropy_with_logits(margin, targets.to(margin.dtype), reduction="none").mean(-1)
    counts = torch.tensor(schedule.tokens, device=logits.device)
    weight = torch.repeat_interleave(counts.float() ** -falloff, counts)
    plain = torch.stack([part.mean() for part in each.detach().split(list(schedule.tokens), dim=1)])
    return (each * weight).mean(0).sum() / weight.sum(), plain
