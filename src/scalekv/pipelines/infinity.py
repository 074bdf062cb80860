"""Infinity: prompt to picture (Han et al., 2024), with any cache policy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from typing_extensions import Self

from scalekv.models.infinity.generation import generate
from scalekv.models.infinity.rope import rope_tables
from scalekv.models.inspection import PROFILE_FILE
from scalekv.pipelines import arguments, folders, steps
from scalekv.pipelines.caching import CacheFactory, ProfileLike, open_cache, resolve_profile
from scalekv.pipelines.images import to_output
from scalekv.pipelines.output import InfinityPipelineOutput
from scalekv.planning import CacheGeometry, Profile, Schedule, Segment, format_bytes
from scalekv.policies import Policy

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

    Raises:
        CheckpointError: parts that do not belong together.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components: ClassVar[list[str]] = ["text_encoder", "tokenizer"]
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "logits"]

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        scheduler: Any,
        text_encoder: Any = None,
        tokenizer: Any = None,
        model_name: str | None = None,
    ) -> None:
        super().__init__()
        folders.check_partners(transformer, vae, text_encoder)
        self.register_modules(
            transformer=transformer, vae=vae, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer
        )
        self.register_to_config(model_name=model_name)
        self.profile: Profile | None = None
        self._interrupt = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load a folder written by ``save_pretrained``, or a hub repository; options as in diffusers.

        Stricter than diffusers: names and shapes of all weights are compared first. Without ``dtype`` (or
        ``torch_dtype``) every part keeps the type it is stored in.

        Raises:
            CheckpointError: a part is missing, damaged, or of another shape.
            InvalidInput: no such folder, or no such hub name.
        """
        folder = folders.local_folder(cls, pretrained_model_name_or_path, kwargs)
        folders.check_folder(folder, given=kwargs)
        as_stored = "dtype" not in kwargs and "torch_dtype" not in kwargs
        options = {**kwargs, "dtype": folders.stored_dtypes(folder)} if as_stored else kwargs
        pipeline: Self = super().from_pretrained(folder, **options)
        if as_stored and "transformer" not in kwargs:
            folders.keep_stored_dtypes(pipeline.transformer, folder / "transformer")
        if (folder / PROFILE_FILE).is_file():
            pipeline.profile = Profile.load(folder / PROFILE_FILE)
        return pipeline

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the pipeline as a folder, its profile included; options as in diffusers."""
        super().save_pretrained(save_directory, **kwargs)
        if self.profile is not None:
            self.profile.save(Path(save_directory) / PROFILE_FILE)

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

    @property
    def interrupt(self) -> bool:
        """Whether the running call was told to stop after the current segment, by ``pipeline._interrupt = True``."""
        return self._interrupt

    def stop(self) -> None:
        """Make the running call stop after the current segment and decode what there is."""
        self._interrupt = True

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
                ``"latents"`` in the dict that it returns replace those of the run.
            callback_on_step_end_tensor_inputs: which tensors it gets: ``"latents"``, the codes summed so far (images,
                codebook bits, latent height, latent width), which decode to a full-size preview at any time, and
                ``"logits"`` (images, tokens, 2 x token bits), from which the segment was drawn.
            forced_bits: bits (images, latent height, latent width, codebook bits) of the first segments that replace
                the sampled ones.

        Raises:
            InvalidInput: an argument that cannot be used; the message names it.
            BudgetError: the cache budget cannot be met.
            ProfileError: the profile is for another model.
        """
        # 1. Check the arguments.
        started, self._interrupt = time.perf_counter(), False
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
        arguments.check_choice("output_type", output_type, arguments.OUTPUT_TYPES)
        for name in callback_on_step_end_tensor_inputs:
            arguments.check_choice("callback_on_step_end_tensor_inputs", name, self._callback_tensor_inputs)

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

                def on_segment(segment: Segment, codes: Tensor, logits: Tensor) -> Tensor | bool | None:
                    bar.set_postfix_str(f"kv {format_bytes(cache.live_bytes)}", refresh=False)
                    bar.update()
                    found = {"latents": codes, "logits": logits}
                    chosen = {name: found[name] for name in callback_on_step_end_tensor_inputs}
                    changed = steps.call_back(self, callback_on_step_end, segment, chosen)
                    return True if self._interrupt else changed

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
                    on_segment=on_segment,
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
            interrupted=len(drawn.bits) < len(resolved.schedule),
        )

    def cache_geometry(self, schedule: Schedule, batch: int = 1, guidance: int = 2) -> CacheGeometry:
        """The KV cache of a run of this pipeline.

        Args:
            schedule: the segments.
            batch: images drawn together.
            guidance: rows per image, 2 with guidance.
        """
        config = self.transformer.config
        return CacheGeometry(
            layers=config.depth,
            heads=config.num_heads,
            head_dim=config.width // config.num_heads,
            schedule=schedule,
            batch=batch,
            guidance=guidance,
            element_bytes=self.attention_dtype.itemsize,
        )

    @property
    def attention_dtype(self) -> torch.dtype:
        """The dtype that attention computes in, and the cache holds."""
        dtype: torch.dtype = self.transformer.attention_dtype
        return dtype
