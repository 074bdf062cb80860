"""Prompts to text features, the T5 way (FoundationVision/Infinity, tools/run_infinity.py)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

PERSON_NOUNS = (
    "man", "men", "woman", "women", "boy", "girl", "child", "person", "human", "adult", "teenager", "employee",
    "employer", "worker", "mother", "father", "sister", "brother", "grandmother", "grandfather", "son", "daughter",
)  # fmt: skip
"""Words that mark a prompt as being about people, wherever they occur: "many" matches "man" [published]."""


@dataclass(frozen=True)
class EncodedText:
    """Text features of some prompts.

    Args:
        features: one (tokens, text channels) float32 per prompt, its end token included, padding removed.
        truncated: indices of the prompts that were longer than the encoder reads.
    """

    features: list[Tensor]
    truncated: list[int]


def encode_prompts(
    prompts: Sequence[str],
    tokenizer: Any,
    text_encoder: Any,
    max_length: int = 512,
    device: torch.device | str | None = None,
    name: str = "Prompt",
    first: int = 0,
) -> EncodedText:
    """Encode every prompt by itself, so that its features do not depend on its neighbours.

    A prompt is padded to ``max_length``, as published, and its padding dropped again.

    Args:
        prompts: texts; an empty one becomes the end token alone.
        tokenizer: a T5 tokenizer.
        text_encoder: a ``T5EncoderModel``, in any dtype.
        max_length: tokens after which a prompt is cut, with a warning.
        device: where the encoder runs; default where its weights are.
        name: what warnings call a prompt.
        first: the number that they give the first one.
    """
    device = text_encoder.device if device is None else device
    features, truncated = [], []
    for index, prompt in enumerate(prompts):
        tokens = tokenizer([prompt], max_length=max_length, padding="max_length", truncation=True, return_tensors="pt")
        mask = tokens.attention_mask.to(device)
        states = text_encoder(input_ids=tokens.input_ids.to(device), attention_mask=mask).last_hidden_state
        length = int(mask.sum())
        features.append(states[0, :length].float())
        if length == max_length and _tokens(prompt, tokenizer) > max_length:
            truncated.append(index)
            logger.warning(
                "%s %d is longer than the %d tokens the text encoder reads; its end was cut: %r",
                name,
                first + index,
                max_length,
                prompt[-60:],
            )
    return EncodedText(features, truncated)


def _tokens(prompt: str, tokenizer: Any) -> int:
    return len(tokenizer(prompt, truncation=False, verbose=False).input_ids)


def with_positive_prompt(prompt: str, suffix: str | None) -> str:
    """``prompt`` with ``suffix`` appended once if it is about people; unchanged without a suffix."""
    if suffix and any(noun in prompt for noun in PERSON_NOUNS) and not prompt.endswith(suffix):
        return f"{prompt} {suffix}"
    return prompt
