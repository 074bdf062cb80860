"""Keep a random sample: the floor that every informed method must stay above."""

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
class Random(Policy):
    """Each token draws one number at birth; the tokens with the largest numbers stay.

    The number is a hash of (seed, layer, head, position in the whole sequence), so it does not depend on the batch, the
    device or the sampling noise, and the kept sets are nested: a smaller budget keeps a subset, and every kept set is a
    uniform sample of everything seen [ours].

    Args:
        budget: see :class:`Policy`.
        strict: see :class:`Policy`.
        seed: another sample; default 0.

    Raises:
        InvalidInput: ``seed`` is no whole number.
    """

    seed: int = 0

    name: ClassVar[str] = "random"
    source: ClassVar[str] = "ours (floor reference)"
    summary: ClassVar[str] = "keep a uniform random sample of the history"
    tracks_origin: ClassVar[bool] = True
    scoring_bytes: ClassVar[int] = 24

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("seed", self.seed)

    def allocate(self, geometry: CacheGeometry, slots: int, profile: Profile | None) -> Layers:
        """Equal capacities; needs no profile."""
        return uniform(geometry, slots)

    def score(self, view: SelectionView) -> Tensor:
        """The numbers drawn at birth, ``(rows, heads, tokens)``, in [0, 1)."""
        import torch

        assert view.origin is not None
        heads = torch.tensor(view.heads, device=view.key.device)[:, None]
        stream = (self.seed * 0x9E3779B1 + view.layer * 0x85EBCA77) & 0x3FFFFFFF
        mixed = view.origin.long().mul_(0x27D4EB2F).add_(heads * 0x165667B1 + stream)
        for multiplier, shift in ((0x2C1B3C6D, 15), (0x297A2D39, 12), (0x1B873593, 15)):
            mixed = mixed.bitwise_and_(0x7FFFFFFF)
            mixed = (mixed ^ (mixed >> shift)).mul_(multiplier)
        return (mixed >> 20).bitwise_and_(0xFFFFFF).float() / 0x1000000
