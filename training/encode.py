"""Encode all pictures and captions once: ``python -m training.encode DATA VAE OUT``.

Stored are the encoder's latent before signs, because self-correction codes it anew at every visit, and several
phrasings of every caption as word numbers.
"""

from __future__ import annotations

import argparse
import os
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from scalekv.files import replacing
from scalekv.models.infinity import BSQAutoencoder
from scalekv.scenes import caption, sample_scene
from training import data, text
from training.norms import quicken
from training.runs import autocast, pick_device
from training.tokenizer import to_images

PHRASINGS, BARE = 16, 8
"""Captions of every picture, and how many of them, the last, mention neither colours nor sizes, as people may."""


@torch.no_grad()
def encode(
    network: BSQAutoencoder, folder: Path, split: str, out: Path, device: torch.device, count: int | None = None
) -> None:
    """Write the latents of a split, or of its first ``count`` pictures, as (count, bits, h, w) float16."""
    pictures = data.load(folder, split)[:count]
    patch = network.config.patch_size
    shape = (len(pictures), network.config.codebook_bits, 128 // patch, 128 // patch)
    path, temporary = out / f"{split}.npy", out / f"{split}.part"
    latents = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
    for window in tqdm(list(data.batches(len(pictures), 128)), desc=split, mininterval=5):
        with autocast(device):
            encoded = network.encoder(to_images(pictures[window], device))
        latents[window] = encoded.float().cpu().numpy()
    latents.flush()
    os.replace(temporary, path)


def _phrasings(job: tuple[int, str]) -> list[str]:
    seed, split = job
    scene = sample_scene(seed, split)
    omitted = [0.12] * (PHRASINGS - BARE) + [2.0] * BARE
    return [caption(scene, number * 1_000_003 + seed, omit) for number, omit in enumerate(omitted)]


def describe(split: str, count: int, out: Path, workers: int) -> None:
    """Write `PHRASINGS` captions of each of the first ``count`` scenes as (count, phrasings, tokens) word numbers.

    Keeps what is there already.
    """
    path = out / f"{split}_words.npy"
    if path.is_file() and len(np.load(path, mmap_mode="r")) == count:
        return
    jobs, tokenizer = [(seed, split) for seed in range(count)], text.word_tokenizer()
    if workers:
        with get_context("spawn").Pool(workers) as pool:
            listed = pool.map(_phrasings, jobs, chunksize=256)
    else:
        listed = [_phrasings(job) for job in jobs]
    ids = text.token_ids(tokenizer, [caption for captions in listed for caption in captions])
    with replacing(path) as temporary:
        np.save(temporary, ids.reshape(count, PHRASINGS, text.TEXT_TOKENS))


def main() -> None:
    """Encode both splits."""
    parser = argparse.ArgumentParser(prog="python -m training.encode", description="Encode all pictures once.")
    parser.add_argument("data", type=Path, help="folder drawn by training.data")
    parser.add_argument("vae", type=Path, help="trained tokenizer, RUN/vae of training.tokenizer")
    parser.add_argument("out", type=Path, help="folder for the latents")
    parser.add_argument("--count", type=int, help="of the training pictures; default all")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes for captions")
    parser.add_argument("--device", help="default: a GPU if there is one")
    chosen = parser.parse_args()
    device = pick_device(chosen.device)
    network = BSQAutoencoder.from_pretrained(chosen.vae).to(device, memory_format=torch.channels_last).eval()
    quicken(network)
    chosen.out.mkdir(parents=True, exist_ok=True)
    for split, count in (("heldout", None), ("train", chosen.count)):
        describe(split, len(data.load(chosen.data, split)[:count]), chosen.out, chosen.workers)
        encode(network, chosen.data, split, chosen.out, device, count)


if __name__ == "__main__":
    main()
