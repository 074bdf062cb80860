"""What a table of weights is, told by its names: which network of which family."""

from __future__ import annotations

from collections.abc import Iterable

INFINITY_TRANSFORMER = "infinity transformer"
INFINITY_AUTOENCODER = "infinity vae"
VAR_TRANSFORMER = "var transformer"
VAR_AUTOENCODER = "var vae"

EXAMPLES = {
    INFINITY_TRANSFORMER: "word_embed.weight",
    INFINITY_AUTOENCODER: "decoder.conv_in.conv.weight",
    VAR_TRANSFORMER: "class_emb.weight",
    VAR_AUTOENCODER: "quantize.embedding.weight",
}
"""A name by which people recognise each kind."""


def kind_of(names: Iterable[str]) -> str | None:
    """Which network a table of these names belongs to, one of the keys of `EXAMPLES`, or ``None``."""
    names = set(names)
    if names & {"class_emb.weight", "pos_1LC"}:
        return VAR_TRANSFORMER
    if names & {"cfg_uncond", "word_embed.weight", "text_norm.weight", "pos_start"}:
        return INFINITY_TRANSFORMER
    if names & {"quantize.embedding.weight", "quantize.ema_vocab_hit_SV", "post_quant_conv.weight"}:
        return VAR_AUTOENCODER
    if any(name.startswith(("decoder.conv_in.", "encoder.conv_in.", "decoder.mid.")) for name in names):
        return INFINITY_AUTOENCODER
    return None


def family_of(kind: str) -> str:
    """The model family of a kind: the room under ``scalekv.models`` that runs it."""
    return kind.split()[0]


def with_article(kind: str) -> str:
    """``kind`` with "a" or "an" before it."""
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
