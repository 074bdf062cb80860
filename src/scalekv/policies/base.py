"""What every compression method is: a frozen dataclass that plans, and scores when something must go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from scalekv.errors import BudgetError
from scalekv.planning import (
    Budget,
    BudgetLike,
    CacheGeometry,
    CachePlan,
    Codec,
    Profile,
    Schedule,
    Segment,
    format_bytes,
)
from scalekv.planning.token_merging import COUNT_BYTES
from scalekv.policies.checks import check_choice, check_flag
from scalekv.policies.layers import Layers, bounded, coded, dropped_before, finer_coded

if TYPE_CHECKING:
    from torch import Tensor

_TRIES = 500


@dataclass(frozen=True)
class SelectionView:
    """What a policy sees when some rows of one head group must shrink to ``capacity`` tokens.

    Args:
        layer: layer index.
        heads: their indices; all of a head group or, where tokens are merged, some of it.
        schedule: the segments of the run.
        segment: the segment that was just attended; its tokens are the last ``segment.tokens`` candidates.
        capacity: tokens that will survive.
        key: ``(rows, heads, tokens, head_dim)``, candidates in cache order: kept history, then the current segment.
        value: ``(rows, heads, tokens, head_dim)``.
        query: ``(rows, heads, observed, head_dim)``, the observation queries of attention itself (logits
            are ``query @ key^T``), or the bare projections if the policy asked for those; ``None`` if none.
        window: ``(observed,)`` int64, the candidates whose queries were observed; ``None`` with ``query``.
        origin: ``(rows, heads, tokens)`` int32, each candidate's place in the sequence of all segments, if the
            policy tracks origins; else ``None``.
        memory: ``(rows, heads, tokens)`` float32, what :meth:`Policy.remember` has added up for each candidate, if
            the policy remembers; else ``None``.
        count: ``(rows, heads, tokens)`` float32, for how many tokens each candidate stands, if the policy merges; else
            ``None``.
        mass: ``(rows, heads, tokens)`` float32, the attention of all queries of the segment, summed, where the cache
            has added it up in passing; else ``None``.
        role: the head group's, as the policy planned it.
        profile: the calibration the plan was made with.
    """

    layer: int
    heads: tuple[int, ...]
    schedule: Schedule
    segment: Segment
    capacity: int
    key: Tensor
    value: Tensor
    query: Tensor | None = None
    window: Tensor | None = None
    origin: Tensor | None = None
    memory: Tensor | None = None
    count: Tensor | None = None
    mass: Tensor | None = None
    role: str = ""
    profile: Profile | None = None

    @property
    def tokens(self) -> int:
        """Number of candidates."""
        return int(self.key.shape[-2])


@dataclass(frozen=True)
class Policy(ABC):
    """A compression method. Its fields are its hyper-parameters, so it prints, compares and serialises for free.

    Args:
        budget: share of the lossless cache (``"10%"``, ``0.1``), bytes (``"512MiB"``) or ``"650 tokens"``.
        strict: hold the peak, scratch included, under the budget instead of the sum of capacities.
        timing: ``"after"`` attends to all candidates and then drops; ``"before"`` drops first, so that attention is
            cheaper too, and tokens of the current segment may go before they were ever attended. At the last segment
            ``"before"`` attends to as many as the heads ever hold.
        codec: how history is held from the first boundary on at which it would not fit the budget in the compute
            dtype: ``"none"``, ``"int8"``, ``"int6"``, ``"int4"``, ``"fp8"``, or keys and values apart,
            ``"int8/int4"``. The same bytes hold more tokens then.
    """

    budget: BudgetLike = "10%"
    strict: bool = False
    timing: Literal["after", "before"] = "after"
    codec: str = "none"

    name: ClassVar[str]
    source: ClassVar[str]
    summary: ClassVar[str]
    tracks_origin: ClassVar[bool] = False
    remembers: ClassVar[bool] = False
    scoring_bytes: ClassVar[int] = 0

    def __post_init__(self) -> None:
        Budget.parse(self.budget)
        check_flag("strict", self.strict)
        check_choice("timing", self.timing, ("after", "before"))
        Codec.parse(self.codec)

    @abstractmethod
    def allocate(self, geometry: CacheGeometry, slots: int, profile: Profile | None) -> Layers:
        """Divide ``slots`` (one slot holds one token of one head of one layer) at every boundary between segments.

        Args:
            geometry: the shape of the run.
            slots: the pool; the capacities of all heads together never exceed it.
            profile: calibration of this model and schedule, if there is one.

        Returns:
            Per layer its head groups with one capacity per segment.
        """

    def fewest_slots(self, geometry: CacheGeometry) -> int:
        """The smallest pool the method works with: one token in every head unless it says otherwise."""
        return geometry.layers * geometry.heads

    def observation(self, segment: Segment) -> tuple[int, ...]:
        """Positions in ``segment`` (raster order) whose queries score the candidates; none by default."""
        return ()

    @property
    def projected_observation(self) -> bool:
        """Whether scoring wants the bare query projection instead of the query attention uses."""
        return False

    @property
    def bounded(self) -> bool:
        """Whether the pool must hold inside a segment too, while some layers have grown and others not yet shrunk."""
        return True

    def remember(self, view: SelectionView) -> Tensor:
        """What the current segment adds to ``view.memory``, broadcastable to ``(rows, heads, tokens)`` float32.

        Called at every segment from which a later score can profit, if ``remembers`` is set; the sum is in
        ``view.memory`` when candidates are scored, the current segment's part included.
        """
        raise TypeError(f"{self.name} remembers but has nothing to add")

    def score(self, view: SelectionView) -> Tensor:
        """Importance of every candidate, ``(rows, heads, tokens)`` float32; rows or heads are 1 if all keep the same.

        The ``view.capacity`` largest survive; among equals the older token.
        """
        raise TypeError(f"{self.name} planned to drop tokens but has no score")

    @property
    def merges(self) -> bool:
        """Whether candidates that have no room are merged into others, see :meth:`assign`, instead of dropped."""
        return False

    def assign(self, view: SelectionView) -> Tensor:
        """The group of every candidate, ``(rows, heads, tokens)`` int64 from 0 to ``view.capacity - 1``.

        Each group is carried on as one token: its mean key and value, a candidate weighing as much as ``view.count``
        says, which attention then counts as often.
        """
        raise TypeError(f"{self.name} planned to merge tokens but has no groups for them")

    @property
    def exact_first(self) -> bool:
        """Whether history is coded only from where the budget first binds, rather than from the first boundary on."""
        return True

    @property
    def finer_codecs(self) -> tuple[str, ...]:
        """Codecs for history that would fit the budget in them, before it is held in ``codec``; finest first."""
        return ()

    def shape(self, geometry: CacheGeometry, profile: Profile | None, limit: int) -> CacheGeometry:
        """The geometry to plan for: as it is, or with the rows of guidance apart, see :meth:`CacheGeometry.apart`.

        Only for policies that merge: what queries saw is not told apart.
        """
        return geometry

    def plan(self, geometry: CacheGeometry, profile: Profile | None = None) -> CachePlan:
        """Decide what every layer holds at every segment.

        Args:
            geometry: the shape of the run.
            profile: calibration of this model and schedule; policies that need none ignore it.

        Raises:
            BudgetError: nothing fits the budget; names a feasible one, the smallest but for strict plans that merge.
            InvalidInput: the codec does not suit the heads of the model.
            ProfileError: the profile is for another model or schedule.
        """
        if profile is not None:
            profile.check(geometry)
        Codec.parse(self.codec).check(geometry.head_dim, geometry.element_bytes)
        limit = Budget.parse(self.budget).bytes_for(geometry)
        build = _PlanBuilder(self, self.shape(geometry, profile, limit), profile)
        plan = build.strict(limit) if self.strict else build.nominal(limit)
        if plan is None:
            kind = "strict budget (scratch included)" if self.strict else "budget"
            feasible = "a feasible one" if self.strict and self.merges else "the smallest feasible one"
            smallest = build.smallest()
            raise BudgetError(
                f"No {self.name} plan fits the {kind} of {Budget.parse(self.budget)}, here {limit} B; {feasible} "
                f"for this model, size and batch is {smallest} B ({format_bytes(smallest)})."
            )
        return plan

    def settings(self) -> dict[str, Any]:
        """The hyper-parameters by name, budget as text."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "budget": str(Budget.parse(self.budget))}


