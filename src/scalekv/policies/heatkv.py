"""HeatKV: every head keeps a source scale whole or not at all, decided before the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from scalekv.planning import CacheGeometry, HeadGroup, Profile
from scalekv.planning.reliance import removal_orders, scas
from scalekv.policies.atoms import Atom, AtomPool
from scalekv.policies.base import Policy
from scalekv.policies.calibrated import warn_without_profile
from scalekv.policies.checks import check_after, check_choice, check_whole
from scalekv.policies.layers import Layers, of_whole_segments, uniform


@dataclass(frozen=True)
class HeatKV(Policy):
    """Heads lose the source scales that calibration saw them attend to least; no scores, nothing decided per prompt.

    Source: "HeatKV: Head-tuned KV-cache Compression for Visual Autoregressive Modeling", arXiv 2605.14877 (2026), and
    its code (MIT). For each source scale all heads of the network are put in the order of S-CAS, the mean attention
    that later scales pay to all of that scale. When a scale is attended, every source has lost equally many heads, as
    many as bring the whole below the pool; inside a scale some go sooner, so that the pool holds at every moment. The
    first three scales and the current one are always there.

    Published settings: budgets of 20, 10 and 4 %, counted as here; ``sink_scales=3``; S-CAS of 10 prompts.
    ``allocation="density"`` [inferred] keeps the cells of the largest S-CAS per token instead, as many as fit. Heads of
    a layer that hold the same scales throughout form a head group [ours]. Without a profile all scores count as equal.

    Args:
        budget: see :class:`Policy`.
        strict: see :class:`Policy`.
        timing: ``"after"``; what goes does not depend on the current scale.
        allocation: ``"uniform"`` (published) or ``"density"``.
        sink_scales: first scales that every head keeps, at least 1.

    Raises:
        InvalidInput: timing ``"before"``, an unknown allocation, or ``sink_scales`` below 1.
    """

    allocation: Literal["uniform", "density"] = "uniform"
    sink_scales: int = 3

    name: ClassVar[str] = "heatkv"
    source: ClassVar[str] = "HeatKV, arXiv 2605.14877 (2026)"
    summary: ClassVar[str] = "each head keeps the whole scales it was seen to attend to"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_after(self.timing, "HeatKV decides before the run what goes, so that nothing can be judged")
        check_choice("allocation", self.allocation, ("uniform", "density"))
        check_whole("sink_scales", self.sink_scales, least=1)

    def allocate(self, geometry: CacheGeometry, slots: int, profile: Profile | None) -> Layers:
        """Whole scales per head and segment; without a profile heads go by number, and a warning says so."""
        if slots >= geometry.layers * geometry.heads * geometry.schedule.history_tokens:
            return uniform(geometry, slots)
        if profile is None:
            warn_without_profile("HeatKV", "all heads count as equally attentive and go by their number")
            profile = _indifferent(geometry)
        pool = AtomPool.of(geometry, self.sink_scales, slots)
        orders = removal_orders(profile, self.sink_scales)
        if self.allocation == "uniform":
            removals = pool.uniform_removals(orders)
        else:
            removals = pool.density_removals(scas(profile, self.sink_scales))
        missing = pool.missing(removals, orders)
        return tuple(_groups(geometry, layer, missing) for layer in range(geometry.layers))

    def fewest_slots(self, geometry: CacheGeometry) -> int:
        """The protected tokens of every head."""
        return geometry.layers * geometry.heads * sum(geometry.schedule.tokens[: self.sink_scales])


def _indifferent(geometry: CacheGeometry) -> Profile:
    """A profile in which nothing is attended."""
    row = ((0.0,) * geometry.heads,) * geometry.layers
    mass = tuple((row,) * (segment + 1) for segment in range(len(geometry.schedule)))
    return Profile("", geometry.layers, geometry.heads, geometry.schedule, source_statistics={"mass": mass})


def _groups(geometry: CacheGeometry, layer: int, missing: Sequence[set[Atom]]) -> tuple[HeadGroup, ...]:
    """Heads of one layer by what they hold, in the order of their first head."""
    heads: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for head in range(geometry.heads):
        slot = layer * geometry.heads + head
        sources = tuple(
            tuple(source for source in range(target) if (source, slot) not in gone)
            for target, gone in enumerate(missing)
        )
        heads.setdefault(sources, []).append(head)
    return tuple(of_whole_segments(group, sources, geometry.schedule) for sources, group in heads.items())
