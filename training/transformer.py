"""Train transformer and text encoder: ``python -m training.transformer LATENTS VAE RUN [--preset cpu]``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from scalekv.models.infinity import BSQAutoencoder, InfinityScheduler, InfinityTransformer
from scalekv.pipelines import InfinityPipeline
from scalekv.planning import Schedule
from training import data, text
from training.forcing import BlockCausal, PaddedText, bit_loss, corrected, forced_logits
from training.presets import GRIDS, SIDES, TRANSFORMERS, TransformerRecipe, shortened
from training.runs import Crew, Run, autocast, pick_device, seed_step
from training.sheets import save_captioned

WATCHED = 64
"""Held-out pictures whose loss is measured while the run goes on."""

NEW_TEXT = 4096
"""Captions over which the meaning of a word is averaged when a text encoder begins again."""
SHEET = 32
"""Held-out prompts that are drawn for a sheet: the first, with seed 0."""


def build(recipe: TransformerRecipe, bits: int) -> nn.ModuleDict:
    """Transformer and text encoder of a recipe, with its seed's weights."""
    torch.manual_seed(recipe.plan.seed)
    transformer = InfinityTransformer(
        depth=recipe.depth,
        width=recipe.width,
        num_heads=recipe.heads,
        codebook_bits=bits,
        text_channels=recipe.text_channels,
        text_maxlen=text.TEXT_TOKENS,
        block_chunks=4,
    )
    encoder = text.text_encoder(recipe.text_channels, recipe.text_layers, len(text.vocabulary()))
    _initialise(transformer)
    return nn.ModuleDict({"transformer": transformer, "text_encoder": encoder})


@torch.no_grad()
def _initialise(transformer: InfinityTransformer) -> None:
    """Start every block as a small step from the identity, and every bit as undecided."""
    deep = 1 / math.sqrt(2 * transformer.config.depth)
    nn.init.normal_(transformer.lvl_embed.weight, std=math.sqrt(1 / transformer.config.width / 3))
    for name in ("shared_ada_lin.1", "head_nm.ada_lin.1"):
        transformer.get_parameter(f"{name}.weight").mul_(0.2)
        transformer.get_parameter(f"{name}.bias").zero_()
    for block in transformer.ordered_blocks:
        block.ada_gss.mul_(0.1)
        block.ada_gss[:, :, :2] += 0.5
        for name in ("sa.proj.weight", "ca.proj.weight", "ffn.fc2.weight"):
            block.get_parameter(name).mul_(deep)
    transformer.get_parameter("head.weight").mul_(0.1)


