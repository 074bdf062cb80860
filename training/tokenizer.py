"""Train the tokenizer: ``python -m training.tokenizer DATA RUN [--preset cpu]``.

With ``--polish VAE`` the decoder of a trained tokenizer goes on alone: its pictures get better, its bits stay.

The quantiser is the network's own ``encode_latent`` (residual, multi-scale, constant code magnitude); gradients pass it
straight through.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from scalekv.models.infinity import BSQAutoencoder
from scalekv.models.infinity.autoencoder import accumulate
from training import data
from training.forcing import Grids
from training.norms import quicken
from training.presets import CROP_GRIDS, GRIDS, POLISHES, TOKENIZERS, TokenizerRecipe, shortened
from training.runs import Run, autocast, pick_device, write_json
from training.sheets import save_pairs

WATCHED = 256
"""Held-out pictures that are measured while the run goes on."""


def build(recipe: TokenizerRecipe) -> BSQAutoencoder:
    """The network of a recipe, with its seed's weights."""
    torch.manual_seed(recipe.plan.seed)
    network: BSQAutoencoder = BSQAutoencoder(
        codebook_bits=recipe.bits,
        patch_size=1 << (len(recipe.multipliers) - 1),
        base_channels=recipe.base_channels,
        encoder_multipliers=recipe.multipliers,
        decoder_multipliers=recipe.decoder_multipliers or recipe.multipliers,
        num_res_blocks=recipe.res_blocks,
    )
    return network


def to_images(pictures: NDArray[np.uint8], device: torch.device) -> Tensor:
    """(n, 128, 128, 3) bytes to (n, 3, 128, 128) of -1..1, channels last in memory."""
    bytes_ = torch.from_numpy(np.array(pictures)).to(device)
    return bytes_.permute(0, 3, 1, 2).float() / 127.5 - 1


def cropped(images: Tensor) -> Tensor:
    """A part of half the sides of every picture, at random places."""
    side = images.shape[-1] // 2
    places = torch.randint(images.shape[-1] - side + 1, (len(images), 2), device="cpu").tolist()
    parts = [one[:, y : y + side, x : x + side] for one, (y, x) in zip(images, places, strict=True)]
    return torch.stack(parts).contiguous(memory_format=torch.channels_last)


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    """Shapes of all weights by name."""
    return {name: one.shape for name, one in network.state_dict().items()}


