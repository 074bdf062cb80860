"""Files in the published layouts, made from tiny random networks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.infinity_tiny import tiny_autoencoder, tiny_transformer
from scalekv.models.infinity import BSQAutoencoder, InfinityTransformer

State = dict[str, Tensor]


def transformer_state(**flags: Any) -> State:
    """A transformer's tensors under their published names, the leftovers of training included."""
    network = tiny_transformer(**flags)
    return {**copies(network), "lvl_1L": torch.zeros(1, 9, dtype=torch.int64)}


def autoencoder_state(**sizes: Any) -> State:
    """A tokenizer's tensors under their published names, the unused tables of its quantiser included."""
    network = tiny_autoencoder(**sizes)
    powers = 2 ** torch.arange(network.config.codebook_bits)
    return {**copies(network), "quantizer.lfq.mask": powers, "quantize.lfq.mask": powers.clone()}


def copies(network: InfinityTransformer | BSQAutoencoder) -> State:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def write_pth(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def write_shards(folder: Path, state: Mapping[str, Tensor], shards: int = 3) -> Path:
    """A sharded folder with its index, as published for the 8B models."""
    folder.mkdir(parents=True, exist_ok=True)
    names, places = sorted(state), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        own = names[shard::shards]
        save_file({name: state[name].contiguous() for name in own}, folder / file)
        places |= dict.fromkeys(own, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def original_spelling(name: str) -> str:
    """A tokenizer's name as files spell it that lack the wrapper level."""
    parts = name.split(".")
    if len(parts) > 3 and parts[-2] in ("conv", "norm") and parts[-1] in ("weight", "bias"):
        del parts[-2]
    return ".".join(parts)


def same(network: torch.nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether all tensors of ``network`` equal those of ``state``."""
    return all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
