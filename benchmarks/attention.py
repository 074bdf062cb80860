"""Attention plus cache work of Infinity-2B layers: full cache, refiner and drafter at 10 %, and the stock way.

One layer at a time goes through the 13 segments of a 1M-pixel picture with its guidance rows. The network is left out:
only the cache's work is timed, and what selection costs of it.

    python benchmarks/attention.py
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from common import TimedCache, arguments, interleaved, selection_shares, show, single_layer, spread, write
from torch import Tensor

from scalekv import CacheGeometry, CachePlan, Full, Profile, ScaleKV
from scalekv.planning import format_bytes

LAYERS, HEADS, HEAD_DIM = 32, 16, 128
DRAFTER, REFINER = 0, 5
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}


@dataclass
class Layer:
    """One layer's plan and the tensors a network would hand it."""

    plan: CachePlan
    policy: Full | ScaleKV
    inputs: list[tuple[Tensor, Tensor, Tensor]]
    device: str

    def run(self) -> None:
        """All segments of one picture."""
        with TimedCache(self.plan, self.policy, dtype=self.inputs[0][0].dtype, device=self.device) as cache:
            for segment, tensors in zip(self.plan.geometry.schedule, self.inputs, strict=True):
                cache.begin(segment)
                cache.attend(0, *tensors)
        self.selection.append(cache.selection)
        self.report = cache.report()

    def __post_init__(self) -> None:
        self.selection: list[float] = []


def stock(inputs: list[tuple[Tensor, Tensor, Tensor]]) -> int:
    """Store everything in float32, grow by concatenation, keep the last segment; returns the bytes held at the end."""
    keys = values = None
    for query, key, value in inputs:
        keys = key.float() if keys is None else torch.cat([keys, key.float()], dim=2)
        values = value.float() if values is None else torch.cat([values, value.float()], dim=2)
        F.scaled_dot_product_attention(query, keys.to(query.dtype), values.to(query.dtype), scale=1.0)
    return keys.nbytes + values.nbytes


def make_inputs(geometry: CacheGeometry, dtype: torch.dtype, device: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Unit keys, queries of length 10 and normal values, as Infinity's attention has them."""
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for segment in geometry.schedule:
        shape = (3, geometry.rows, geometry.heads, segment.tokens, geometry.head_dim)
        query, key, value = torch.randn(shape, generator=generator)
        tensors = (10 * F.normalize(query, dim=-1), F.normalize(key, dim=-1), value)
        inputs.append(tuple(tensor.to(device, dtype) for tensor in tensors))
    return inputs


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--budget", default="10%")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    profile = Profile.builtin("infinity-2b")
    dtype = DTYPES[options.dtype]
    geometry = CacheGeometry(
        LAYERS, HEADS, HEAD_DIM, profile.schedule, batch=options.batch, element_bytes=dtype.itemsize
    )
    policy = ScaleKV(budget=options.budget)
    exact = ScaleKV(budget="650 tokens", exact_division=True)
    published = exact.plan(geometry, profile)
    full, small = Full().plan(geometry), policy.plan(geometry, profile)
    inputs = make_inputs(geometry, dtype, options.device)
    layers = {
        "full": Layer(single_layer(full, 0), Full(), inputs, options.device),
        "refiner": Layer(single_layer(small, REFINER), policy, inputs, options.device),
        "drafter": Layer(single_layer(small, DRAFTER), policy, inputs, options.device),
        "drafter, as published": Layer(single_layer(published, DRAFTER), exact, inputs, options.device),
    }
    works = {name: layer.run for name, layer in layers.items()} | {"stock": lambda: stock(inputs)}
    with torch.no_grad():
        times = interleaved(works, options.repeats, options.device)
        stock_bytes = stock(inputs)
    report(options, layers, times, stock_bytes)


def report(options: Namespace, layers: dict[str, Layer], times: dict[str, list[float]], stock_bytes: int) -> None:
    """Print the table: ratios are taken within each round."""
    rows, figures = [], {}
    for name, taken in times.items():
        ratios = [mine / theirs for mine, theirs in zip(taken, times["full"], strict=True)]
        held = layers[name].report.kept_bytes if name in layers else stock_bytes
        shares = selection_shares(layers[name].selection if name in layers else [0.0], taken)
        rows.append(
            [name, spread(taken), spread(ratios), spread([100 * share for share in shares]), format_bytes(held)]
        )
        figures[name] = {"seconds": taken, "ratio": ratios, "selection_share": shares, "bytes": held}
    whole = [
        (30 * refiner + 2 * drafter) / (32 * full)
        for refiner, drafter, full in zip(times["refiner"], times["drafter"], times["full"], strict=True)
    ]
    rows.append(["32 layers (30 refiners, 2 drafters)", "", spread(whole), "", ""])
    columns = ["layer", "seconds", "over full", "selection, % of attention", "history held"]
    title = f"Infinity-2B layer, 1M pixels, batch {options.batch} with guidance, {options.dtype}, {options.budget}"
    show(title, columns, rows, options.device)
    write(options.json, {"title": title, "layers": figures, "whole_ratio": whole}, options.device)


if __name__ == "__main__":
    main()
