"""The text side: a word-level tokenizer of the world's vocabulary and a small T5 encoder."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scalekv.scenes import words

TEXT_TOKENS = 32
"""Text tokens per prompt, the end token included; captions have at most 24 words."""

_EXTRA = (
    "a", "an", "and", "there", "is", "are", "picture", "image", "photo", "of", "we", "see", "in", "the", "on", "at",
    "to", "with", "background", "middle", "center", "left", "right", "side", "its", "it", "one", "two", "three",
    "four", "next", "beside", "near", "standing", "lying", "plain", "medium", "floor", "wall", "top", "under",
    "front", "behind", "above", "below", "over", "striped", "stripes", "checks", "dots", "some", "which",
)  # fmt: skip
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


def vocabulary() -> list[str]:
    """Every word that captions use, and some that people may; in fixed order, special tokens first."""
    tables: list[Any] = [
        words.SHAPE_NAMES, words.COLOUR_NAMES, words.PATTERN_ADJECTIVES, words.SIZE_NAMES, words.RELATION_NAMES,
        words.FLOOR_NAMES, words.WALL_NAMES,
    ]  # fmt: skip
    phrases = [phrase for table in tables for names in table.values() for phrase in names]
    phrases += [*words.PLURALS.values(), *words.PATTERN_NOUNS.values(), *words.NUMBERS, *_EXTRA]
    found = sorted({word for phrase in phrases for word in re.findall(r"\w+", phrase)})
    return [PAD, END, UNKNOWN, ",", ".", *found]


def word_tokenizer() -> Any:
    """A fast tokenizer that lowers the case, splits at spaces and punctuation, and appends the end token."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    table = {word: index for index, word in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, table[END])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=TEXT_TOKENS,
        padding_side="right",
    )


def text_encoder(channels: int, layers: int, size: int) -> Any:
    """A T5 encoder over ``size`` words.

    Args:
        channels: features per token, a multiple of 64.
        layers: blocks.
        size: words in the vocabulary.
    """
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=size,
        d_model=channels,
        d_kv=32,
        d_ff=channels * 2,
        num_layers=layers,
        num_heads=channels // 32,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
    )
    encoder = T5EncoderModel(config)
    _begin_nearby(encoder)
    return encoder


@torch.no_grad()
def _begin_nearby(encoder: Any) -> None:
    """Begin with heads that look at the words just before, just after, and all before; every fourth looks anywhere.

    T5 begins with heads that hardly know where a word stands and with large steps of its blocks. In a short training
    words then outgrow their places: the text is a bag of words, and no picture can tell which of two things is red
    (ours).
    """
    bias = encoder.get_parameter("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
    half = bias.shape[0] // 2
    distance = torch.arange(half, dtype=bias.dtype)
    away = torch.full((half,), -8.0)
    near = torch.cat((away[:1], -distance[1:]))
    kinds = (torch.cat((near, away)), torch.cat((away, near)), torch.cat((-0.2 * distance, away)))
    for head in range(bias.shape[1]):
        if head % 4 < len(kinds):
            bias[:, head] = kinds[head % 4]
    for name, weight in encoder.named_parameters():
        if name.endswith(("SelfAttention.o.weight", "DenseReluDense.wo.weight")):
            weight.mul_(0.4)


@torch.no_grad()
def begin_again(encoder: Any, ids: Tensor) -> None:
    """Give an encoder new blocks, and words that mean from the start what they mean on the average (ours).

    Args:
        encoder: it is changed in place.
        ids: (n, `TEXT_TOKENS`) word numbers of captions to average over; words that they lack are taken by themselves.
    """
    size, channels = encoder.config.vocab_size, encoder.config.d_model
    words = torch.arange(size, device=encoder.device)
    means = encoder(input_ids=words[:, None]).last_hidden_state[:, 0].clone()
    padded, real = features(encoder, ids)
    states, flat = padded[real], ids[ids != 0]
    counts = torch.bincount(flat, minlength=size)
    sums = torch.zeros(size, channels, device=encoder.device).index_add_(0, flat, states)
    means[counts > 0] = (sums / counts.clamp_min(1)[:, None])[counts > 0]
    fresh = text_encoder(channels, encoder.config.num_layers, size)
    fresh.get_input_embeddings().weight.copy_(means)
    encoder.load_state_dict(fresh.state_dict())


def token_ids(tokenizer: Any, captions: list[str]) -> NDArray[np.uint16]:
    """Captions as (n, `TEXT_TOKENS`) word numbers, 0 after the end token."""
    ids = tokenizer(captions, padding="max_length", truncation=True, max_length=TEXT_TOKENS).input_ids
    return np.array(ids, dtype=np.uint16)


def with_unknown(ids: Tensor, share: float) -> Tensor:
    """Word numbers with a share of the words, but no end or padding, made unknown."""
    unknown = vocabulary().index(UNKNOWN)
    return torch.where((torch.rand(ids.shape) < share) & (ids > unknown), unknown, ids)


def features(encoder: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Text features of (n, `TEXT_TOKENS`) word numbers, padding included; gradients flow.

    Returns:
        (n, longest, channels) features, ``longest`` rounded up to 8, which GPUs want of a mask; and (n, longest)
        booleans, which of them are of words.
    """
    longest = -8 * (-int((ids != 0).sum(1).max()) // 8)
    ids = ids[:, :longest]
    real = ids != 0
    return encoder(input_ids=ids, attention_mask=real.long()).last_hidden_state, real
