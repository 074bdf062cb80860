"""A complete, small pipeline with random weights: for tests, benchmarks and a first try without any download."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from scalekv.models.infinity import BSQAutoencoder, InfinityScheduler, InfinityTransformer
from scalekv.pipelines.infinity import InfinityPipeline

SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
"""Segments in tokens per side: ten steps to 256 x 256 pixels."""

TEXT_CHANNELS = 128
TEXT_TOKENS = 128


def tiny_pipeline(seed: int = 0, *, patchify: bool = False, depth: int = 6) -> InfinityPipeline:
    """An :class:`InfinityPipeline` with all its parts, random but reproducible.

    It draws colourful structure that changes with prompt and seed, 256 x 256 pixels in 10 segments. The text encoder
    is a small T5 over bytes, so nothing is downloaded. ``save_pretrained`` and ``from_pretrained`` treat it like any
    other.

    Args:
        seed: of the weights. The global random state is left as it was.
        patchify: tokens of 2 x 2 latent pixels, as in infinity-8b.
        depth: layers of the transformer, even.

    Raises:
        InvalidInput: a depth that two chunks of layers cannot share.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        bits = 8 if patchify else 16
        transformer = _transformer(bits, patchify, depth)
        vae = _autoencoder(bits, patch_size=8 if patchify else 16)
        text_encoder, tokenizer = _text()
        fill_range(vae.decoder, "conv_out.conv")
        _decide(transformer)
    return InfinityPipeline(
        transformer=transformer.eval(),
        vae=vae.eval(),
        scheduler=InfinityScheduler(schedule=[[side, side] for side in SIDES], extent=[64, 64], temperature=0.5),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
    )


def _transformer(bits: int, patchify: bool, depth: int) -> InfinityTransformer:
    transformer: InfinityTransformer = InfinityTransformer(
        depth=depth,
        width=64,
        num_heads=4,
        codebook_bits=bits,
        patchify=patchify,
        text_channels=TEXT_CHANNELS,
        text_maxlen=TEXT_TOKENS,
        block_chunks=2,
    )
    return transformer


def _autoencoder(bits: int, patch_size: int) -> BSQAutoencoder:
    multipliers = [1] * int(math.log2(patch_size)) + [2]
    vae: BSQAutoencoder = BSQAutoencoder(
        codebook_bits=bits,
        patch_size=patch_size,
        base_channels=24,
        encoder_multipliers=multipliers,
        decoder_multipliers=multipliers,
        num_res_blocks=1,
    )
    return vae


def _text() -> tuple[Any, Any]:
    """A T5 encoder over bytes, and its tokenizer, which needs no vocabulary file."""
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    tokenizer = ByT5Tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=TEXT_CHANNELS,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config), tokenizer


def fill_range(decoder: nn.Module, last: str) -> None:
    """Scale a decoder so that its pictures fill the range; at default weights they are nearly grey.

    Args:
        decoder: of a picture tokenizer.
        last: name of its last convolution.
    """
    for module in decoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    final = decoder.get_submodule(last)
    assert isinstance(final, nn.Conv2d)
    nn.init.normal_(final.weight, std=0.6 / math.sqrt(final.weight[0].numel() * 0.36))


def _decide(transformer: InfinityTransformer) -> None:
    """Scale the network so that its logits have opinions, which prompt and earlier segments change."""
    nn.init.normal_(transformer.word_embed.weight, std=1.0)
    head = transformer.get_submodule("head")
    nn.init.normal_(head.weight, std=2.0 / math.sqrt(transformer.config.width))