class TransformerTask:
    """Captions to the bits of pictures.

    Args:
        recipe: sizes and plan.
        latents: folder from ``training.encode``.
        vae: the tokenizer that made them.
        device: where to compute.
        crew: the processes that share every batch.
    """

    adam: tuple[str, ...] = (
        "embed",
        "text_encoder.",
        "head.",
        "cfg_uncond",
        "pos_start",
        "ada_",
        "relative",
        "sos.ca.mat_q",
    )

    def __init__(
        self,
        recipe: TransformerRecipe,
        latents: Path,
        vae: BSQAutoencoder,
        device: torch.device,
        crew: Crew | None = None,
    ) -> None:
        self.recipe, self.plan, self.device, self.vae = recipe, recipe.plan, device, vae
        self.crew = crew or Crew()
        self.network = build(recipe, vae.config.codebook_bits).to(device)
        for name, weight in self.network.named_parameters():
            weight.requires_grad_(any(part in name for part in recipe.learns))
        self.transformer = cast("InfinityTransformer", self.network["transformer"])
        self.tokenizer = text.word_tokenizer()
        self.latents = {split: data.load(latents, split) for split in ("train", "heldout")}
        self.words = {split: data.load(latents, f"{split}_words") for split in ("train", "heldout")}
        self.schedule = Schedule.from_sides(SIDES)
        self.rope = self.transformer.build_rope(self.schedule, GRIDS[-1])
        self.parts = {count: self._part(count) for count in recipe.lengths}

    def _part(self, count: int) -> tuple[Schedule, BlockCausal]:
        part = Schedule.from_sides(SIDES[:count])
        return part, BlockCausal(part, self.device)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Cross entropy of the bits of a batch, with flipped bits and dropped captions."""
        recipe = self.recipe
        segments, size, number = recipe.at(step)
        rows = data.batch_indices(number, size, len(self.latents["train"]), self.plan.seed)
        rows = rows[self.crew.share(size)]
        size = len(rows)
        strength = torch.rand(size) * recipe.flip_most * (torch.rand(size) < recipe.flip_share)
        dropped = torch.rand(size) < recipe.text_dropout
        phrasings = torch.randint(1 << 16, (size,)).numpy()
        total, plain = self._pass("train", rows, segments, strength, dropped, phrasings)
        return total, {"segments": segments, "first": float(plain[0]), "last": float(plain[-1])}

    def _pass(
        self,
        split: str,
        rows: NDArray[np.int64],
        segments: int,
        strength: Tensor,
        dropped: Tensor,
        phrasing: NDArray[np.int64],
    ) -> tuple[Tensor, Tensor]:
        schedule, cache = self.parts[segments]
        latent = torch.from_numpy(np.array(self.latents[split][rows])).to(self.device).float()
        forcing = corrected(latent, GRIDS[:segments], GRIDS[-1], strength.to(self.device))
        listed = self.words[split][rows, phrasing % self.words[split].shape[1]]
        ids = torch.from_numpy(listed.astype(np.int64))
        if split == "train":
            ids = text.with_unknown(ids, self.recipe.unknown_words)
        ids = ids.to(self.device)
        with autocast(self.device):
            words, real = text.features(self.network["text_encoder"], ids)
            nothing = self.transformer.cfg_uncond[: words.shape[1]]
            words = torch.where(dropped.to(self.device)[:, None, None], nothing, words.float())
            condition = PaddedText(words, real)
            logits = forced_logits(self.transformer, forcing.inputs, condition, schedule, self.rope, cache)
        return bit_loss(logits, forcing.targets, schedule, self.recipe.falloff)

    def compile(self) -> None:
        """Fuse what is not a matrix product; blocks attend to texts of any length, which stays as it is."""
        for block in self.transformer.ordered_blocks:
            block.ca.forward = torch.compiler.disable(_without_flash(block.ca.forward))
            block._text = torch.compiler.disable(block._text)
            block.compile(dynamic=False)

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")
    def watch(self, step: int, folder: Path) -> dict[str, float]:
        """Loss on held-out pictures, and a sheet of held-out prompts; of all segments at the end of the plan."""
        segments = len(SIDES) if step >= self.plan.steps else self.recipe.at(max(0, step - 1))[0]
        rows, losses = np.arange(min(WATCHED, len(self.latents["heldout"]))), []
        for window in data.batches(len(rows), 16):
            size = len(rows[window])
            seed_step(self.plan.seed, step)
            _, plain = self._pass(
                "heldout",
                rows[window],
                segments,
                torch.zeros(size),
                torch.zeros(size, dtype=torch.bool),
                np.zeros(size, np.int64),
            )
            losses.append(plain)
        mean = torch.stack(losses).mean(0).tolist()
        self._sheet(segments, folder / f"sheet_{step:06d}.png")
        return {f"heldout_{segment}": value for segment, value in enumerate(mean)}

    def _sheet(self, segments: int, path: Path) -> None:
        prompts = data.captions(np.arange(SHEET), "heldout", 0)
        pipeline = assemble(self.network, self.vae, self.tokenizer)
        pipeline.set_progress_bar_config(disable=True)

        def stop(pipe: InfinityPipeline, step: int, timestep: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            if step == segments - 1:
                pipe.stop()
            return tensors

        pictures = []
        for window in data.batches(SHEET, 8):
            generators = [torch.Generator().manual_seed(0) for _ in prompts[window]]
            drawn: Any = pipeline(prompts[window], generator=generators, callback_on_step_end=stop)
            pictures += [np.asarray(image) for image in drawn.images]
        save_captioned(np.stack(pictures), prompts, path)


def _without_flash(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``attend`` in plain matrix products: with a few text tokens their backward pass is ten times quicker on CPUs."""

    @wraps(attend)
    def plain(*arguments: Any) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return attend(*arguments)

    return plain


