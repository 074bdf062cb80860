"""H2O: keep heavy hitters, tokens that gathered most attention since their birth, and the newest tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from scalekv.planning import CacheGeometry, Profile
from scalekv.policies.base import SelectionView
from scalekv.policies.checks import check_flag, check_share
from scalekv.policies.layers import Layers, uniform
from scalekv.policies.observation import ObservingPolicy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class H2O(ObservingPolicy):
    """Half of every head's tokens are those with the largest accumulated attention, half are the newest.

    Source: Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
    arXiv 2306.14048 (NeurIPS 2023): attention summed over all queries since a token's birth, capacity split in half.

    Published setting: ``H2O()``. Of ``B`` tokens ``floor(B / 2)`` are heavy hitters and the rest the newest in cache
    order, the end of the current segment in raster order [ours]. A segment's queries all add at once, also to their own
    tokens, since there is no causal mask; so late segments, with many queries, outvote the others. On a CPU attention
    adds the weights up in passing; on a GPU, and where history is coded, they are computed once more.

    Args:
        budget: see :class:`Policy`; sums are kept beside the tokens, 4 bytes each, and count.
        strict: see :class:`Policy`.
        timing: see :class:`Policy`.
        queries: see :class:`Observation`; default ``"all"``, fewer are [ours].
        recent_fraction: share of the newest tokens, 0 to 1 [ours]; 1 is a sliding window.
        per_query: divide each segment's sum by its queries, so that all segments weigh the same [ours].

    Raises:
        InvalidInput: an unknown rule, or a fraction outside [0, 1].
    """

    queries: str = "all"
    recent_fraction: float = 0.5
    per_query: bool = False

    name: ClassVar[str] = "h2o"
    source: ClassVar[str] = "H2O, arXiv 2306.14048 (NeurIPS 2023)"
    summary: ClassVar[str] = "half the tokens with most attention since their birth, half the newest"
    remembers: ClassVar[bool] = True
    scoring_bytes: ClassVar[int] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("recent_fraction", self.recent_fraction)
        check_flag("per_query", self.per_query)

    def allocate(self, geometry: CacheGeometry, slots: int, profile: Profile | None) -> Layers:
        """Equal capacities; needs no profile."""
        return uniform(geometry, slots)

    def remember(self, view: SelectionView) -> Tensor:
        """Attention of this segment's queries, summed: ``(rows, heads, tokens)``."""
        from scalekv.policies.scoring import window_attention

        assert view.window is not None
        added = window_attention(view)
        return added.div_(len(view.window)) if self.per_query else added

    def score(self, view: SelectionView) -> Tensor:
        """The sum since birth; the newest tokens go last."""
        assert view.memory is not None
        score = view.memory.clone()
        score[..., view.tokens - self.newest(view.capacity) :] = float("inf")
        return score

    def newest(self, capacity: int) -> int:
        """How many of ``capacity`` tokens are kept for being new: all but the whole part of the heavy hitters'."""
        return capacity - math.floor(capacity * (1 - self.recent_fraction) + 1e-9)
