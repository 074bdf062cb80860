"""Given tokens in place of drawn ones, in whole segments or inside a mask: teacher forcing and in-painting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from scalekv.errors import InvalidInput

Masks = Tensor | Sequence[Tensor] | None


class Forced:
    """The given tokens of the first segments, and where they stand.

    What is repainted sees the given tokens of earlier segments and of its own, as any token does, and nothing else ties
    it to them. A mask acts on whole tokens, so its edge is as coarse as the segment; picture tokenizers mix neighbours,
    so that kept parts come back as the tokenizer reconstructs them, not pixel by pixel.

    Args:
        tokens: per segment, from the first; fewer than the schedule has leave the others free.
        masks: where the tokens stand, true or not 0: one (H, W) or (B, H, W) map of any size for all segments, of
            which a token counts as inside if at least half of its area is; or one (h, w) or (B, h, w) map per segment.
            ``None`` is everywhere.
        shapes: what a drawn segment looks like, for all of the schedule: (B, h, w), or (B, h, w, n) for n bits.
        name: what users call ``tokens``; the masks are called ``forced_mask``.
        highest: largest valid token.

    Raises:
        InvalidInput: too many segments, a wrong shape, tokens out of range, or masks without tokens.
    """

    def __init__(
        self, tokens: Sequence[Tensor], masks: Masks, shapes: Sequence[tuple[int, ...]], name: str, highest: int
    ) -> None:
        if len(tokens) > len(shapes):
            raise InvalidInput(
                f"Got {name.replace('_', ' ')} for {len(tokens)} segments of a schedule of {len(shapes)}."
            )
        for index, (given, shape) in enumerate(zip(tokens, shapes, strict=False)):
            accepted = (shape, (shape[0], 1, *shape[1:]), (shape[0], shape[1] * shape[2], *shape[3:]))
            if tuple(given.shape) not in accepted:
                raise InvalidInput(
                    f"{name.replace('_', ' ').capitalize()} of segment {index} are {tuple(given.shape)}, expected "
                    f"{shape}."
                )
            whole = given.long()
            if bool((whole != given).any()) or not 0 <= int(whole.min()) <= int(whole.max()) <= highest:
                raise InvalidInput(f"{name} of segment {index} must be whole numbers from 0 to {highest}.")
        self._tokens = list(tokens)
        self._masks = _masks(masks, shapes[: len(tokens)]) if masks is not None else None

    def into(self, drawn: Tensor, segment: int) -> tuple[Tensor, Tensor | None]:
        """``drawn`` with the given tokens in it, and where they stand, (B, h, w) bool; ``None`` is nowhere."""
        if segment >= len(self._tokens):
            return drawn, None
        given = self._tokens[segment].to(drawn).view_as(drawn)
        if self._masks is None:
            return given, given.new_ones(given.shape[:3], dtype=torch.bool)
        inside = self._masks[segment].to(drawn.device)
        wide = inside if drawn.ndim == 3 else inside[..., None]
        return given.where(wide, drawn), inside.expand(drawn.shape[:3])


def _masks(masks: Tensor | Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    if not shapes:
        raise InvalidInput("A forced_mask needs tokens to put inside; give them too.")
    one = isinstance(masks, Tensor)
    if not one and len(masks) != len(shapes):
        raise InvalidInput(
            f"forced_mask has {len(masks)} maps for {len(shapes)} given segments; give one, or one each."
        )
    listed = [masks] * len(shapes) if isinstance(masks, Tensor) else list(masks)
    found = []
    for mask, shape in zip(listed, shapes, strict=True):
        wide = mask[None] if mask.ndim == 2 else mask
        if wide.ndim != 3 or wide.shape[0] not in (1, shape[0]) or 0 in wide.shape:
            raise InvalidInput(
                f"forced_mask has shape {tuple(mask.shape)}, expected (height, width) or ({shape[0]}, height, width)."
            )
        grid = (shape[1], shape[2])
        if not one and tuple(wide.shape[1:]) != grid:
            raise InvalidInput(f"forced_mask of a segment has shape {tuple(mask.shape)}, expected {grid} tokens.")
        covered = F.interpolate((wide != 0).float()[:, None], size=grid, mode="area")[:, 0]
        found.append(covered >= 0.5)
    return found
