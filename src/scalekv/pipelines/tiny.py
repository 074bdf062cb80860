"""A complete, small pipeline with random weights: for tests, benchmarks and a first try without any download."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scalekv.pipelines.infinity import InfinityPipeline


def tiny_pipeline(seed: int = 0, *, patchify: bool = False, depth: int = 6) -> InfinityPipeline:
    """An :class:`InfinityPipeline` with all its parts, random but reproducible.

    It draws colourful structure that changes with prompt and seed, at up to 256 x 256 pixels in 10 segments. The text
    encoder is a small T5 over bytes, so nothing is downloaded. ``save_pretrained`` and ``from_pretrained`` treat it
    like any other.

    Args:
        seed: of the weights.
        patchify: tokens of 2 x 2 latent pixels, as in infinity-8b.
        depth: layers of the transformer.
    """
    raise NotImplementedError
