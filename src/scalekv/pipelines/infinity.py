"""Infinity: prompt to picture (Han et al., 2024), with any cache policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from scalekv.planning import Profile
from scalekv.policies import Policy
from scalekv.pipelines.output import InfinityPipelineOutput

StepCallback = Callable[["InfinityPipeline", int, int, dict[str, Tensor]], dict[str, Tensor] | None]


class InfinityPipeline(DiffusionPipeline):
    """Text to image with an Infinity transformer.

    Args:
        transformer: an ``InfinityTransformer``.
        vae: a ``BSQAutoencoder``.
        scheduler: an ``InfinityScheduler``: sizes and sampling settings.
        text_encoder: a ``T5EncoderModel``; without it, calls need ``prompt_embeds``.
        tokenizer: the tokenizer of ``text_encoder``.
        model_name: name of a known model, which selects its built-in profile.

    Attributes:
        profile: calibration profile of this model, read from and saved as ``profile.json`` in its folder.
    """

    @classmethod
    def from_single_file(
        cls,
        transformer: str | Path,
        vae: str | Path,
        *,
        model: str | None = None,
        text_encoder: str | Path | None = None,
        dtype: torch.dtype | str | None = None,
        patchify: bool | None = None,
        ema: bool = False,
    ) -> InfinityPipeline:
        """Build a pipeline from official files; arguments and errors as in :func:`scalekv.pipelines.convert`."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        size: str | None = None,
        aspect_ratio: str | float | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        temperature: float | Sequence[float] | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        cfg_insertion_layer: int | Sequence[int] = 0,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        prompt_embeds: Sequence[Tensor] | None = None,
        negative_prompt_embeds: Sequence[Tensor] | None = None,
        positive_prompt: str | None = None,
        kv_cache: Policy | None = None,
        profile: Profile | str | Path | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        forced_bits: Sequence[Tensor] | None = None,
    ) -> InfinityPipelineOutput | tuple[Any, ...]:
        """Draw pictures.

        Args:
            prompt: one or several texts; an empty text is allowed. Longer texts than the encoder reads are cut, with
                a warning.
            negative_prompt: what to steer away from, one text for all prompts or one each; default the learned
                unconditional rows. Has no effect without guidance.
            height, width: pixels; the nearest published size is taken, and said so. Both or neither.
            size: pixel budget ``"0.06M"``, ``"0.25M"``, ``"0.60M"`` or ``"1M"``; default the model's own.
            aspect_ratio: width to height, as text (``"16:9"``) or number (1.78); the nearest published ratio is taken.
            guidance_scale: classifier-free guidance, one number or one per segment; 1 throughout halves the work.
            temperature: divisor of the logits, one number or one per segment, above 0.
            top_k: 1 takes the likelier bit, 0 or 2 and above change nothing (a token is made of bits).
            top_p: bits likelier than this are certain; 0 switches it off.
            cfg_insertion_layer: 0 mixes logits (published setting); -1, -2, ... mix after a layer from the end.
            num_images_per_prompt: pictures of each prompt.
            generator: one for all images (drawing in the published order), or one per image, which gives each image
                what it gets alone.
            prompt_embeds: instead of ``prompt``: text features, one (tokens, text channels) per prompt.
            negative_prompt_embeds: instead of ``negative_prompt``, likewise.
            positive_prompt: text that is appended to prompts about people (infinity.md 3); off by default.
            kv_cache: how to hold keys and values; default everything (``Full()``).
            profile: calibration profile for the policy, or its file; default the pipeline's own, then the built-in
                one of a known model.
            output_type: ``"pil"``, ``"np"``, ``"pt"`` or ``"latent"``; see :class:`InfinityPipelineOutput`.
            return_dict: ``False`` returns the tuple (images, cache report).
            callback_on_step_end: called after each segment with (pipeline, segment index, segment index, tensors);
                tensors in the dict that it returns replace those of the run.
            callback_on_step_end_tensor_inputs: which tensors it gets.
            forced_bits: bits (images, 1, height, width, codebook_dim) of every segment that replace the sampled ones.

        Raises:
            InvalidInput: an argument that cannot be used; the message names it.
            BudgetError: the cache budget cannot be met.
            ProfileError: the profile is for another model.
        """
        raise NotImplementedError
