"""Keep everything: the exact cache every other method is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scalekv.planning import BudgetLike, CacheGeometry, Profile
from scalekv.policies.base import Policy
from scalekv.policies.layers import Layers, dense


@dataclass(frozen=True)
class Full(Policy):
    """The full history of every layer, without the last segment, which nothing reads.

    Exact: the picture is that of the published loop, at 1.6 to 2.5 times fewer bytes.

    Args:
        budget: must be ``"100%"``, or bytes that hold everything.
        strict: hold the peak, scratch included, under the budget.
    """

    budget: BudgetLike = "100%"

    name: ClassVar[str] = "full"
    source: ClassVar[str] = "exact attention"
    summary: ClassVar[str] = "keep the whole history (no compression)"

    def allocate(self, geometry: CacheGeometry, slots: int, profile: Profile | None) -> Layers:
        """Every token of every earlier segment; ignores ``slots`` (a smaller budget is refused by ``plan``)."""
        schedule = geometry.schedule
        capacity = [schedule.start(index) for index in range(len(schedule))]
        return dense(geometry, [capacity] * geometry.layers)

    def fewest_slots(self, geometry: CacheGeometry) -> int:
        """Slots of the whole history."""
        return geometry.layers * geometry.heads * geometry.schedule.history_tokens
