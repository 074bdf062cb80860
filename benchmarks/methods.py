"""Every method on one Infinity-2B layer: attention plus cache work over the full cache, and what bookkeeping costs.

One layer goes through the 13 segments of a 1M-pixel picture with its guidance rows; the network is left out. Methods
that want calibration get seeded random tables, so that heads and layers differ as they do in a model. The layer is the
one whose capacity at the last segment is nearest to the mean of all.

    python benchmarks/methods.py
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass, field

import torch
from attention import DTYPES, HEAD_DIM, HEADS, LAYERS, make_inputs
from common import Measuring, TimedCache, arguments, interleaved, random_profile, show, single_layer, spread, write
from torch import Tensor

from scalekv import CacheGeometry, CachePlan, Full, Policy, Profile
from scalekv.planning import format_bytes
from scalekv.policies.specs import parse_specs


@dataclass
class Bench:
    """One method's single layer, its inputs, and the seconds of bookkeeping of every run."""

    plan: CachePlan
    policy: Policy
    inputs: list[tuple[Tensor, Tensor, Tensor]]
    device: str
    bookkeeping: list[float] = field(default_factory=list)

    def run(self) -> Measuring:
        """All segments of one picture."""
        with TimedCache(self.plan, self.policy, dtype=self.inputs[0][0].dtype, device=self.device) as cache:
            for segment, tensors in zip(self.plan.geometry.schedule, self.inputs, strict=True):
                cache.begin(segment)
                cache.attend(0, *tensors)
        self.bookkeeping.append(cache.bookkeeping)
        return Measuring(cache.measuring)


def middle_layer(plan: CachePlan) -> int:
    """The layer that holds most nearly the mean at the last segment."""
    last = len(plan.geometry.schedule) - 1
    held = [plan.layer_tokens(layer, last) for layer in range(plan.geometry.layers)]
    mean = sum(held) / len(held)
    return min(range(len(held)), key=lambda layer: abs(held[layer] - mean))


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--budget", default="10%")
    parser.add_argument("--policies", default="all", help="as 'scalekv evaluate' takes them; full is always measured")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    published = Profile.builtin("infinity-2b")
    dtype = DTYPES[options.dtype]
    geometry = CacheGeometry(LAYERS, HEADS, HEAD_DIM, published.schedule, element_bytes=dtype.itemsize)
    profile, inputs = random_profile(geometry), make_inputs(geometry, dtype, options.device)
    benches = {"full": Bench(single_layer(Full().plan(geometry), 0), Full(), inputs, options.device)}
    for spec in parse_specs([options.policies]):
        if spec.name != Full.name:
            policy = spec.policy(options.budget)
            plan = policy.plan(geometry, profile)
            benches[spec.label] = Bench(single_layer(plan, middle_layer(plan)), policy, inputs, options.device)
    with torch.no_grad():
        works = {name: bench.run for name, bench in benches.items()}
        times = interleaved(works, options.repeats, options.device)
    report(options, benches, times)


def report(options: Namespace, benches: dict[str, Bench], times: dict[str, list[float]]) -> None:
    """Print the table: ratios are taken within each round."""
    rows, figures = [], {}
    for name, taken in times.items():
        full, spent = times["full"], benches[name].bookkeeping[-len(taken) :]
        ratios = [mine / theirs for mine, theirs in zip(taken, full, strict=True)]
        shares = [100 * mine / theirs for mine, theirs in zip(spent, full, strict=True)]
        held = benches[name].plan.nominal_bytes
        rows.append([name, spread(taken), spread(ratios), spread(shares), format_bytes(held)])
        figures[name] = {"seconds": taken, "ratio": ratios, "bookkeeping_percent": shares, "bytes": held}
    columns = ["method", "seconds", "over full", "bookkeeping, % of full attention", "history held"]
    title = f"Infinity-2B layer, 1M pixels, batch 1 with guidance, {options.dtype}, {options.budget}"
    show(title, columns, rows, options.device)
    write(options.json, {"title": title, "methods": figures}, options.device)


if __name__ == "__main__":
    main()
