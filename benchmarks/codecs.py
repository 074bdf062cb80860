"""What codecs cost: the error of keys, values and attention, and seconds beside attention.

Errors are relative and come from keys of unit length with a multiplier per head, as Infinity's attention has them: of
normal channels, of channels of which a few stick out, and of heavy tails. Beside the codecs stand what they were chosen
over: integers that are not turned, in groups of 32 or 64 channels. Seconds are those of one Infinity-2B layer that goes
through the 13 segments of a 1M-pixel picture, at equal bytes; ratios are taken within each round.

    python benchmarks/codecs.py
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from attention import DTYPES, HEAD_DIM, HEADS, LAYERS, make_inputs
from common import TimedCache, arguments, interleaved, show, single_layer, spread, write
from torch import Tensor

from scalekv import CacheGeometry, CachePlan, Full, Policy, Profile, make_policy
from scalekv.cache.codecs import decode, encode
from scalekv.planning import VECTOR_CODECS, format_bytes

CODECS = ("none", "int8", "int6", "int4", "fp8", "int8/int4")
TENSORS = ("normal", "outliers", "heavy tails")
TOKENS, QUERIES, MULTIPLIER = 1200, 256, 20.0


def sample(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of 8 heads; every query looks for one key among noise."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    key, value = normal(8, TOKENS, HEAD_DIM), normal(8, TOKENS, HEAD_DIM)
    if kind == "outliers":
        for head in range(8):
            channels = torch.randperm(HEAD_DIM, generator=generator)
            key[head, :, channels[:4]] = key[head, :, channels[:4]] * 2.5 + torch.tensor([8.0, -6.0, 5.0, 4.0])
            value[head, :, channels[4:7]] *= 6
    if kind == "heavy tails":
        key, value = (part / normal(*part.shape, 3).square().mean(-1).sqrt() for part in (key, value))
    key = F.normalize(key, dim=-1)
    wanted = key[:, torch.randint(0, TOKENS, (QUERIES,), generator=generator)]
    noise = F.normalize(normal(8, QUERIES, HEAD_DIM), dim=-1)
    return MULTIPLIER * F.normalize(wanted + 0.7 * noise, dim=-1), key.bfloat16(), value.bfloat16()


def coded(name: str, vectors: Tensor) -> Tensor:
    """Encoded and decoded."""
    codec = VECTOR_CODECS[name]
    size = codec.vector_bytes(vectors.shape[-1], vectors.element_size())
    packed, out = torch.empty(*vectors.shape[:-1], size, dtype=torch.uint8), torch.empty_like(vectors)
    encode(codec, vectors, packed)
    decode(codec, packed, out)
    return out


def grouped(bits: int, size: int, vectors: Tensor) -> Tensor:
    """What the codecs were chosen over: minimum to maximum of every ``size`` channels, not turned."""
    groups = vectors.float().unflatten(-1, (-1, size))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    level = ((high - low) / (2**bits - 1)).clamp_min(1e-30)
    return (((groups - low) / level).round() * level + low).flatten(-2).to(vectors.dtype)


def rounders() -> dict[str, tuple[float, Callable[[Tensor], Tensor]]]:
    """By name, bits per channel, and the rounding of vectors."""
    found: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {}
    for name in ("int8", "int6", "int4", "fp8"):
        bits = 8 * VECTOR_CODECS[name].vector_bytes(HEAD_DIM, 2) / HEAD_DIM
        found[name] = bits, lambda vectors, name=name: coded(name, vectors)
    for bits in (8, 6, 4):
        for size in (32, 64):
            found[f"{bits} bits not turned, groups of {size}"] = (
                bits + 32 / size,
                lambda vectors, bits=bits, size=size: grouped(bits, size, vectors),
            )
    return found


def errors(options: Namespace) -> dict[str, list[float]]:
    """Print and return relative errors in percent of keys, values and attention."""

    def percent(found: Tensor, exact: Tensor) -> float:
        return 100 * float((found.float() - exact.float()).norm() / exact.float().norm())

    figures: dict[str, list[float]] = {}
    for kind in TENSORS:
        query, key, value = sample(kind)

        def attend(key: Tensor, value: Tensor, query: Tensor = query) -> Tensor:
            return F.scaled_dot_product_attention(query, key.float(), value.float(), scale=1.0)

        exact = attend(key, value)
        for name, (_, rounder) in rounders().items():
            rounded = rounder(key), rounder(value)
            found = [percent(rounded[0], key), percent(rounded[1], value), percent(attend(*rounded), exact)]
            figures.setdefault(name, []).extend(found)
    rows = [
        [name, f"{bits:g}", *(" ".join(f"{error:.2f}" for error in figures[name][at : at + 3]) for at in (0, 3, 6))]
        for name, (bits, _) in rounders().items()
    ]
    title = "Relative error, %, of keys, values and attention"
    show(title, ["codec", "bits", *TENSORS], rows, options.device)
    return figures


@dataclass
class Bench:
    """One layer under one codec, and the seconds of bookkeeping of every run."""

    plan: CachePlan
    whole: CachePlan
    policy: Policy
    inputs: list[tuple[Tensor, Tensor, Tensor]]
    device: str
    selection: list[float] = field(default_factory=list)
    decoding: list[float] = field(default_factory=list)

    def run(self) -> None:
        """All segments of one picture."""
        with TimedCache(self.plan, self.policy, dtype=self.inputs[0][0].dtype, device=self.device) as cache:
            for segment, tensors in zip(self.plan.geometry.schedule, self.inputs, strict=True):
                cache.begin(segment)
                cache.attend(0, *tensors)
        self.selection.append(cache.selection)
        self.decoding.append(cache.decoding)


def costs(options: Namespace) -> dict[str, dict[str, list[float]]]:
    """Print and return seconds over those of the full cache."""
    profile, dtype = replace(Profile.builtin("infinity-2b"), heads=options.heads), DTYPES[options.dtype]
    geometry = CacheGeometry(
        LAYERS, options.heads, HEAD_DIM, profile.schedule, options.batch, options.guidance, dtype.itemsize
    )
    inputs = make_inputs(geometry, dtype, options.device)
    full = Full().plan(geometry)
    benches = {"full": Bench(single_layer(full, 0), full, Full(), inputs, options.device)}
    for name in options.codecs.split(","):
        policy = make_policy(options.policy, options.budget, codec=name)
        plan = policy.plan(geometry, profile)
        benches[name] = Bench(single_layer(plan, options.layer), plan, policy, inputs, options.device)
    with torch.no_grad():
        times = interleaved({name: bench.run for name, bench in benches.items()}, options.repeats, options.device)
    rows, figures = [], {}
    for name, taken in times.items():
        bench, full_times = benches[name], times["full"]

        def shares(seconds: list[float], taken: list[float] = taken, full: list[float] = full_times) -> list[float]:
            return [100 * mine / theirs for mine, theirs in zip(seconds[-len(taken) :], full, strict=True)]

        ratios = [mine / theirs for mine, theirs in zip(taken, full_times, strict=True)]
        figures[name] = {
            "ratio": ratios,
            "selection_percent": shares(bench.selection),
            "decoding_percent": shares(bench.decoding),
            "own_percent": [
                100 * (chosen + decoded) / (total - chosen - decoded)
                for chosen, decoded, total in zip(
                    bench.selection[-len(taken) :], bench.decoding[-len(taken) :], taken, strict=True
                )
            ],
        }
        sizes = [f"{bench.whole.mean_tokens:.0f}", format_bytes(bench.whole.nominal_bytes)]
        sizes.append(format_bytes(bench.whole.peak_bytes))
        rows.append([name, *(spread(values) for values in figures[name].values()), *sizes])
    columns = ["codec", "over full", "selection, % of full", "decoding, % of full", "both, % of own attention"]
    shape = f"Infinity-2B layer {options.layer}, {options.dtype}, {options.heads} heads"
    title = f"{options.policy} at {options.budget}, {shape}"
    show(title, [*columns, "tokens", "kept", "peak"], rows, options.device)
    return figures


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--budget", default="10%")
    parser.add_argument("--policy", default="scalekv")
    parser.add_argument("--layer", type=int, default=5, help="5 is a refiner of ScaleKV, 0 a drafter")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=HEADS, help="fewer are quicker; ratios hardly change")
    parser.add_argument("--guidance", type=int, default=2, choices=(1, 2))
    parser.add_argument("--codecs", default=",".join(CODECS), help="names, with commas")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--only", choices=("errors", "costs"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures = {
        "errors": errors(options) if options.only != "costs" else {},
        "costs": costs(options) if options.only != "errors" else {},
    }
    write(options.json, {"title": "Codecs", **figures}, options.device)


if __name__ == "__main__":
    main()
