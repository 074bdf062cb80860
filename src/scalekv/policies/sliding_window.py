"""Keep the newest tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from scalekv.planning import CacheGeometry, Profile
from scalekv.policies.base import Policy, SelectionView
from scalekv.policies.layers import Layers, uniform

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SlidingWindow(Policy):
    """Keep the last ``capacity`` tokens in cache order, equally many in every layer and head.

    Source: the sliding-window baseline of ScaleKV's comparison (arXiv 2505.19602, table 1). "Last" is the end of the
    current segment in raster order, since positions are never renumbered [ours].
    """

    name: ClassVar[str] = "sliding_window"
    source: ClassVar[str] = "baseline in ScaleKV, arXiv 2505.19602"
    summary: ClassVar[str] = "keep the newest tokens"

    def allocate(self, geometry: CacheGeometry, slots: int, profile: Profile | None) -> Layers:
        """Equal capacities; needs no profile."""
        return uniform(geometry, slots)

    def score(self, view: SelectionView) -> Tensor:
        """The position in cache order, ``(1, 1, tokens)``."""
        import torch

        return torch.arange(view.tokens, dtype=torch.float32, device=view.key.device)[None, None]
