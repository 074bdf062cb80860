"""What a file or folder is, told without loading it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models.checkpoint_files import autoencoder_state, transformer_state, write_pth, write_shards
from scalekv.errors import CheckpointError, ProfileError
from scalekv.models.infinity import InfinityTransformer
from scalekv.models.inspection import inspect_checkpoint
from scalekv.pipelines import tiny_pipeline
from scalekv.planning import Profile


def test_a_transformer_of_no_published_size(tmp_path: Path) -> None:
    info = inspect_checkpoint(write_pth(tmp_path / "t.pth", transformer_state()))
    assert (info.kind, info.bits, info.dtypes, info.models) == ("infinity transformer", 6, ("float32",), ())
    state = transformer_state()
    constants = ("lvl_1L", "zero_k_bias")
    assert info.parameters == sum(one.numel() for name, one in state.items() if not name.endswith(constants))
    assert info.config is not None
    assert info.config["depth"] == 4
    assert "no published size" in info.description
    json.dumps(info.to_dict())


def test_published_sizes_are_recognised(tmp_path: Path) -> None:
    with torch.device("meta"):
        network = InfinityTransformer(depth=32, width=2048, num_heads=16, codebook_bits=32)
    thin = {name: torch.zeros(1, dtype=torch.bfloat16).expand(one.shape) for name, one in network.state_dict().items()}
    info = inspect_checkpoint(write_pth(tmp_path / "whatever.pth", thin))
    assert info.models == ("infinity-2b",)
    assert info.parameters == 2_204_564_032
    assert info.dtypes == ("bfloat16",)
    assert info.autoencoders == ("infinity_vae_d32reg.pth",)
    assert info.profiles == ("infinity-2b",)


def test_models_of_one_shape_are_told_apart_by_the_folder(tmp_path: Path) -> None:
    with torch.device("meta"):
        network = InfinityTransformer(depth=40, width=3584, num_heads=28, codebook_bits=14, patchify=True)
    thin = {name: torch.zeros(1).expand(one.shape) for name, one in network.state_dict().items()}
    info = inspect_checkpoint(write_pth(tmp_path / "my8b.pth", thin))
    assert info.models == ("infinity-8b", "infinity-8b-512")
    assert info.config is not None
    assert (info.bits, info.config["patchify"], info.config["codebook_bits"]) == (56, True, 14)
    info = inspect_checkpoint(write_pth(tmp_path / "infinity_8b_512x512_weights", thin))
    assert info.models == ("infinity-8b-512",)


def test_a_sharded_folder(tmp_path: Path) -> None:
    assert inspect_checkpoint(write_shards(tmp_path / "w", transformer_state())).kind == "infinity transformer"


def test_a_training_checkpoint_is_its_tokenizer(tmp_path: Path) -> None:
    info = inspect_checkpoint(write_pth(tmp_path / "v.pth", {"ema": {}, "vae": autoencoder_state()}))
    assert (info.kind, info.bits, info.autoencoders) == ("infinity vae", 6, ())
    assert info.config is not None
    assert info.config["patch_size"] == 4


def test_a_pipeline_folder_and_its_profile(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    schedule = pipeline.scheduler.resolve().schedule
    pipeline.profile = Profile("tiny", 6, 4, schedule, roles={2: (0, 1)})
    pipeline.save_pretrained(tmp_path / "p")
    info = inspect_checkpoint(tmp_path / "p")
    assert info.kind == "pipeline folder"
    assert info.components is not None
    assert info.components["text_encoder"] == "T5EncoderModel"
    assert info.profiles == ("profile.json",)
    assert info.parameters == sum(one.numel() for one in pipeline.transformer.parameters())
    profile = inspect_checkpoint(tmp_path / "p" / "profile.json")
    assert profile.kind == "profile"
    assert "calibration of tiny: 6 layers, 4 heads, 10 segments up to 16x16 tokens" in profile.description


def test_a_foreign_json_is_no_profile(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ProfileError, match="is not a scalekv profile"):
        inspect_checkpoint(tmp_path / "a.json")


def test_half_a_pipeline_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "InfinityPipeline"}')
    with pytest.raises(CheckpointError, match="is no complete pipeline folder"):
        inspect_checkpoint(tmp_path)
