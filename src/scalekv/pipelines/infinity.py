"""Infinity: prompt to picture (Han et al., 2024), with any cache policy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel
from typing_extensions import Self

from scalekv.cache import CacheFactory, open_cache
from scalekv.models.infinity import BSQAutoencoder, InfinityScheduler, InfinityTransformer
from scalekv.models.infinity.generation import generate
from scalekv.models.infinity.rope import rope_tables
from scalekv.pipelines import arguments, folders, steps
from scalekv.pipelines.base import NextScalePipeline, one_call
from scalekv.pipelines.images import to_output
from scalekv.pipelines.output import InfinityPipelineOutput
from scalekv.pipelines.progress import watcher
from scalekv.planning import ProfileLike, resolve_profile
from scalekv.policies import Policy

StepCallback = Callable[["InfinityPipeline", int, int, dict[str, Tensor]], dict[str, Tensor] | None]


class InfinityPipeline(NextScalePipeline):
    """Text to image with an Infinity transformer.

    Folders and hub repositories are loaded by :func:`scalekv.load_pipeline` or ``InfinityPipeline.from_pretrained``;
    ``DiffusionPipeline.from_pretrained`` looks for the class among those of diffusers and does not find it.

    ``InfinityPipeline.from_pipe(pipeline)`` makes a second pipeline on the same weights. ``InfinityPipeline(
    **pipeline.components)`` does too, but leaves ``model_name`` and the attributes behind; pass and set them.

    Args:
        transformer: an ``InfinityTransformer``.
        vae: a ``BSQAutoencoder``.
        scheduler: an ``InfinityScheduler``: sizes and sampling settings.
        text_encoder: a ``T5EncoderModel``; without it, calls need ``prompt_embeds``.
        tokenizer: the tokenizer of ``text_encoder``.
        model_name: name of a known model, which selects its built-in profile.

    Attributes:
        profile: calibration profile of this model, read from and saved as ``profile.json`` in its folder.
        cache_dtype: what self attention computes in and the cache holds; ``None`` is the type of the weights.

    Raises:
        CheckpointError: parts that do not belong together.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components: ClassVar[list[str]] = ["text_encoder", "tokenizer"]

    def __init__(
        self,
        transformer: InfinityTransformer,
        vae: BSQAutoencoder,
        scheduler: InfinityScheduler,
        text_encoder: T5EncoderModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        model_name: str | None = None,
    ) -> None:
        super().__init__()
        folders.check_partners(transformer, vae, text_encoder)
        self.register_modules(
            transformer=transformer, vae=vae, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer
        )
        self.register_to_config(model_name=model_name)

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
    ) -> Self:
        """Build a pipeline from official files; arguments and errors as in :func:`scalekv.pipelines.convert`."""
        from scalekv.pipelines.building import components_from_files

        return cls(**components_from_files(transformer, vae, model, text_encoder, dtype, patchify, ema))

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        positive_prompt: str | None = None,
        device: torch.device | str | None = None,
    ) -> list[Tensor]:
        """Text features of prompts, to be passed as ``prompt_embeds`` or ``negative_prompt_embeds``.

        Args:
            prompt: one or several texts; longer ones than the encoder reads are cut, with a warning.
            positive_prompt: text that is appended to prompts about people.
            device: where they are encoded; default that of the pipeline.

        Returns:
            One (tokens, text channels) float32 tensor per prompt.

        Raises:
            InvalidInput: no text, or a pipeline without a text encoder.
        """
        place = self._execution_device if device is None else torch.device(device)
        texts = steps.prompts_of(prompt, None, self.transformer.config.text_channels, positive_prompt)
        return steps.encode(self, texts, place).features

    @torch.no_grad()
    @one_call
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
        cfg_insertion_layer: int | Sequence[int] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        prompt_embeds: Sequence[Tensor] | None = None,
        negative_prompt_embeds: Sequence[Tensor] | None = None,
        positive_prompt: str | None = None,
        kv_cache: Policy | CacheFactory | None = None,
        profile: ProfileLike | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        forced_bits: Sequence[Tensor] | None = None,
        forced_mask: Tensor | Sequence[Tensor] | None = None,
    ) -> InfinityPipelineOutput | tuple[Any, ...]:
        """Draw pictures.

        Args:
            prompt: one or several texts; an empty text is allowed. Longer texts than the encoder reads are cut, with
                a warning.
            negative_prompt: what to steer away from, one text for all prompts or one each; default, and for empty
                texts, the learned unconditional rows. Has no effect without guidance.
            height: pixels, together with ``width``; the nearest published size is drawn, and a warning says so.
            width: pixels, together with ``height``.
            size: pixel budget ``"0.06M"``, ``"0.25M"``, ``"0.60M"`` or ``"1M"``; default the model's own.
            aspect_ratio: width to height, as text (``"16:9"``) or number (1.78); the nearest published ratio is taken.
            guidance_scale: classifier-free guidance, one number or one per segment; 1 throughout halves the work.
                Default, as for the next three: the scheduler's.
            temperature: divisor of the logits, one number or one per segment, above 0.
            top_k: 1 takes the likelier bit, 0 or 2 and above change nothing (a token is made of bits).
            top_p: bits likelier than this are certain; 0 switches it off.
            cfg_insertion_layer: 0 mixes logits (published setting); -1, -2, ... mix after a layer from the end.
            num_images_per_prompt: pictures of each prompt.
            generator: one for all images (drawing in the published order), or one per image, which gives each image
                what it gets alone.
            prompt_embeds: instead of ``prompt``: text features, one (tokens, text channels) per prompt.
            negative_prompt_embeds: instead of ``negative_prompt``, likewise.
            positive_prompt: text that is appended to prompts about people; off by default.
            kv_cache: how to hold keys and values; default everything (``Full()``).
            profile: calibration profile for the policy, or its file; default the pipeline's own, then the built-in
                one of a known model.
            output_type: ``"pil"``, ``"np"``, ``"pt"`` or ``"latent"``; see :class:`InfinityPipelineOutput`.
            return_dict: ``False`` returns the tuple (images, cache report).
            callback_on_step_end: called after each segment with (pipeline, segment index, segment index, tensors);
                ``"latents"`` in the dict that it returns replace those of the run, in their type. It ends the run by
                ``pipeline.stop()``.
            callback_on_step_end_tensor_inputs: which tensors it gets: ``"latents"``, the codes summed so far (images,
                codebook bits, latent height, latent width), which decode to a full-size preview at any time, and
                ``"logits"`` (images, tokens, 2 x token bits), from which the segment was drawn.
            forced_bits: bits (images, latent height, latent width, codebook bits) of the first segments that replace
                the sampled ones; ``vae.encode_to_bits`` gives those of a picture.
            forced_mask: where they do, for repainting the rest: not 0 in a (height, width) or (images, height, width)
                map of any size, or in one map of latent pixels per segment. Default everywhere. A latent pixel is kept
                if at least half of it is inside; kept parts come back as the tokenizer reconstructs them, and the
                coarse first segments are kept or drawn as a whole.

        Raises:
            InvalidInput: an argument that cannot be used; the message names it.
            BudgetError: the cache budget cannot be met.
            ProfileError: the profile is for another model.
        """
        # 1. Check the arguments.
        started = time.perf_counter()
        config, device = self.transformer.config, self._execution_device
        resolved = steps.resolve_size(self.scheduler, height, width, size, aspect_ratio)
        sampling = steps.sampling_settings(
            resolved.schedule,
            config.depth,
            self.scheduler.config,
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            cfg_insertion_layer=cfg_insertion_layer,
        )
        prompts = steps.prompts_of(prompt, prompt_embeds, config.text_channels, positive_prompt)
        negatives = steps.negatives_of(negative_prompt, negative_prompt_embeds, config.text_channels, len(prompts))
        copies = arguments.check_count("num_images_per_prompt", num_images_per_prompt)
        generators = arguments.check_generators(generator, len(prompts) * copies)
        forced = arguments.check_tensors("forced_bits", forced_bits)
        forced_mask = arguments.check_mask(forced_mask)
        arguments.check_choice("output_type", output_type, arguments.OUTPUT_TYPES)
        names = callback_on_step_end_tensor_inputs
        arguments.check_callback(callback_on_step_end, names, self._callback_tensor_inputs)

        # 2. Plan the cache: all memory is known from here on.
        geometry = self.cache_geometry(resolved.schedule, len(prompts) * copies, 2 if sampling.guided else 1)
        known = resolve_profile(profile, self.profile, self.config.model_name, geometry)
        cache = open_cache(kv_cache, geometry, known, self.attention_dtype, device)

        try:
            # 3. Encode the text.
            text = steps.encode(self, prompts, device)
            against = steps.encode_negatives(self, negatives, text.features, device) if sampling.guided else None
            text_rows = steps.repeat(text.features, copies)
            condition = self.transformer.prepare_text(text_rows, steps.repeat(against, copies), sampling.guided)

            # 4. Draw the segments.
            rope = rope_tables(resolved.schedule, geometry.head_dim, resolved.extent, config.rope_mode, device)
            with cache, self.progress_bar(total=len(resolved.schedule)) as bar:
                drawn = generate(
                    self.transformer,
                    condition,
                    resolved.schedule,
                    rope,
                    cache,
                    guidance=sampling.guidance,
                    temperature=sampling.temperature,
                    top_k=sampling.top_k,
                    top_p=sampling.top_p,
                    cfg_insertion_layer=sampling.cfg_insertion_layer,
                    generator=generators,
                    forced_bits=forced,
                    forced_mask=forced_mask,
                    on_segment=watcher(self, cache, bar, callback_on_step_end, names),
                    gradients=cache.differentiates,
                )

            # 5. Decode, without the text that the layers held.
            del condition, text_rows, against
            images = drawn.codes
            if output_type != "latent":
                images = to_output(self.vae.decode(images), output_type)
        finally:
            self.maybe_free_model_hooks()

        # 6. Report.
        report = cache.report(seconds=time.perf_counter() - started)
        if not return_dict:
            return images, report
        return InfinityPipelineOutput(
            images=images,
            cache=report,
            schedule=resolved.schedule,
            seeds=arguments.seeds_of(generators, len(prompts) * copies),
            truncated=text.truncated,
            drawn=drawn.bits,
            interrupted=len(drawn.bits) < len(resolved.schedule),
        )