class _PlanBuilder:
    """Turns bytes into plans of one policy, geometry and profile."""

    def __init__(self, policy: Policy, geometry: CacheGeometry, profile: Profile | None) -> None:
        self.policy, self.geometry, self.profile = policy, geometry, profile
        self.codec = Codec.parse(policy.codec)
        self.origin_bytes = 4 if policy.tracks_origin else 0
        self.memory_bytes = 4 if policy.remembers else 0
        vectors = self.codec.token_bytes(geometry.head_dim, geometry.element_bytes)
        counts = COUNT_BYTES if policy.merges else 0
        self.slot_bytes = geometry.rows * (vectors + self.origin_bytes + self.memory_bytes + counts)
        self.all_slots = geometry.layers * geometry.heads * geometry.schedule.history_tokens
        self.fewest = min(policy.fewest_slots(geometry), self.all_slots)

    def _plan(self, slots: int, limit: int) -> CachePlan:
        plan = self._exact(slots, limit)
        everything = limit >= self.geometry.lossless_bytes and not self.policy.strict
        return plan if self.codec.exact or everything else self._coded_late(plan)

    def _exact(self, slots: int, limit: int) -> CachePlan:
        layers = self.policy.allocate(self.geometry, slots, self.profile)
        if self.policy.bounded:
            layers = bounded(layers, slots)
        if self.policy.timing == "before":
            layers = dropped_before(layers, self.geometry.schedule)
        return CachePlan(
            self.geometry,
            self.policy.name,
            limit,
            layers,
            strict=self.policy.strict,
            origin_bytes=self.origin_bytes,
            memory_bytes=self.memory_bytes,
            scoring_bytes=self.policy.scoring_bytes,
            observation=tuple(len(self.policy.observation(segment)) for segment in self.geometry.schedule),
            merging=self.policy.merges,
            profile=self.profile,
        )

    def _coded_late(self, plan: CachePlan) -> CachePlan:
        """``plan`` with its history coded from the latest boundary on with which what comes before fits the limit."""
        over = (segment for segment in range(len(self.geometry.schedule)) if not self._fits(plan, segment))
        first = next(over, None)
        if first is None:
            return plan
        if not self.policy.exact_first:
            return self._coded_from(plan, 1)
        for start in range(first + 1, 1, -1):
            candidate = self._coded_from(plan, start)
            if self._fits(candidate, start - 1):
                return self._finer(candidate, start)
        return self._coded_from(plan, 1)

    def _finer(self, plan: CachePlan, start: int) -> CachePlan:
        """``plan``, coded from ``start`` on, in the policy's finer codecs for as long as all of the history fits."""
        finer: tuple[tuple[int, Codec], ...] = ()
        for codec in map(Codec.parse, self.policy.finer_codecs):
            end, more = start, (*finer, (start, codec))
            while end < len(self.geometry.schedule) and self._all_fits(plan, more, end):
                end += 1
            while end > start and not self._fits(replace(plan, layers=finer_coded(plan.layers, more, end)), end - 1):
                end -= 1  # while some layers are done and others are not, too much would be held
            if end > start:
                finer, start = more, end
        return replace(plan, layers=finer_coded(plan.layers, finer, start)) if finer else plan

    def _all_fits(self, plan: CachePlan, finer: tuple[tuple[int, Codec], ...], segment: int) -> bool:
        """Whether nothing has been merged for ``segment``, and its history fits the limit in the last of ``finer``."""
        groups = [group for layer in plan.layers for group in layer]
        if any(plan.judges(group, earlier) for group in groups for earlier in range(segment)):
            return False
        candidate = replace(plan, layers=finer_coded(plan.layers, finer, segment + 1))
        return self._fits(candidate, segment - 1)

    def _coded_from(self, plan: CachePlan, start: int) -> CachePlan:
        return replace(plan, layers=coded(plan.layers, self.codec, start))

    def _fits(self, plan: CachePlan, segment: int) -> bool:
        """Whether the limit holds during ``segment`` and after it, in the way that the policy promises."""
        if not (self.policy.bounded or self.policy.strict):
            return plan.held_bytes(segment + 1) <= plan.limit_bytes
        moments = plan.segment_moments(segment)
        return all((moment.peak if plan.strict else moment.after) <= plan.limit_bytes for moment in moments)

    def _slots(self, limit: int) -> int:
        """Slots that ``limit`` bytes hold; a limit of 100 % means every token, origin marks or not."""
        if limit >= self.geometry.lossless_bytes:
            return self.all_slots
        return min(limit // self.slot_bytes, self.all_slots)

    def nominal(self, limit: int) -> CachePlan | None:
        slots = self._slots(limit)
        return self._plan(slots, limit) if slots >= self.fewest else None

    def strict(self, limit: int) -> CachePlan | None:
        """The plan with most slots whose peak fits.

        Peaks grow with the slots, but for plans that keep or drop whole histories: these need no scratch to choose.
        """
        best, low, high = None, self.fewest, self._slots(limit)
        most = self._plan(high, limit) if high >= low else None
        if most is not None and most.peak_bytes <= limit:
            return most
        while low <= high:
            middle = (low + high + 1) // 2
            plan = self._plan(middle, limit)
            if plan.peak_bytes <= limit:
                best, low = plan, middle + 1
            else:
                high = middle - 1
        return best or self._strict_by_trying(limit)

    def _strict_by_trying(self, limit: int) -> CachePlan | None:
        """As `strict`, from plans of evenly spaced numbers of slots; of all numbers if there are few."""
        step = max(1, (self._slots(limit) - self.fewest) // _TRIES)
        plans = (self._plan(slots, limit) for slots in range(self._slots(limit), self.fewest - 1, -step))
        return next((plan for plan in plans if plan.peak_bytes <= limit), None)

    def smallest(self) -> int:
        """The smallest feasible budget in bytes; of strict plans that merge, whose peaks jump, one that is feasible."""
        if not self.policy.strict:
            return min(self.fewest * self.slot_bytes, self.geometry.lossless_bytes)
        plan = self._exact(self.fewest, 0)
        if self.codec.exact:
            return min(plan.peak_bytes, self._exact(self.all_slots, 0).peak_bytes)
        return min(self._coded_from(plan, start).peak_bytes for start in range(1, len(self.geometry.schedule) + 1))
