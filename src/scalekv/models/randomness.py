"""Random draws that depend on seeds only: one generator for a batch in the published order, or one per image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scalekv.errors import InvalidInput

Generators = torch.Generator | Sequence[torch.Generator] | None


def draw_rows(chances: Tensor, generator: Generators) -> Tensor:
    """Draw one index for every token.

    One generator (or None, the global one) draws one matrix for the whole batch; a list of B generators gives each
    image what it draws alone. How much randomness is consumed depends on the shape only. A generator on another device
    draws there, so that a CPU generator gives the same indices on every device.

    Args:
        chances: (B, tokens, choices), not negative.
        generator: the randomness.

    Returns:
        (B, tokens) int64, on the device of ``chances``.

    Raises:
        InvalidInput: a list of generators that is not one per image, or chances that are not finite.
    """

    def draw(rows: Tensor, own: torch.Generator | None) -> Tensor:
        device = rows.device if own is None else own.device
        flat = rows.flatten(0, 1).to(device)
        if not bool(flat.isfinite().all()):
            raise InvalidInput(
                "The network's numbers are not finite; use bfloat16 or float32 weights, and a guidance and temperature "
                "nearer to 1."
            )
        drawn = torch.multinomial(flat, 1, replacement=True, generator=own)
        return drawn.view(rows.shape[:2]).to(rows.device)

    return _per_image(draw, chances, generator)


def exponential_like(states: Tensor, generator: Generators) -> Tensor:
    """Exp(1) values in the shape of (B, ...) ``states``; generators and errors as in `draw_rows`."""

    def draw(rows: Tensor, own: torch.Generator | None) -> Tensor:
        empty = torch.empty_like(rows, device=None if own is None else own.device)
        return empty.exponential_(generator=own).to(rows.device)

    return _per_image(draw, states, generator)


def _per_image(
    draw: Callable[[Tensor, torch.Generator | None], Tensor], states: Tensor, generator: Generators
) -> Tensor:
    if generator is None or isinstance(generator, torch.Generator):
        return draw(states, generator)
    if len(generator) != len(states):
        raise InvalidInput(
            f"Got {len(generator)} generators for {len(states)} images; give one for each, or a single one."
        )
    return torch.cat([draw(one, own) for one, own in zip(states.split(1), generator, strict=True)])
