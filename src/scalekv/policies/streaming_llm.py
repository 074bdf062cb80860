"""Keep the first scales and the newest tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from scalekv.planning import CacheGeometry, Profile
from scalekv.policies.base import Policy, SelectionView
from scalekv.policies.checks import check_whole
from scalekv.policies.layers import Layers, uniform

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class StreamingLLM(Policy):
    """Keep the attention sinks (the first segments) and fill up with the newest tokens.

    Source: Xiao et al., arXiv 2309.17453: four sink tokens and a window. Here the sinks are whole first segments
    [ours]: 2 segments are 1 + 4 tokens in Infinity. Where the sinks alone exceed the capacity, the
    oldest are kept.

    Args:
        budget: see :class:`Policy`.
        strict: see :class:`Policy`.
        sink_segments: whole first segments that are never dropped, at least 0; default 2.

    Raises:
        InvalidInput: ``sink_segments`` is no whole number from 0.
    """

    sink_segments: int = 2

    name: ClassVar[str] = "streaming_llm"
    source: ClassVar[str] = "StreamingLLM, arXiv 2309.17453"
    summary: ClassVar[str] = "keep the first scales and the newest tokens"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("sink_segments", self.sink_segments, least=0)

    def allocate(self, geometry: CacheGeometry, slots: int, profile: Profile | None) -> Layers:
        """Equal capacities; needs no profile."""
        return uniform(geometry, slots)

    def score(self, view: SelectionView) -> Tensor:
        """Sinks above everything (the oldest first), then the position in cache order, ``(1, 1, tokens)``."""
        import torch

        order = torch.arange(view.tokens, dtype=torch.float32, device=view.key.device)
        sinks = view.schedule.start(min(self.sink_segments, len(view.schedule) - 1))
        return torch.where(order < sinks, 2 * view.tokens - order, order)[None, None]
