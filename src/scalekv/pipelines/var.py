"""VAR: class to picture (Tian et al., 2024), with any cache policy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from scalekv.cache import CacheFactory, open_cache
from scalekv.models.var import VARScheduler, VARTransformer, VQAutoencoder
from scalekv.models.var.classes import ClassNames, imagenet_names
from scalekv.models.var.generation import generate
from scalekv.models.var.sampling import draw_classes
from scalekv.pipelines import arguments, classes, folders
from scalekv.pipelines.base import NextScalePipeline, one_call
from scalekv.pipelines.images import to_output
from scalekv.pipelines.output import VARPipelineOutput
from scalekv.pipelines.progress import watcher
from scalekv.planning import ProfileLike, resolve_profile
from scalekv.policies import Policy

StepCallback = Callable[["VARPipeline", int, int, dict[str, Tensor]], dict[str, Tensor] | None]
Classes = int | str | Sequence[int | str] | Tensor | None


class VARPipeline(NextScalePipeline):
    """Class to image with a VAR transformer.

    Folders and hub repositories are loaded by :func:`scalekv.load_pipeline` or ``VARPipeline.from_pretrained``;
    ``DiffusionPipeline.from_pretrained`` looks for the class among those of diffusers and does not find it.

    ``VARPipeline.from_pipe(pipeline)`` makes a second pipeline on the same weights. ``VARPipeline(
    **pipeline.components)`` does too, but leaves ``model_name`` and the attributes behind.

    Args:
        transformer: a ``VARTransformer``.
        vae: a ``VQAutoencoder``.
        scheduler: a ``VARScheduler``: the schedule and sampling settings.
        model_name: name of a known model, which selects its built-in profile.

    Attributes:
        profile: calibration profile of this model, read from and saved as ``profile.json`` in its folder.
        cache_dtype: what self attention computes in and the cache holds; ``None`` is the type of the weights.
        class_names: one entry per class, its names separated by commas; those of ImageNet for a model of 1000 classes,
            else ``None`` until set (`scalekv.models.var.classes.read_class_names` reads a file).

    Raises:
        CheckpointError: parts that do not belong together.
    """

    model_cpu_offload_seq = "transformer->vae"
    _carried: ClassVar[tuple[str, ...]] = ("profile", "cache_dtype", "class_names")

    def __init__(
        self, transformer: VARTransformer, vae: VQAutoencoder, scheduler: VARScheduler, model_name: str | None = None
    ) -> None:
        super().__init__()
        folders.check_var_partners(transformer, vae, scheduler)
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)
        self.register_to_config(model_name=model_name)
        names = imagenet_names()
        self.class_names: ClassNames | None = names if transformer.config.num_classes == len(names) else None

    @classmethod
    def from_single_file(
        cls,
        transformer: str | Path,
        vae: str | Path,
        *,
        model: str | None = None,
        dtype: torch.dtype | str | None = None,
        patch_nums: Sequence[int] | None = None,
        num_heads: int | None = None,
    ) -> Self:
        """Build a pipeline from official files.

        Args:
            transformer: ``.pth`` or ``.safetensors``.
            vae: ``.pth`` or ``.safetensors`` of the tokenizer; a checkpoint of the training script holds both.
            model: known name, such as ``var-d30``; default from the file name and the shapes.
            dtype: of the transformer's blocks; default as stored.
            patch_nums: tokens per side of every segment, where the file does not tell.
            num_heads: where the file does not tell; default 64 channels per head.

        Raises:
            CheckpointError: a file is missing, damaged, of another kind, or does not fit its partner.
        """
        from scalekv.pipelines.building import var_components_from_files

        return cls(**var_components_from_files(transformer, vae, model, dtype, patch_nums, num_heads))

    @torch.no_grad()
    @one_call
    def __call__(
        self,
        class_labels: Classes = None,
        guidance_scale: float | Sequence[float] | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        smooth: bool = False,
        num_images_per_class: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        kv_cache: Policy | CacheFactory | None = None,
        profile: ProfileLike | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        forced_tokens: Sequence[Tensor] | None = None,
        forced_mask: Tensor | Sequence[Tensor] | None = None,
    ) -> VARPipelineOutput | tuple[Any, ...]:
        """Draw pictures.

        Args:
            class_labels: one or several classes, as ids (207), text (``"207"``, ``"golden retriever"``) or a tensor; -1
                is no class at all. Default a random class for every image, drawn with the generator first.
            guidance_scale: classifier-free guidance [cfg]: the weight of the last segment, reached linearly from 0 at
                the first, or one weight per segment. A weight t is what other pipelines call a scale of 1 + t; 0
                throughout halves the work. Default, as for the next two: the scheduler's.
            top_k: tokens that may be drawn, the likeliest; 0 switches it off.
            top_p: share of probability that may be drawn, the likeliest tokens; 0 switches it off.
            smooth: mix code vectors softly instead of drawing tokens: nicer to look at, not for measurements
                [more_smooth].
            num_images_per_class: pictures of each class; without classes, how many pictures.
            generator: one for all images (drawing in the published order), or one per image, which gives each image
                what it gets alone.
            kv_cache: how to hold keys and values; default everything (``Full()``).
            profile: calibration profile for the policy, or its file; default the pipeline's own, then the built-in
                one of a known model.
            output_type: ``"pil"``, ``"np"``, ``"pt"`` or ``"latent"``; see :class:`VARPipelineOutput`.
            return_dict: ``False`` returns the tuple (images, cache report).
            callback_on_step_end: called after each segment with (pipeline, segment index, segment index, tensors);
                ``"latents"`` in the dict that it returns replace those of the run, in their type. It ends the run by
                ``pipeline.stop()``.
            callback_on_step_end_tensor_inputs: which tensors it gets: ``"latents"``, the latent so far (images, latent
                channels, latent height, latent width), which decodes to a full-size preview at any time, and
                ``"logits"`` (images, tokens, vocabulary), guided and not yet filtered.
            forced_tokens: tokens (images, height, width) of the first segments that replace the sampled ones;
                ``vae.encode_to_tokens`` gives those of a picture.
            forced_mask: where they do, for repainting the rest: not 0 in a (height, width) or (images, height, width)
                map of any size, or in one map of tokens per segment. Default everywhere. A token is kept if at least
                half of it is inside; kept parts come back as the tokenizer reconstructs them, and the coarse first
                segments are kept or drawn as a whole.

        Raises:
            InvalidInput: an argument that cannot be used; the message names it.
            BudgetError: the cache budget cannot be met.
            ProfileError: the profile is for another model.
        """
        # 1. Check the arguments.
        started = time.perf_counter()
        device, schedule = self._execution_device, self.scheduler.segments
        config = self.transformer.config
        sampling = classes.sampling_settings(
            schedule,
            config.vocab_size,
            self.scheduler.config,
            guidance_scale=guidance_scale,
            top_k=top_k,
            top_p=top_p,
        )
        copies = arguments.check_count("num_images_per_class", num_images_per_class)
        chosen = classes.labels_of(class_labels, self.class_names, config.num_classes, copies)
        images = copies if chosen is None else len(chosen)
        generators = arguments.check_generators(generator, images)
        forced = arguments.check_tensors("forced_tokens", forced_tokens)
        forced_mask = arguments.check_mask(forced_mask)
        arguments.check_choice("output_type", output_type, arguments.OUTPUT_TYPES)
        names = callback_on_step_end_tensor_inputs
        arguments.check_callback(callback_on_step_end, names, self._callback_tensor_inputs)

        # 2. Plan the cache: all memory is known from here on.
        geometry = self.cache_geometry(schedule, images, 2 if sampling.guided else 1)
        known = resolve_profile(profile, self.profile, self.config.model_name, geometry)
        cache = open_cache(kv_cache, geometry, known, self.attention_dtype, device)

        try:
            # 3. Draw the segments.
            labels = chosen or draw_classes(images, config.num_classes, generators)
            condition = self.transformer.prepare_classes(labels, sampling.guided)
            with cache, self.progress_bar(total=len(schedule)) as bar:
                drawn = generate(
                    self.transformer,
                    condition,
                    self.vae.codebook(device),
                    cache,
                    guidance=sampling.guidance,
                    top_k=sampling.top_k,
                    top_p=sampling.top_p,
                    smooth=smooth,
                    generator=generators,
                    forced_tokens=forced,
                    forced_mask=forced_mask,
                    on_segment=watcher(self, cache, bar, callback_on_step_end, names),
                    gradients=cache.differentiates,
                )

            # 4. Decode.
            del condition
            pictures = drawn.latent
            if output_type != "latent":
                pictures = to_output(self.vae.decode(pictures), output_type)
        finally:
            self.maybe_free_model_hooks()

        # 5. Report.
        report = cache.report(seconds=time.perf_counter() - started)
        if not return_dict:
            return pictures, report
        return VARPipelineOutput(
            images=pictures,
            cache=report,
            schedule=schedule,
            seeds=arguments.seeds_of(generators, images),
            labels=labels,
            drawn=drawn.tokens,
            interrupted=len(drawn.tokens) < len(schedule),
        )
