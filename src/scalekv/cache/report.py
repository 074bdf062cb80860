"""What a run's cache took, planned and measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from scalekv.planning import CachePlan, format_bytes


@dataclass(frozen=True)
class CacheReport:
    """Bytes of one generation's KV cache.

    Args:
        policy: name of the method.
        stock_bytes: what the published loop would hold: float32 keys, last segment included.
        lossless_bytes: the exact cache here, the 100 % of budgets.
        limit_bytes: the budget.
        nominal_bytes: planned, most held between two segments.
        peak_bytes: planned, most allocated at any moment, scratch included.
        kept_bytes: measured, the most that later segments could read.
        measured_peak_bytes: measured, most allocated at any moment.
        tokens_per_layer: measured, mean tokens per head that each layer held for the last segment.
        segment_bytes: measured, bytes of history each segment found.
        seconds: wall time of the generation, where the driver measured it.
        codec: how history was held in the end; ``"none"`` for the dtype attention computes in.
        coded_from: first segment whose history was coded; ``None`` for none.
    """

    policy: str
    stock_bytes: int
    lossless_bytes: int
    limit_bytes: int
    nominal_bytes: int
    peak_bytes: int
    kept_bytes: int
    measured_peak_bytes: int
    tokens_per_layer: tuple[float, ...]
    segment_bytes: tuple[int, ...]
    seconds: float | None = None
    codec: str = "none"
    coded_from: int | None = None

    @classmethod
    def of_plan(cls, plan: CachePlan, **measured: Any) -> CacheReport:
        """The report of a run of ``plan``; ``measured`` supplies the measured fields."""
        return cls(
            policy=plan.policy,
            stock_bytes=plan.geometry.stock_bytes,
            lossless_bytes=plan.geometry.lossless_bytes,
            limit_bytes=plan.limit_bytes,
            nominal_bytes=plan.nominal_bytes,
            peak_bytes=plan.peak_bytes,
            codec=plan.codec,
            coded_from=plan.coded_from,
            **measured,
        )

    @property
    def kept_share(self) -> float:
        """Kept bytes over the lossless cache; 1 for a schedule that needs no cache at all."""
        return self.kept_bytes / self.lossless_bytes if self.lossless_bytes else 1.0

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        name = self.policy if self.coded_from is None else f"{self.policy} in {self.codec}"
        text = (
            f"{name}: kept {format_bytes(self.kept_bytes)} of {format_bytes(self.lossless_bytes)} "
            f"({100 * self.kept_share:.1f}%), peak {format_bytes(self.measured_peak_bytes)}, "
            f"stock {format_bytes(self.stock_bytes)}"
        )
        return text if self.seconds is None else f"{text}, {self.seconds:.1f} s"
