"""Whether conditional and unconditional rows should get different shares of a budget.

With guidance g an error in a conditional row weighs g and one in an unconditional row g - 1. Here tokens are merged as
by `Bytewise` with equal heads and without rounding, and the conditional rows get more or less than half of the tokens:
what the other rows may not hold stays empty. Before the larger half must merge both keep everything. Pictures of the
built-in world, PSNR against the full cache, paired with the equal split.

    python benchmarks/guidance.py --prompts 28
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from common import arguments, show, write
from damage import Pictures
from torch import Tensor

from scalekv import Bytewise
from scalekv.cli.loading import open_model
from scalekv.evaluation.intervals import bootstrap
from scalekv.policies import SelectionView
from scalekv.policies.grouping import candidate_heights, nearest_groups
from scalekv.scenes.prompts import benchmark

BUDGETS = (10.0, 4.0)
SHARES = (0.35, 0.5, 0.65, 0.8)


@dataclass(frozen=True)
class Split(Bytewise):
    """Equal heads, never rounded; one half of the rows is merged to fewer tokens than the other.

    Args:
        lesser: ``"unconditional"`` or ``"conditional"``, the half that gets less.
        capacities: tokens of the lesser half at every boundary.
        larger: tokens of the other half, the capacities of the plan.
    """

    codec: str = "none"
    allocation: Any = "uniform"
    lesser: str = "unconditional"
    capacities: tuple[int, ...] = ()
    larger: tuple[int, ...] = ()

    name: ClassVar[str] = "split"

    def assign(self, view: SelectionView) -> Tensor:
        """Groups of each half."""
        assert view.count is not None
        groups = torch.zeros(view.key.shape[:3], dtype=torch.int64)
        segment, current, half = view.segment.index, view.segment.tokens, len(view.key) // 2
        held = {"larger": view.tokens - current, "lesser": view.tokens - current}
        if segment and self.larger[segment - 1] < view.schedule.start(segment):
            held["lesser"] = self.capacities[segment - 1]
        sides = {"larger": slice(0, half), "lesser": slice(half, None)}
        if self.lesser == "conditional":
            sides = {"larger": sides["lesser"], "lesser": sides["larger"]}
        for name, rows in sides.items():
            real = torch.cat([torch.arange(held[name]), torch.arange(view.tokens - current, view.tokens)])
            kept = min(len(real), view.capacity if name == "larger" else self.capacities[segment])
            parts = [tensor[rows][:, :, real] for tensor in (view.key, view.value, view.count)]
            heights = candidate_heights(view.schedule, view.segment, held[name])
            found = nearest_groups(*parts, kept, self.rounds, heights, self.reach)
            groups[rows] = groups[rows].index_copy(2, real, found)
        return groups


def split(pictures: Pictures, budget: float, share: float) -> Split:
    """The policy that gives conditional rows ``share`` of the tokens of ``budget`` percent."""
    larger = max(share, 1 - share)
    policy = Split(budget=f"{2 * larger * budget:.6g}%", lesser="unconditional" if share >= 0.5 else "conditional")
    capacities = [
        [plan.carried(plan.layers[0][0], segment) for segment in range(len(plan.geometry.schedule) - 1)]
        for plan in (
            pictures.plan(replace(policy, budget=f"{2 * part * budget:.6g}%")) for part in (larger, 1 - larger)
        )
    ]
    return replace(policy, larger=tuple(capacities[0]), capacities=tuple(capacities[1]))


def psnr(pictures: Pictures, policy: Bytewise) -> np.ndarray:
    """PSNR of every picture."""
    images, _ = pictures.draw(policy)
    return -10 * np.log10(((images - pictures.full[0]) ** 2).mean((1, 2, 3)))


def main() -> None:
    """Print the splits."""
    parser = arguments("Budgets of conditional and unconditional rows.")
    parser.add_argument("--prompts", type=int, default=28, help="held-out prompts, a multiple of 7")
    parser.add_argument("--batch", type=int, default=14)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    pipeline: Any = open_model("scenes", "float32", chosen.device, torch.bfloat16)
    pictures = Pictures(pipeline, [prompt.text for prompt in benchmark(chosen.prompts // 7)], chosen.batch)
    shown, figures = [], []
    for budget in BUDGETS:
        found = {share: psnr(pictures, split(pictures, budget, share)) for share in SHARES}
        for share, values in found.items():
            gain = bootstrap((values - found[0.5]).tolist())
            shown.append(
                (
                    f"{budget:g}%, {share:.0%}",
                    f"{values.mean():.2f}",
                    f"{gain.mean:+.2f} ({gain.low:.2f} to {gain.high:.2f})",
                )
            )
            figures.append({"budget": budget, "share": share, "psnr": values.tolist()})
    show("guidance", ("budget, share of conditional rows", "PSNR, dB", "over equal"), shown, chosen.device)
    write(chosen.json, {"rows": figures}, chosen.device)


if __name__ == "__main__":
    main()
