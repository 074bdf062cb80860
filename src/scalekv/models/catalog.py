"""Known models by name: what a plan, a check or a download needs to know before any weight is read.

Imports neither torch nor diffusers. A family adds its entries with :func:`register_model`; whoever asks by name
or by shape finds them without a change.
"""

from __future__ import annotations

from dataclasses import dataclass

from scalekv.errors import InvalidInput
from scalekv.models.var.schedules import SIDES_256, SIDES_512
from scalekv.planning import CacheGeometry, Schedule


@dataclass(frozen=True)
class SamplingDefaults:
    """Settings that the authors of a model recommend.

    Args:
        guidance_scale: classifier-free guidance factor.
        temperature: divisor of the logits.
        top_k: candidates per draw that stay; 0 switches it off.
        top_p: nucleus that stays; 0 switches it off.
    """

    guidance_scale: float
    temperature: float
    top_k: int
    top_p: float


@dataclass(frozen=True)
class AutoencoderSpec:
    """A published picture tokenizer.

    Args:
        name: short name, such as ``bsq-d32``.
        codebook_dim: bits of one latent pixel, or its channels where tokens are numbers of code vectors.
        patch_size: image pixels per latent pixel and side.
        parameters: weights of encoder and decoder together.
        files: names its file goes by, the published one first.
        base_channels: channels of the finest level.
    """

    name: str
    codebook_dim: int
    patch_size: int
    parameters: int
    files: tuple[str, ...]
    base_channels: int = 128


@dataclass(frozen=True)
class TextEncoderSpec:
    """A published text encoder.

    Args:
        repository: name on the model hub.
        channels: features per text token.
        max_length: text tokens after which a prompt is cut.
        parameters: weights of the encoder half.
    """

    repository: str
    channels: int
    max_length: int
    parameters: int


@dataclass(frozen=True)
class ModelSpec:
    """A published next-scale model.

    Args:
        name: what people call it on the command line.
        family: the room under ``scalekv.models`` that runs it.
        layers: self-attention layers.
        heads: heads per layer.
        head_dim: channels per head.
        width: channels of the residual stream.
        bits: bits per token, 4 times the codebook dimension with ``patchify``.
        parameters: weights of the transformer.
        autoencoder: the tokenizer it was trained with; no other one gives pictures.
        text_encoder: ``None`` for a class-conditional model.
        default_size: pixel budget it was trained at, such as ``"1M"``; ``None`` with ``sides``.
        patchify: whether a token covers 2 x 2 latent pixels.
        files: published names of the transformer file or folder, the first one preferred.
        repository: hub repository that holds the files.
        profile: name of the calibration profile that fits; see ``Profile.builtin``.
        sampling: recommended settings.
        sides: tokens per side of the segments, for a model that draws one square schedule only.
    """

    name: str
    family: str
    layers: int
    heads: int
    head_dim: int
    width: int
    bits: int
    parameters: int
    autoencoder: AutoencoderSpec
    text_encoder: TextEncoderSpec | None
    default_size: str | None
    patchify: bool
    files: tuple[str, ...]
    repository: str
    profile: str
    sampling: SamplingDefaults
    sides: tuple[int, ...] | None = None

    @property
    def schedule(self) -> Schedule | None:
        """The only schedule it draws; ``None`` if there are several."""
        return None if self.sides is None else Schedule.from_sides(self.sides)

    def geometry(self, schedule: Schedule, batch: int = 1, guidance: int = 2, element_bytes: int = 2) -> CacheGeometry:
        """The cache of this model on ``schedule``; 2 bytes per element means bfloat16.

        Raises:
            InvalidInput: a count below 1.
        """
        return CacheGeometry(
            layers=self.layers,
            heads=self.heads,
            head_dim=self.head_dim,
            schedule=schedule,
            batch=batch,
            guidance=guidance,
            element_bytes=element_bytes,
        )


_MODELS: dict[str, ModelSpec] = {}


def register_model(spec: ModelSpec) -> ModelSpec:
    """Make ``spec`` known under its name.

    Raises:
        ValueError: the name is taken by another model.
    """
    if _MODELS.setdefault(spec.name, spec) != spec:
        raise ValueError(f"a different model is already registered as {spec.name!r}")
    return spec


def model_names() -> tuple[str, ...]:
    """Names of all known models, in the order in which they were registered."""
    return tuple(_MODELS)


def model_spec(name: str) -> ModelSpec:
    """The known model called ``name``; capitals and underscores do not matter.

    Raises:
        InvalidInput: no model has this name; the message lists those that exist.
    """
    spec = _MODELS.get(str(name).strip().lower().replace("_", "-"))
    if spec is None:
        raise InvalidInput(f"No known model is called {name!r}; known are {', '.join(_MODELS)}.")
    return spec


