"""Bytewise: the tokens whose loss would move attention most, in as few bits as hardly matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from scalekv.planning import CacheGeometry, Profile
from scalekv.policies.base import SelectionView
from scalekv.policies.checks import check_choice
from scalekv.policies.layers import Layers, uniform
from scalekv.policies.observation import ObservingPolicy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Bytewise(ObservingPolicy):
    """Keep the tokens whose loss alone would move the observed outputs most, at six bits where exact ones do not fit.

    Source: ours. Three departures from the published methods, each a setting: 64 evenly spaced queries observe, not 16
    or 32; a candidate counts by what dropping it does to the outputs of attention, not by its weight; and history stays
    exact until the budget first binds, then it is rounded, so that the same bytes hold two and a half times the tokens.
    All layers and heads are equal.

    Args:
        budget: see :class:`Policy`.
        strict: see :class:`Policy`.
        timing: see :class:`Policy`.
        codec: see :class:`Policy`; default six bits.
        queries: see :class:`Observation`; nothing is protected.
        importance: ``"damage"``: the sum over queries of ``|a / (1 - a) * (o - v)|^2`` for a token of weight a and
            value v beside the output o, exactly what dropping it alone costs; or ``"attention"``, its weight.

    Raises:
        InvalidInput: an unknown rule, codec or importance.
    """

    codec: str = "int6"
    queries: str = "uniform:64"
    importance: Literal["damage", "attention"] = "damage"

    name: ClassVar[str] = "bytewise"
    source: ClassVar[str] = "ours"
    summary: ClassVar[str] = "keep what outputs would miss most, at six bits once the budget binds"
    scoring_bytes: ClassVar[int] = 12

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("importance", self.importance, ("damage", "attention"))

    def allocate(self, geometry: CacheGeometry, slots: int, profile: Profile | None) -> Layers:
        """Equal capacities; needs no profile."""
        return uniform(geometry, slots)

    def score(self, view: SelectionView) -> Tensor:
        """What the observed outputs lose without each candidate, or the attention they pay to it."""
        from scalekv.policies.scoring import window_attention, window_damage

        return window_damage(view) if self.importance == "damage" else window_attention(view)
