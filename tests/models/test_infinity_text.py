"""Prompts to features."""

from __future__ import annotations

import logging

import pytest
import torch

from scalekv.models.infinity.text import encode_prompts, with_positive_prompt
from scalekv.pipelines import InfinityPipeline, tiny_pipeline


@pytest.fixture(scope="module")
def pipeline() -> InfinityPipeline:
    return tiny_pipeline()


def encode(pipeline: InfinityPipeline, prompts: list[str], max_length: int = 128):
    with torch.no_grad():
        return encode_prompts(prompts, pipeline.tokenizer, pipeline.text_encoder, max_length)


def test_features_are_compact_and_wide(pipeline: InfinityPipeline) -> None:
    text = encode(pipeline, ["abc", "", "fünf"])
    assert [tuple(row.shape) for row in text.features] == [(4, 128), (1, 128), (6, 128)]
    assert all(row.dtype == torch.float32 for row in text.features)
    assert text.truncated == []


def test_neighbours_do_not_matter(pipeline: InfinityPipeline) -> None:
    together = encode(pipeline, ["a cat", "a much longer prompt about dogs"]).features
    alone = [encode(pipeline, [prompt]).features[0] for prompt in ("a cat", "a much longer prompt about dogs")]
    assert all(torch.equal(*pair) for pair in zip(together, alone, strict=True))


def test_padding_does_not_matter(pipeline: InfinityPipeline) -> None:
    short, long = (encode(pipeline, ["a cat"], length).features[0] for length in (16, 128))
    torch.testing.assert_close(short, long, atol=1e-5, rtol=1e-5)


def test_long_prompts_are_cut_with_a_warning(pipeline: InfinityPipeline, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="scalekv"):
        text = encode(pipeline, ["x" * 15, "x" * 16, "x" * 9_999 + " end"], 16)
    assert [len(row) for row in text.features] == [16, 16, 16]
    assert text.truncated == [1, 2]
    assert "Prompt 2 is longer than the 16 tokens" in caplog.text
    assert "end" in caplog.text


def test_the_positive_prompt_is_for_people() -> None:
    assert with_positive_prompt("a woman in red", "smooth skin.") == "a woman in red smooth skin."
    assert with_positive_prompt("many trees", "smooth skin.") == "many trees smooth skin."
    assert with_positive_prompt("a fox", "smooth skin.") == "a fox"
    assert with_positive_prompt("a woman", None) == "a woman"
    assert with_positive_prompt("a woman smooth skin.", "smooth skin.") == "a woman smooth skin."
