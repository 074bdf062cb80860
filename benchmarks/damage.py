"""Whether the damage that `Bytewise` plans by is the damage that pictures show.

Draws held-out prompts with plans of many kinds (uniform and by sensitivity, floors, codecs) at several budgets, and
compares what `predicted_damage` says of each plan with the share of bits or tokens that come out unlike those of the
full cache, and with the squared error of the pictures: Spearman's rank correlation over all plans, and the mean of
those within each budget.

    python benchmarks/damage.py --model scenes --prompts 24
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from common import arguments, show, write

from scalekv import Bytewise
from scalekv.calibration.stability import spearman
from scalekv.cli.loading import open_model
from scalekv.planning import CachePlan
from scalekv.planning.worth import predicted_damage
from scalekv.scenes.prompts import benchmark

BUDGETS = ("30%", "20%", "10%", "7%", "4%", "2%")
KINDS: dict[str, dict[str, Any]] = {
    "by sensitivity": {},
    "by sensitivity, floor 0.75": {"floor": 0.75},
    "by sensitivity, int8": {"codec": "int8"},
    "uniform": {"allocation": "uniform"},
    "uniform, int8": {"allocation": "uniform", "codec": "int8"},
    "uniform, exact": {"allocation": "uniform", "codec": "none"},
}


@dataclass(frozen=True)
class Row:
    """One plan."""

    budget: str
    kind: str
    predicted: float
    flipped: float
    error: float


class Pictures:
    """Draws the prompts with any policy, each with a seed of its own."""

    def __init__(self, pipeline: Any, prompts: list[str], batch: int) -> None:
        self.pipeline, self.prompts, self.batch = pipeline, prompts, batch
        pipeline.set_progress_bar_config(disable=True)
        self.full = self.draw(None)

    def draw(self, policy: Bytewise | None) -> tuple[np.ndarray, list[torch.Tensor]]:
        """Pictures (prompts, height, width, 3) in 0..1, and what was drawn, by segment."""
        images, drawn = [], []
        for start in range(0, len(self.prompts), self.batch):
            some = self.prompts[start : start + self.batch]
            seeds = [torch.Generator().manual_seed(start + offset) for offset in range(len(some))]
            result = self.pipeline(some, generator=seeds, kv_cache=policy, output_type="np")
            images.append(result.images)
            drawn.append(result.drawn)
        return np.concatenate(images), [torch.cat(parts) for parts in zip(*drawn, strict=True)]

    def plan(self, policy: Bytewise) -> CachePlan:
        """Of a batch."""
        profile = self.pipeline.profile
        return policy.plan(self.pipeline.cache_geometry(profile.schedule, self.batch), profile)

    def row(self, budget: str, kind: str) -> Row:
        """One plan, predicted and drawn."""
        policy = Bytewise(budget=budget, **KINDS[kind])
        images, drawn = self.draw(policy)
        flips = [(one != other).float().mean().item() for one, other in zip(drawn, self.full[1], strict=True)]
        error = float(((images - self.full[0]) ** 2).mean())
        return Row(
            budget, kind, predicted_damage(self.plan(policy), self.pipeline.profile), float(np.mean(flips)), error
        )


def correlations(rows: list[Row], what: str) -> tuple[float, float]:
    """Rank correlation of prediction and ``what`` over all rows, and the mean of those within budgets."""

    def correlate(some: list[Row]) -> float:
        pair = (np.array([row.predicted for row in some]), np.array([getattr(row, what) for row in some]))
        return spearman(*pair) or 0.0

    within = [correlate([row for row in rows if row.budget == budget]) for budget in {row.budget for row in rows}]
    return correlate(rows), float(np.mean(within))


def main() -> None:
    """Print the plans and the correlations."""
    parser = arguments("Predicted and realised damage of plans.")
    parser.add_argument("--model", default="scenes", help="a folder or name with a calibrated profile")
    parser.add_argument(
        "--prompts", type=int, default=28, help="held-out prompts of the built-in world, a multiple of 7"
    )
    parser.add_argument("--batch", type=int, default=14)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    pipeline: Any = open_model(chosen.model, "float32", chosen.device, torch.bfloat16)
    texts = [prompt.text for prompt in benchmark(chosen.prompts // 7)]
    pictures = Pictures(pipeline, texts, chosen.batch)
    rows = [pictures.row(budget, kind) for budget in BUDGETS for kind in KINDS]
    shown = [
        (
            f"{row.budget}, {row.kind}",
            f"{row.predicted:.4g}",
            f"{row.flipped:.4f}",
            f"{10 * np.log10(1 / row.error):.2f}",
        )
        for row in rows
    ]
    show("damage", ("plan", "predicted, nats", "draws unlike full", "PSNR, dB"), shown, chosen.device)
    found = {what: correlations(rows, what) for what in ("flipped", "error")}
    for what, (overall, within) in found.items():
        print(f"rank correlation of prediction and {what}: {overall:.3f} over all plans, {within:.3f} within budgets")
    write(chosen.json, {"rows": [asdict(row) for row in rows], "correlations": found}, chosen.device)


if __name__ == "__main__":
    main()
