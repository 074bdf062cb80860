"""The text of one generation, and what the network derives from it once.

Text is compact: the tokens of all rows one after another, (sum of lengths, channels). Rows hold the B conditional
prompts first, then, with guidance, the B unconditional ones.
"""

from __future__ import annotations

import torch
from torch import Tensor


class TextCondition:
    """The text of one generation: features going in, everything the network derives from them once.

    Made by ``InfinityTransformer.prepare_text`` and filled by the first ``forward`` that sees it, so that weights are
    only touched inside ``forward``, where offload hooks have put them on the device. Opaque to callers, and bound to
    the weights that filled it.

    Attributes:
        batch: prompts B.
        guided: whether unconditional rows follow the conditional ones.
        lengths: text tokens of every row.
        pooled: (rows, width) pooled text, None until filled.
        tokens: (sum of lengths, width) projected text, None until filled.
        modulation: (rows, 1, 6, width) shared adaptive-norm vectors; None until filled, or if every block has its own.
    """

    def __init__(self, features: list[Tensor], negative: list[Tensor] | None, guided: bool) -> None:
        self.batch = len(features)
        self.guided = guided
        self._features = features
        self._negative = negative
        tail = [] if not guided else features if negative is None else negative
        self.lengths = tuple(len(row) for row in [*features, *tail])
        self.pooled: Tensor | None = None
        self.tokens: Tensor | None = None
        self.modulation: Tensor | None = None
        self.layers: dict[int, LayerText] = {}
        self._groups: dict[torch.device, list[TextGroup]] = {}

    @property
    def rows(self) -> int:
        """Rows run through the network: B, or 2B with guidance."""
        return len(self.lengths)

    def compact_features(self, unconditional: Tensor) -> Tensor:
        """(sum of lengths, text_channels): conditional rows, then negative ones or the head of ``unconditional``."""
        rows = list(self._features)
        if self.guided and self._negative is not None:
            rows += self._negative
        elif self.guided:
            rows += [unconditional[: len(row)].to(row.dtype) for row in self._features]
        return torch.cat([row.to(unconditional.device) for row in rows])

    def groups(self, device: torch.device) -> list[TextGroup]:
        """Rows of equal text length, so that each group is one attention call without padding or mask."""
        if device not in self._groups:
            starts = [sum(self.lengths[:row]) for row in range(self.rows)]
            groups = []
            for length in sorted(set(self.lengths)):
                rows = [row for row in range(self.rows) if self.lengths[row] == length]
                places = [starts[row] + offset for row in rows for offset in range(length)]
                indices = torch.tensor(rows, device=device), torch.tensor(places, device=device)
                groups.append(TextGroup(*indices, len(rows), length))
            self._groups[device] = groups
        return self._groups[device]


class TextGroup:
    """Rows whose text has the same length.

    Args:
        rows: (n,) row indices.
        places: (n * length,) indices into the compact text.
        count: n.
        length: tokens of each row.
        real: (n, 1, 1, length) booleans, which tokens may be read; None for all.
    """

    def __init__(self, rows: Tensor, places: Tensor, count: int, length: int, real: Tensor | None = None) -> None:
        self.rows = rows
        self.places = places
        self.count = count
        self.length = length
        self.real = real


class LayerText:
    """What one block keeps about the text over all segments of a generation.

    Args:
        keys: per group (n, heads, length, head_dim).
        values: per group (n, heads, length, head_dim).
        modulation: (rows, 1, 6, width), the block's adaptive-norm vectors.
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor], modulation: Tensor) -> None:
        self.keys = keys
        self.values = values
        self.modulation = modulation
