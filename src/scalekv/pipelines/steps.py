"""The steps of an Infinity call that need only their arguments."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scalekv.errors import InvalidInput
from scalekv.models.infinity.scheduler import ResolvedSize
from scalekv.models.infinity.text import EncodedText, encode_prompts, with_positive_prompt
from scalekv.models.infinity.transformer import guidance_layers
from scalekv.pipelines.arguments import (
    aspect_of,
    check_count,
    check_features,
    check_numbers,
    check_share,
    check_texts,
)
from scalekv.planning import Schedule

logger = logging.getLogger(__name__)

Text = str | Tensor


@dataclass(frozen=True)
class Sampling:
    """How the bits of a run are drawn, checked.

    Args:
        guidance: one scale per segment.
        temperature: one per segment, above 0.
        top_k: 0 or more.
        top_p: 0 to 1.
        cfg_insertion_layer: where guidance is mixed in.
    """

    guidance: list[float]
    temperature: list[float]
    top_k: int
    top_p: float
    cfg_insertion_layer: list[int]

    @property
    def guided(self) -> bool:
        """Whether unconditional rows run at all."""
        return any(scale != 1 for scale in self.guidance)


def sampling_settings(schedule: Schedule, depth: int, defaults: Any, **given: Any) -> Sampling:
    """The settings of a call; what is ``None`` comes from ``defaults``, the scheduler's configuration.

    Raises:
        InvalidInput: a setting that cannot be used.
    """
    value = {name: getattr(defaults, name) if one is None else one for name, one in given.items()}
    places = value["cfg_insertion_layer"]
    places = list(places) if isinstance(places, (list, tuple)) else [places]
    if not all(isinstance(place, int) and not isinstance(place, bool) for place in places):
        raise InvalidInput(f"cfg_insertion_layer must be a whole number or a list of them, got {places}.")
    guidance_layers(places, depth)
    return Sampling(
        guidance=check_numbers("guidance_scale", value["guidance_scale"], len(schedule)),
        temperature=check_numbers("temperature", value["temperature"], len(schedule), above=0),
        top_k=check_count("top_k", value["top_k"], least=0),
        top_p=check_share("top_p", value["top_p"]),
        cfg_insertion_layer=places,
    )


def resolve_size(scheduler: Any, height: Any, width: Any, size: str | None, aspect_ratio: Any) -> ResolvedSize:
    """What will be drawn; a warning says so where it is not just what was asked for.

    Raises:
        InvalidInput: sides that are no whole numbers, or a combination that the scheduler refuses.
    """
    height = None if height is None else check_count("height", height)
    width = None if width is None else check_count("width", width)
    resolved: ResolvedSize = scheduler.resolve(size=size, height=height, width=width, aspect=aspect_of(aspect_ratio))
    if not resolved.exact:
        asked = (
            f"{width} x {height} (width x height)" if height is not None else f"the aspect ratio {_ratio(aspect_ratio)}"
        )
        drawn = f"{resolved.width} x {resolved.height}"
        logger.warning("This model does not draw %s; drawing the nearest, %s.", asked, drawn)
    return resolved


def _ratio(aspect_ratio: Any) -> str:
    return f"{aspect_ratio:.4g}" if isinstance(aspect_ratio, float) else str(aspect_ratio)


def prompts_of(prompt: Any, prompt_embeds: Any, channels: int, positive_prompt: str | None) -> list[Text]:
    """The prompts of a call, as texts or as features.

    Raises:
        InvalidInput: both, neither, or of a wrong type.
    """
    if (prompt is None) == (prompt_embeds is None):
        given = "neither" if prompt is None else "both"
        raise InvalidInput(f"Give prompt or prompt_embeds, got {given}.")
    if prompt is None:
        return [*check_features("prompt_embeds", prompt_embeds, channels)]
    if positive_prompt is not None:
        (positive_prompt,) = check_texts("positive_prompt", [positive_prompt])
    return [with_positive_prompt(text, positive_prompt) for text in check_texts("prompt", prompt)]


def negatives_of(negative: Any, embeds: Any, channels: int, prompts: int) -> list[Text] | None:
    """One negative prompt for each prompt, or ``None`` for the learned unconditional rows.

    Raises:
        InvalidInput: both forms, a wrong type, or a number that is neither 1 nor that of the prompts.
    """
    if negative is not None and embeds is not None:
        raise InvalidInput("Give negative_prompt or negative_prompt_embeds, got both.")
    if negative is None and embeds is None:
        return None
    name = "negative_prompt" if embeds is None else "negative_prompt_embeds"
    listed: list[Text] = [*check_texts(name, negative)] if embeds is None else [*check_features(name, embeds, channels)]
    if len(listed) not in (1, prompts):
        raise InvalidInput(f"{name} has {len(listed)} entries for {prompts} prompts; give one, or one per prompt.")
    if all(isinstance(one, str) and not one for one in listed):
        return None
    return listed * prompts if len(listed) == 1 else listed


def encode(
    pipeline: Any, texts: Sequence[Text], device: torch.device, name: str = "Prompt", first: int = 0
) -> EncodedText:
    """Features of ``texts``; those that are features already are passed on. ``name`` and ``first`` are for warnings.

    Raises:
        InvalidInput: a text, and a pipeline without a text encoder.
    """
    if all(isinstance(text, Tensor) for text in texts):
        return EncodedText([text.to(device) for text in texts if isinstance(text, Tensor)], [])
    if pipeline.text_encoder is None or pipeline.tokenizer is None:
        raise InvalidInput(
            "This pipeline has no text encoder; pass prompt_embeds, or load it with text_encoder= and tokenizer= "
            "(T5EncoderModel and AutoTokenizer of google/flan-t5-xl for the published models)."
        )
    return encode_prompts(
        [str(text) for text in texts],
        pipeline.tokenizer,
        pipeline.text_encoder,
        max_length=pipeline.transformer.config.text_maxlen,
        device=device,
        name=name,
        first=first,
    )


def encode_negatives(
    pipeline: Any, negatives: Sequence[Text] | None, prompts: Sequence[Tensor], device: torch.device
) -> list[Tensor] | None:
    """Features to guide away from; an empty text among others is the learned rows, as many as its prompt has.

    Equal texts are encoded once.
    """
    if negatives is None:
        return None
    learned, known, found = pipeline.transformer.cfg_uncond, {}, []
    for place, (negative, prompt) in enumerate(zip(negatives, prompts, strict=True)):
        if isinstance(negative, str) and not negative:
            found.append(learned[: len(prompt)].to(device, prompt.dtype))
            continue
        key = negative if isinstance(negative, str) else id(negative)
        if key not in known:
            known[key] = encode(pipeline, [negative], device, "Negative prompt", place).features[0]
        found.append(known[key])
    return found


def repeat(rows: Sequence[Tensor] | None, copies: int) -> list[Tensor] | None:
    """Every row ``copies`` times, copies side by side."""
    return None if rows is None else [row for row in rows for _ in range(copies)]