def assemble(network: nn.ModuleDict, vae: BSQAutoencoder, tokenizer: Any) -> InfinityPipeline:
    """The pipeline of what has been trained so far, with the sampling settings of this model."""
    transformer: Any = network["transformer"]
    scheduler = InfinityScheduler(
        schedule=[list(grid) for grid in GRIDS],
        guidance_scale=2.0,
        temperature=0.7,
        pixels_per_token=vae.config.patch_size,
    )
    return InfinityPipeline(
        transformer=transformer.eval(),
        vae=vae.eval(),
        scheduler=scheduler,
        text_encoder=network["text_encoder"].eval(),
        tokenizer=tokenizer,
        model_name="scenes",
    )


def begin_with(task: TransformerTask, folder: Path) -> None:
    """Begin with the weights of a trained pipeline, and new blocks in the text encoder if the recipe says so."""
    trained: Any = InfinityPipeline.from_pretrained(folder, dtype=torch.float32)
    for name, part in task.network.items():
        part.load_state_dict(getattr(trained, name).state_dict())
    if task.recipe.new_text:
        captions = task.words["train"][:NEW_TEXT, 0].astype(np.int64)
        text.begin_again(task.network["text_encoder"], torch.from_numpy(captions).to(task.device))


def main() -> None:
    """Train, or go on training; writes the averaged weights to RUN/pipeline."""
    parser = argparse.ArgumentParser(prog="python -m training.transformer", description="Train the transformer.")
    parser.add_argument("latents", type=Path, help="folder written by training.encode")
    parser.add_argument("vae", type=Path, help="trained tokenizer, RUN/vae of training.tokenizer")
    parser.add_argument("run", type=Path, help="folder of the run; one that exists goes on")
    parser.add_argument("--preset", choices=TRANSFORMERS, default="cpu")
    parser.add_argument("--steps", type=int, help="instead of the preset's")
    parser.add_argument("--until", type=int, help="pause after this step")
    parser.add_argument("--start", type=Path, metavar="PIPELINE", help="begin with the weights of a trained pipeline")
    parser.add_argument("--compile", action="store_true", help="fuse operations; needs a C++ compiler")
    parser.add_argument("--device", help="default: a GPU if there is one")
    chosen = parser.parse_args()
    # cuDNN compiles a kernel for every length of text and number of prompts that have it: seconds per step.
    torch.backends.cuda.enable_cudnn_sdp(False)
    device, recipe = pick_device(chosen.device), TRANSFORMERS[chosen.preset]
    recipe = replace(recipe, plan=shortened(recipe.plan, chosen.steps))
    vae = BSQAutoencoder.from_pretrained(chosen.vae).to(device)
    crew = Crew.join()
    task = TransformerTask(recipe, chosen.latents, vae, device, crew)
    if chosen.start is not None:
        begin_with(task, chosen.start)
    if chosen.compile:
        task.compile()
    run = Run(task, chosen.run, crew)
    run.train(chosen.until)
    if run.stopping or crew.rank:
        return
    with run.averaged_weights():
        pipeline = assemble(task.network, vae, task.tokenizer).to(torch.bfloat16)
        pipeline.save_pretrained(chosen.run / "pipeline", max_shard_size="15MB")
    print(f"step {run.step}: {chosen.run / 'pipeline'}")


if __name__ == "__main__":
    main()
