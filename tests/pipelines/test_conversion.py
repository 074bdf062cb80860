"""Official files to a pipeline, in memory and as a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models.checkpoint_files import copies, write_pth, write_shards
from pipelines.helpers import draw, equal, quiet_pipeline
from scalekv.errors import CheckpointError, InvalidInput
from scalekv.models.infinity import InfinityTransformer
from scalekv.pipelines import InfinityPipeline, convert, load_pipeline


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "patchify"])
def original(request: pytest.FixtureRequest) -> InfinityPipeline:
    return quiet_pipeline(patchify=request.param)


@pytest.fixture
def files(original: InfinityPipeline, tmp_path: Path) -> tuple[Path, Path, Path]:
    encoder = tmp_path / "t5"
    original.text_encoder.save_pretrained(encoder)
    original.tokenizer.save_pretrained(encoder)
    return (
        write_pth(tmp_path / "t.pth", copies(original.transformer)),
        write_pth(tmp_path / "v.pth", {"vae": copies(original.vae)}),
        encoder,
    )


def with_scheduler_of(pipeline: InfinityPipeline, original: InfinityPipeline) -> InfinityPipeline:
    """Random weights have no published size; everything else comes from the files."""
    pipeline.register_modules(scheduler=original.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_single_files_draw_the_same(original: InfinityPipeline, files: tuple[Path, Path, Path]) -> None:
    transformer, vae, encoder = files
    pipeline = InfinityPipeline.from_single_file(transformer, vae, text_encoder=encoder)
    assert pipeline.scheduler.config.pixels_per_token == 16
    assert equal(draw(with_scheduler_of(pipeline, original)), draw(original))


def test_a_converted_folder_draws_the_same(
    original: InfinityPipeline, files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    transformer, vae, encoder = files
    folder = convert(transformer, vae, tmp_path / "deep" / "out", text_encoder=encoder, max_shard_size="200KB")
    assert folder == tmp_path / "deep" / "out"
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    assert [one.name for one in folder.parent.iterdir()] == ["out"]
    assert equal(draw(with_scheduler_of(load_pipeline(folder), original)), draw(original))


def test_the_text_encoder_is_optional(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    transformer, vae, _ = files
    folder = convert(transformer, vae, tmp_path / "out", dtype="bfloat16")
    index = json.loads((folder / "model_index.json").read_text())
    assert index["text_encoder"] == index["tokenizer"] == [None, None]
    pipeline = load_pipeline(folder)
    assert pipeline.text_encoder is None
    assert pipeline.attention_dtype == torch.bfloat16
    assert pipeline.transformer.head.weight.dtype == pipeline.vae.dtype == torch.float32


def test_sharded_folders_convert(original: InfinityPipeline, files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "weights", copies(original.transformer))
    pipeline = load_pipeline(convert(shards, files[1], tmp_path / "out"))
    assert pipeline.transformer.config.patchify == original.transformer.config.patchify


def test_existing_folders_are_kept(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    transformer, vae, _ = files
    folder = convert(transformer, vae, tmp_path / "out")
    with pytest.raises(InvalidInput, match="exists already; choose another folder, or allow overwriting"):
        convert(transformer, vae, folder)
    (folder / "mine.txt").write_text("old")
    convert(transformer, vae, folder, overwrite=True)
    assert not (folder / "mine.txt").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("precious")
    with pytest.raises(InvalidInput, match="is no pipeline folder and is not overwritten"):
        convert(transformer, vae, tmp_path / "other", overwrite=True)
    with pytest.raises(InvalidInput, match="is a file"):
        convert(transformer, vae, transformer)
    (tmp_path / "empty").mkdir()
    convert(transformer, vae, tmp_path / "empty")


def test_a_failed_conversion_leaves_the_old_folder(
    files: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer, vae, _ = files
    folder = convert(transformer, vae, tmp_path / "new" / "out")
    before = sorted(path.name for path in folder.iterdir())

    def fail(self: InfinityPipeline, folder: Path, **_: object) -> None:
        folder.mkdir()
        (folder / "half").write_text("")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(InfinityPipeline, "save_pretrained", fail)
    with pytest.raises(InvalidInput, match=r"Cannot write .*out: No space left on device; choose another place"):
        convert(transformer, vae, folder, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert [one.name for one in folder.parent.iterdir()] == ["out"]


def test_files_in_the_wrong_places(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    transformer, vae, _ = files
    with pytest.raises(CheckpointError, match="is an infinity transformer, expected an infinity vae"):
        convert(vae, transformer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_another_model(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    other = quiet_pipeline()
    bits = {
        name: tensor[:6] if name.endswith("encoder.conv_out.conv.bias") else tensor
        for name, tensor in copies(other.vae).items()
    }
    bits["encoder.conv_out.conv.weight"] = bits["encoder.conv_out.conv.weight"][:6]
    bits["decoder.conv_in.conv.weight"] = bits["decoder.conv_in.conv.weight"][:, :6].clone()
    vae = write_pth(tmp_path / "other.pth", bits)
    with pytest.raises(CheckpointError, match="The VAE does not fit the transformer: word_embed.weight of .* 6 bits"):
        convert(files[0], vae, tmp_path / "out")


def test_a_text_encoder_that_is_none(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="Cannot load the text encoder"):
        convert(files[0], files[1], tmp_path / "out", text_encoder=tmp_path / "nothing")


def test_a_text_encoder_of_another_width(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    T5EncoderModel(T5Config(vocab_size=384, d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=4)).save_pretrained(
        tmp_path / "narrow"
    )
    ByT5Tokenizer().save_pretrained(tmp_path / "narrow")
    with pytest.raises(CheckpointError, match="its d_model is 64, expected 128"):
        convert(files[0], files[1], tmp_path / "out", text_encoder=tmp_path / "narrow")


def test_an_unknown_model_name(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="No known model is called 'infinity-3b'"):
        convert(files[0], files[1], tmp_path / "out", model="infinity-3b")


def test_half_precision_keeps_what_published_runs_keep(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    transformer, vae, encoder = files
    direct = InfinityPipeline.from_single_file(transformer, vae, text_encoder=encoder, dtype="bfloat16")
    folder = convert(transformer, vae, tmp_path / "out", text_encoder=encoder, dtype="bfloat16")
    again = load_pipeline(folder)
    left, right = direct.transformer.state_dict(), again.transformer.state_dict()
    assert all(torch.equal(left[name], right[name]) and left[name].dtype == right[name].dtype for name in left)
    assert right["word_embed.weight"].dtype == torch.float32
    for pipeline in (direct, again):
        pipeline.set_progress_bar_config(disable=True)
    settings = {"size": "0.06M", "guidance_scale": 2.0}
    assert equal(draw(direct, **settings), draw(again, **settings))


def types(transformer: torch.nn.Module) -> dict[str, torch.dtype]:
    return {name: tensor.dtype for name, tensor in transformer.state_dict().items()}


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_all_ways_to_load_in_a_type_agree(
    stored: torch.dtype, original: InfinityPipeline, files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    _, vae, _ = files
    narrow = {name: tensor.to(stored) for name, tensor in copies(original.transformer).items()}
    transformer = write_pth(tmp_path / "stored.pth", narrow)
    wide = convert(transformer, vae, tmp_path / "wide")
    found = [
        InfinityPipeline.from_single_file(transformer, vae, dtype="bfloat16").transformer,
        load_pipeline(convert(transformer, vae, tmp_path / "half", dtype="bfloat16")).transformer,
        load_pipeline(wide, dtype="bfloat16").transformer,
        InfinityPipeline.from_pretrained(wide, torch_dtype=torch.bfloat16).transformer,
        InfinityTransformer.from_pretrained(wide / "transformer", torch_dtype=torch.bfloat16),
    ]
    for one in found:
        inside = {name: name.startswith("block_chunks.") for name in types(one)}
        assert types(one) == {name: torch.bfloat16 if inside[name] else torch.float32 for name in inside}