class TokenizerTask:
    """Pictures through bits and back.

    Args:
        recipe: sizes and plan.
        folder: pictures from ``training.data``.
        device: where to compute.
        trained: a tokenizer to go on with; its decoder where it fits.
        frozen: keep the encoder of ``trained`` as it is, and so its bits.
    """

    adam: tuple[str, ...] = ("encoder.conv_in", "conv_out")

    def __init__(
        self,
        recipe: TokenizerRecipe,
        folder: Path,
        device: torch.device,
        trained: BSQAutoencoder | None = None,
        frozen: bool = True,
    ) -> None:
        self.recipe, self.plan, self.device = recipe, recipe.plan, device
        self.network = build(recipe).to(device, memory_format=torch.channels_last)
        quicken(self.network)
        if trained is not None:
            self.network.encoder.load_state_dict(trained.encoder.state_dict())
            self.network.encoder.requires_grad_(not frozen)
            if shapes(trained.decoder) == shapes(self.network.decoder):
                self.network.decoder.load_state_dict(trained.decoder.state_dict())
        self.train, self.heldout = data.load(folder, "train"), data.load(folder, "heldout")

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Reconstruction (absolute, squared and of gradients), and staying within reach of the codes."""
        rows = data.batch_indices(step, self.plan.batch, len(self.train), self.plan.seed)
        images, grids = to_images(self.train[np.sort(rows)], self.device), GRIDS
        if step < self.recipe.crop_steps:
            images, grids = cropped(images), CROP_GRIDS
        with autocast(self.device):
            latent = self.network.encoder(images).float()
            codes, agreement = self._quantise(latent, grids)
            drawn = self.network.decoder(latent + (codes - latent).detach())
        drawn = drawn.float()
        difference = drawn - images
        squared, absolute = difference.square().mean(), difference.abs().mean()
        edges = (difference.diff(dim=2)).abs().mean() + difference.diff(dim=3).abs().mean()
        commitment = F.relu((latent - codes).abs() - self.recipe.slack).square().mean()
        total = absolute + self.recipe.squares * squared + 0.5 * edges + self.recipe.commitment * commitment
        psnr = 10 * math.log10(4 / max(float(squared.detach()), 1e-12))
        return total, {"psnr": psnr, "commitment": float(commitment.detach()), "balance": agreement}

    @torch.no_grad()
    def _quantise(self, latent: Tensor, grids: Grids) -> tuple[Tensor, float]:
        """The summed codes of all scales, for a few pictures of the first scales only; and how lopsided bits are."""
        encoded = self.network.encode_latent(latent, grids)
        codes = encoded.latent
        early = torch.rand(len(latent), device="cpu") < self.recipe.early_stop
        if bool(early.any()):
            kept = int(torch.randint(3, len(grids), (), device="cpu"))
            chosen = early.to(latent.device)
            *_, short = accumulate([bits[chosen] for bits in encoded.bits[:kept]], grids[-1])
            codes = codes.clone()
            codes[chosen] = short
        mean = encoded.bits[-1].float().mean((0, 1, 2))
        return codes, float((mean * 2 - 1).abs().mean())

    def watch(self, step: int, folder: Path) -> dict[str, float]:
        """PSNR on held-out pictures, and a sheet of pictures above their reconstructions."""
        pictures = self.heldout[:WATCHED]
        drawn = reconstruct(self.network, pictures, self.device)
        save_pairs(pictures[:32], drawn[:32], folder / f"sheet_{step:06d}.png")
        return {"heldout_psnr": psnr(pictures, drawn)}


@torch.no_grad()
def reconstruct(network: BSQAutoencoder, pictures: NDArray[np.uint8], device: torch.device) -> NDArray[np.uint8]:
    """Pictures (n, 128, 128, 3) to bits of all scales and back, 8 bits as the pipeline makes them."""
    parts = []
    for window in data.batches(len(pictures), 64):
        with autocast(device):
            images = to_images(pictures[window], device)
            images = network.decode_bits(network.encode_to_bits(images, GRIDS).bits)
        parts.append((((images + 1) / 2).clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(parts)


def psnr(pictures: NDArray[np.uint8], drawn: NDArray[np.uint8]) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB."""
    errors = ((pictures.astype(np.float32) - drawn.astype(np.float32)) ** 2).mean((1, 2, 3))
    return float((10 * np.log10(255**2 / np.maximum(errors, 1e-9))).mean())


def main() -> None:
    """Train, or go on training, a tokenizer; writes the averaged weights to RUN/vae."""
    parser = argparse.ArgumentParser(prog="python -m training.tokenizer", description="Train the tokenizer.")
    parser.add_argument("data", type=Path, help="folder drawn by training.data")
    parser.add_argument("run", type=Path, help="folder of the run; one that exists goes on")
    parser.add_argument("--preset", choices=TOKENIZERS, default="cpu")
    parser.add_argument("--steps", type=int, help="instead of the preset's")
    parser.add_argument("--until", type=int, help="pause after this step")
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--start", type=Path, metavar="VAE", help="go on with this tokenizer, encoder and decoder")
    parser.add_argument("--polish", type=Path, metavar="VAE", help="train only the decoder of this tokenizer")
    chosen = parser.parse_args()
    recipe = (TOKENIZERS if chosen.polish is None else POLISHES)[chosen.preset]
    recipe = replace(recipe, plan=shortened(recipe.plan, chosen.steps))
    source = chosen.polish or chosen.start
    trained = None if source is None else BSQAutoencoder.from_pretrained(source)
    task = TokenizerTask(recipe, chosen.data, pick_device(chosen.device), trained, frozen=chosen.polish is not None)
    run = Run(task, chosen.run)
    run.train(chosen.until)
    if run.stopping:
        return
    with run.averaged_weights():
        task.network.save_pretrained(chosen.run / "vae")
        measured = psnr(task.heldout, reconstruct(task.network, task.heldout, task.device))
    write_json(chosen.run / "result.json", {"step": run.step, "heldout_psnr": round(measured, 3)})
    print(f"step {run.step}: {measured:.2f} dB on {len(task.heldout)} held-out pictures")


if __name__ == "__main__":
    main()