def matching_models(family: str, layers: int, heads: int, width: int, bits: int) -> tuple[ModelSpec, ...]:
    """Known models of exactly this shape; one network trained at two sizes is two models."""
    shape = (family, layers, heads, width, bits)
    return tuple(
        spec for spec in _MODELS.values() if (spec.family, spec.layers, spec.heads, spec.width, spec.bits) == shape
    )


def matching_autoencoders(family: str, codebook_dim: int, patch_size: int) -> tuple[AutoencoderSpec, ...]:
    """Known tokenizers of exactly this shape, each once."""
    known = {spec.autoencoder.name: spec.autoencoder for spec in _MODELS.values() if spec.family == family}.values()
    return tuple(one for one in known if (one.codebook_dim, one.patch_size) == (codebook_dim, patch_size))


_FLAN_T5_XL = TextEncoderSpec("google/flan-t5-xl", channels=2048, max_length=512, parameters=1_223_527_424)
_BSQ_D16 = AutoencoderSpec("bsq-d16", 16, 16, 109_970_579, ("infinity_vae_d16.pth",))
_BSQ_D32 = AutoencoderSpec("bsq-d32", 32, 16, 110_118_051, ("infinity_vae_d32reg.pth", "infinity_vae_d32_reg.pth"))
_BSQ_D56 = AutoencoderSpec("bsq-d14-patchify", 14, 8, 81_624_209, ("infinity_vae_d56_f8_14_patchify.pth",))
_INFINITY_HUB = "FoundationVision/Infinity"

register_model(
    ModelSpec(
        name="infinity-125m",
        family="infinity",
        layers=12,
        heads=8,
        head_dim=96,
        width=768,
        bits=16,
        parameters=125_148_800,
        autoencoder=_BSQ_D16,
        text_encoder=_FLAN_T5_XL,
        default_size="0.06M",
        patchify=False,
        files=("infinity_125M_256x256.pth",),
        repository=_INFINITY_HUB,
        profile="infinity-125m",
        sampling=SamplingDefaults(guidance_scale=3.0, temperature=0.5, top_k=900, top_p=0.97),
    )
)
register_model(
    ModelSpec(
        name="infinity-2b",
        family="infinity",
        layers=32,
        heads=16,
        head_dim=128,
        width=2048,
        bits=32,
        parameters=2_204_564_032,
        autoencoder=_BSQ_D32,
        text_encoder=_FLAN_T5_XL,
        default_size="1M",
        patchify=False,
        files=("infinity_2b_reg.pth",),
        repository=_INFINITY_HUB,
        profile="infinity-2b",
        sampling=SamplingDefaults(guidance_scale=3.0, temperature=0.5, top_k=900, top_p=0.97),
    )
)
register_model(
    ModelSpec(
        name="infinity-8b",
        family="infinity",
        layers=40,
        heads=28,
        head_dim=128,
        width=3584,
        bits=56,
        parameters=8_375_791_824,
        autoencoder=_BSQ_D56,
        text_encoder=_FLAN_T5_XL,
        default_size="1M",
        patchify=True,
        files=("infinity_8b_weights",),
        repository=_INFINITY_HUB,
        profile="infinity-8b",
        sampling=SamplingDefaults(guidance_scale=3.0, temperature=1.0, top_k=900, top_p=0.97),
    )
)
register_model(
    ModelSpec(
        name="infinity-8b-512",
        family="infinity",
        layers=40,
        heads=28,
        head_dim=128,
        width=3584,
        bits=56,
        parameters=8_375_791_824,
        autoencoder=_BSQ_D56,
        text_encoder=_FLAN_T5_XL,
        default_size="0.25M",
        patchify=True,
        files=("infinity_8b_512x512_weights",),
        repository=_INFINITY_HUB,
        profile="infinity-8b-512",
        sampling=SamplingDefaults(guidance_scale=3.0, temperature=1.0, top_k=900, top_p=0.97),
    )
)

_VQ_Z32 = AutoencoderSpec("vq-z32", 32, 16, 108_948_355, ("vae_ch160v4096z32.pth",), base_channels=160)
for _depth, _parameters, _sides in (
    (16, 310_283_520, SIDES_256),
    (20, 600_917_136, SIDES_256),
    (24, 1_033_399_360, SIDES_256),
    (30, 2_010_020_356, SIDES_256),
    (36, 2_353_893_904, SIDES_512),
):
    register_model(
        ModelSpec(
            name=f"var-d{_depth}",
            family="var",
            layers=_depth,
            heads=_depth,
            head_dim=64,
            width=64 * _depth,
            bits=12,
            parameters=_parameters,
            autoencoder=_VQ_Z32,
            text_encoder=None,
            default_size=None,
            patchify=False,
            files=(f"var_d{_depth}.pth",),
            repository="FoundationVision/var",
            profile=f"var-d{_depth}",
            sampling=SamplingDefaults(guidance_scale=1.5, temperature=1.0, top_k=900, top_p=0.96),
            sides=_sides,
        )
    )
