"""Tiny VAR networks with settled random weights, and files in the published layout made from them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from parity.golden import ConcatCache
from scalekv.models.var import VARTransformer, VQAutoencoder
from scalekv.models.var.generation import Generation, generate

SIDES = (1, 2, 3, 5)
FLAGS: list[dict[str, Any]] = [
    {},
    {"shared_aln": True},
    {"attn_l2_norm": False},
    {"shared_aln": True, "attn_l2_norm": False},
    {"mlp_ratio": 2.5, "norm_eps": 1e-5},
]


def tiny_transformer(**flags: Any) -> VARTransformer:
    sizes = {"depth": 3, "width": 64, "num_heads": 4, "vocab_size": 24, "latent_channels": 6, "num_classes": 5}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = VARTransformer(**{"patch_nums": SIDES, **sizes, **flags}).eval()
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name.endswith(("q_bias", "v_bias", "head.bias", "scale_mul_1H11")):
                    parameter += torch.randn_like(parameter)
            nn.init.normal_(network.class_emb.weight)
    return network


def tiny_autoencoder(**sizes: Any) -> VQAutoencoder:
    defaults = {
        "vocab_size": 24,
        "latent_channels": 6,
        "base_channels": 24,
        "channel_multipliers": (1, 1, 2),
        "num_res_blocks": 1,
        "num_scales": len(SIDES),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VQAutoencoder(**{**defaults, **sizes}).eval()


def transformer_state(**flags: Any) -> dict[str, Tensor]:
    """A transformer's tensors under their published names, the tables of training included."""
    network = tiny_transformer(**flags)
    levels = torch.cat([torch.full((side * side,), index) for index, side in enumerate(network.config.patch_nums)])
    mask = torch.where(levels[:, None] >= levels[None], 0.0, -torch.inf)
    tables = {"lvl_1L": levels[None], "attn_bias_for_masking": mask[None, None]}
    return {**copies(network), **tables}


def copies(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(
    network: VARTransformer, labels: list[int] | None = None, cache: Any = None, seed: int = 0, **options: Any
) -> Generation:
    """Draw with guidance and seed 0, unless told otherwise."""
    settings = {"guidance": 2.0, "generator": seeded(seed), **options}
    guided = settings["guidance"] != 0
    condition = network.prepare_classes(labels or [1], guided)
    return generate(network, condition, tiny_autoencoder().codebook(), cache or ConcatCache(), **settings)
