"""Every method drawing with the built-in model: seconds over the full cache's, and what bookkeeping costs.

Whole pictures but for the decoder (latents), one at a time and in a batch. Bookkeeping is a share of what attention and
cache take with everything kept.

    python benchmarks/scenes.py
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from common import Measuring, TimedCache, arguments, interleaved, show, spread, write

from scalekv import CacheGeometry, CachePlan, Full, Policy, Profile
from scalekv.cli.loading import open_model
from scalekv.policies.specs import parse_specs
from scalekv.scenes.prompts import benchmark


@dataclass
class Bench:
    """Pictures of some prompts with one method, and of every run the seconds of bookkeeping and of all cache work."""

    pipeline: Any
    prompts: list[str]
    policy: Policy
    plans: dict[CacheGeometry, CachePlan] = field(default_factory=dict)
    opened: list[TimedCache] = field(default_factory=list)

    def run(self) -> Measuring:
        """Draw all."""
        seeds = [torch.Generator().manual_seed(seed) for seed in range(len(self.prompts))]
        self.pipeline(self.prompts, kv_cache=self, generator=seeds, output_type="latent")
        return Measuring(self.opened[-1].measuring)

    def __call__(self, geometry: CacheGeometry, *, dtype: torch.dtype, device: torch.device) -> TimedCache:
        """A fresh cache; planned once, as `scalekv evaluate` does."""
        if geometry not in self.plans:
            self.plans[geometry] = self.policy.plan(geometry, adapted(self.pipeline.profile, geometry))
        self.opened.append(TimedCache(self.plans[geometry], self.policy, dtype=dtype, device=device))
        return self.opened[-1]


def adapted(profile: Profile | None, geometry: CacheGeometry) -> Profile | None:
    """The model's profile for this schedule."""
    return None if profile is None else profile.adapted_to(geometry.schedule)


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--budget", default="10%")
    parser.add_argument("--policies", default="all", help="as 'scalekv evaluate' takes them; full is always measured")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 14], help="pictures that are drawn together")
    parser.add_argument("--dtype", default="float32", help="of the weights")
    parser.add_argument("--cache-dtype", default="bfloat16")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipeline = open_model("scenes", options.dtype, options.device, options.cache_dtype)
    pipeline.set_progress_bar_config(disable=True)
    policies = {Full.name: Full(), **{one.label: one.policy(options.budget) for one in parse_specs([options.policies])}}
    rows, figures = [], {}
    for size in options.batches:
        prompts = [prompt.text for prompt in benchmark(-(-size // 7))][:size]
        benches = {name: Bench(pipeline, prompts, policy) for name, policy in policies.items()}
        works = {name: bench.run for name, bench in benches.items()}
        times = interleaved(works, options.repeats, options.device)
        figures[size] = measured(benches, times)
        rows += [(f"{size} x {name}", *map(spread, found.values())) for name, found in figures[size].items()]
    columns = ["pictures", "seconds", "over full", "bookkeeping, % of full attention"]
    show(
        f"Built-in model, {options.dtype}, cache {options.cache_dtype}, {options.budget}", columns, rows, options.device
    )
    write(options.json, {"batches": figures}, options.device)


def measured(benches: dict[str, Bench], times: dict[str, list[float]]) -> dict[str, dict[str, list[float]]]:
    """Figures of every measured round by method; ratios are taken within each round."""
    rounds = len(times[Full.name])
    attention = [cache.attending for cache in benches[Full.name].opened[-rounds:]]
    return {
        name: {
            "seconds": taken,
            "over_full": [mine / full for mine, full in zip(taken, times[Full.name], strict=True)],
            "bookkeeping_percent": [
                100 * cache.bookkeeping / full
                for cache, full in zip(benches[name].opened[-rounds:], attention, strict=True)
            ],
        }
        for name, taken in times.items()
    }


if __name__ == "__main__":
    main()
