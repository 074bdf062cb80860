"""Methods that use one ability of the cache each, so that its bytes and results can be checked apart from real ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scalekv.planning import HeadGroup
from scalekv.policies import Policy
from scalekv.policies.layers import uniform
from scalekv.policies.observation import ObservingPolicy
from scalekv.policies.scoring import window_attention


@dataclass(frozen=True)
class PerHead(Policy):
    """Head 0 keeps the newest tokens it may, the other heads one token: groups of unequal length."""

    name: ClassVar[str] = "per_head"
    scoring_bytes: ClassVar[int] = 0
    tracks_origin: ClassVar[bool] = True

    def allocate(self, geometry, slots, profile):
        each = slots // geometry.layers
        schedule = geometry.schedule
        starts = [schedule.start(index) for index in range(len(schedule))]
        small = tuple(min(start, 1) for start in starts)
        large = tuple(min(start, each - geometry.heads + 1) for start in starts)
        rest = tuple(range(1, geometry.heads))
        groups = (HeadGroup((0,), large), *((HeadGroup(rest, small),) if rest else ()))
        return (groups,) * geometry.layers

    def score(self, view):
        assert view.origin is not None
        return view.origin.float()


@dataclass(frozen=True)
class TwoBudgets(ObservingPolicy):
    """Attends to the best ``read`` candidates, whatever it carries on."""

    read: int = 12

    name: ClassVar[str] = "two_budgets"
    scoring_bytes: ClassVar[int] = 4

    def allocate(self, geometry, slots, profile):
        schedule = geometry.schedule
        layers = []
        for (group,) in uniform(geometry, slots):
            attended = tuple(
                min(self.read, held + segment.tokens) for held, segment in zip(group.capacity, schedule, strict=True)
            )
            layers.append((HeadGroup(group.heads, group.capacity, attended),))
        return tuple(layers)

    def score(self, view):
        return window_attention(view)


@dataclass(frozen=True)
class OddSegments(Policy):
    """Head 0 holds the segments of odd number, the others none but the first: whole segments, nothing scored."""

    name: ClassVar[str] = "odd_segments"

    def allocate(self, geometry, slots, profile):
        tokens = geometry.schedule.tokens

        def group(heads, sources):
            return HeadGroup(heads, tuple(sum(tokens[one] for one in held) for held in sources), sources=sources)

        odd = group((0,), tuple(tuple(range(1, index, 2)) for index in range(len(tokens))))
        rest = group(tuple(range(1, geometry.heads)), ((), *((0,) for _ in tokens[1:])))
        return ((odd, *((rest,) if rest.heads else ())),) * geometry.layers


@dataclass(frozen=True)
class Remembering(ObservingPolicy):
    """Keeps what all queries since a token's birth looked at most."""

    queries: str = "all"

    name: ClassVar[str] = "remembering"
    remembers: ClassVar[bool] = True
    scoring_bytes: ClassVar[int] = 8

    def allocate(self, geometry, slots, profile):
        return uniform(geometry, slots)

    def remember(self, view):
        return window_attention(view)

    def score(self, view):
        assert view.memory is not None
        return view.memory
