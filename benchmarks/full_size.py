"""Published networks at full size with random weights on a GPU: seconds and memory of whole generations.

Weights are random, so pictures mean nothing, but every shape, byte and operation of the transformer and the cache is
that of the real network. Decoding to pixels is left out. Memory is what PyTorch had allocated at most, above the
weights; it holds the cache, the activations and what attention needs.

    python benchmarks/full_size.py
"""

from __future__ import annotations

import warnings
from argparse import Namespace
from dataclasses import dataclass
from statistics import median

import torch
from common import arguments, random_profile, seconds, show, spread, write

from scalekv import InfinityPipeline, Profile, make_policy
from scalekv.models.catalog import ModelSpec, model_spec
from scalekv.models.infinity import BSQAutoencoder, InfinityScheduler, InfinityTransformer
from scalekv.planning import format_bytes


@dataclass
class Outcome:
    """Seconds of each repeat and bytes; no seconds if it did not fit."""

    seconds: list[float]
    memory: int
    planned: int


def pipeline(spec: ModelSpec, device: str) -> InfinityPipeline:
    """The network of a known model with seeded weights, blocks in bfloat16, and a tokenizer of few weights."""
    assert spec.text_encoder is not None
    torch.manual_seed(0)
    bits = spec.autoencoder.codebook_dim
    with torch.device(device):
        transformer = InfinityTransformer(
            depth=spec.layers,
            width=spec.width,
            num_heads=spec.heads,
            codebook_bits=bits,
            patchify=spec.patchify,
            text_channels=spec.text_encoder.channels,
        )
    for block in transformer.ordered_blocks:
        block.to(torch.bfloat16)
    size = spec.autoencoder.patch_size
    levels = (1,) * size.bit_length()
    vae = BSQAutoencoder(
        codebook_bits=bits,
        patch_size=size,
        base_channels=24,
        encoder_multipliers=levels,
        decoder_multipliers=levels,
        num_res_blocks=1,
    )
    scheduler = InfinityScheduler(size=spec.default_size or "1M", pixels_per_token=size * transformer.patch_size)
    made = InfinityPipeline(
        transformer=transformer.eval(), vae=vae.eval().to(device), scheduler=scheduler, model_name=spec.name
    )
    made.set_progress_bar_config(disable=True)
    return made


def profile_of(pipe: InfinityPipeline, spec: ModelSpec) -> Profile:
    """The published roles of a model, and random tables for methods that ask for more."""
    schedule = pipe.scheduler.resolve().schedule
    published = Profile.builtin(spec.profile)
    return random_profile(spec.geometry(schedule), dict(published.roles))


def measure(pipe: InfinityPipeline, profile: Profile, name: str, batch: int, options: Namespace) -> Outcome:
    """Draw ``batch`` pictures once unmeasured and ``repeats`` times; an allocation that fails ends it."""
    generator = torch.Generator().manual_seed(1)
    channels = pipe.transformer.config.text_channels
    features = [torch.randn(24, channels, generator=generator).to(options.device) for _ in range(batch)]
    policy = make_policy(name, budget="100%" if name == "full" else options.budget)
    reports: list[int] = []

    def draw() -> None:
        noise = [torch.Generator().manual_seed(index) for index in range(batch)]
        drawn = pipe(prompt_embeds=features, kv_cache=policy, profile=profile, generator=noise, output_type="latent")
        reports.append(drawn.cache.peak_bytes)

    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    try:
        draw()
        taken = [seconds(draw, options.device) for _ in range(options.repeats)]
    except torch.OutOfMemoryError:
        return Outcome([], 0, 0)
    return Outcome(taken, torch.cuda.max_memory_allocated() - before, reports[-1])


def rows_of(spec: ModelSpec, options: Namespace) -> tuple[list[list[str]], list[dict]]:
    """One row for every batch and policy of a model; ratios are to the full cache of the same batch."""
    pipe = pipeline(spec, options.device)
    profile, weights = profile_of(pipe, spec), torch.cuda.memory_allocated()
    rows, figures = [], []
    for batch in options.batches:
        full: Outcome | None = None
        for name in options.policies.split(","):
            found = measure(pipe, profile, name, batch, options)
            full = found if name == "full" else full
            ratio = "-"
            if found.seconds and full is not None and full.seconds:
                ratio = f"{median(found.seconds) / median(full.seconds):.2f}"
            told = [spread(found.seconds), ratio, format_bytes(found.planned), format_bytes(found.memory)]
            row = [f"{spec.name}, {batch}", name, *(told if found.seconds else ["out of memory", "-", "-", "-"])]
            rows.append(row)
            figures.append({"model": spec.name, "batch": batch, "policy": name, "weights": weights, **vars(found)})
            print(*row, sep=" | ", flush=True)
    return rows, figures


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["infinity-2b", "infinity-8b"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--policies", default="full,scalekv,bytewise")
    parser.add_argument("--budget", default="10%")
    options = parser.parse_args()
    if not options.device.startswith("cuda"):
        parser.error("this benchmark needs a GPU: the networks have up to 8 billion weights")
    warnings.filterwarnings("ignore", message=".*output_type.*")
    rows, figures = [], []
    with torch.no_grad():
        for name in options.models:
            told, measured = rows_of(model_spec(name), options)
            rows += told
            figures += measured
            torch.cuda.empty_cache()
    columns = ["model, pictures", "method", "seconds", "over full", "cache peak, planned", "memory above weights"]
    show(f"Random weights, guidance, bfloat16, budget {options.budget}", columns, rows, options.device)
    write(options.json, {"budget": options.budget, "figures": figures}, options.device)


if __name__ == "__main__":
    main()
