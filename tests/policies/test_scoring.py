"""Scores of the methods against naive arithmetic."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scalekv.cache.selection import survivors
from scalekv.errors import InvalidInput
from scalekv.planning import Schedule, Segment
from scalekv.policies import (
    POLICIES,
    Full,
    Policy,
    ScaleKV,
    SelectionView,
    SlidingWindow,
    SnapKV,
    StreamingLLM,
    make_policy,
)
from scalekv.policies.observation import patch_centers
from scalekv.policies.scoring import window_damage

SCHEDULE = Schedule.from_sides([1, 2, 8, 9])
SEGMENT = SCHEDULE[2]


def view(policy: Policy, seed: int = 0, dtype=torch.float32, rows: int = 2) -> SelectionView:
    generator = torch.Generator().manual_seed(seed)
    tokens = SCHEDULE.start(3)
    query, key, value = (torch.randn(rows, 3, tokens, 16, generator=generator).to(dtype) for _ in range(3))
    window = torch.tensor([5 + position for position in policy.observation(SEGMENT)], dtype=torch.long)
    return SelectionView(1, (0, 1, 2), SCHEDULE, SEGMENT, 30, key, value, query[:, :, window], window)


@pytest.mark.parametrize("queries", ["uniform:5", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_damage_is_what_dropping_a_token_does_to_the_outputs(dtype, queries):
    seen = view(SnapKV(queries=queries), dtype=dtype)
    seen = replace(seen, query=seen.query / 4)
    query, key, value = (part.double() for part in (seen.query, seen.key, seen.value))
    logits = query @ key.mT
    whole, expected = torch.softmax(logits, -1) @ value, torch.empty(2, 3, seen.tokens, dtype=torch.double)
    for token in range(seen.tokens):
        rest = [one for one in range(seen.tokens) if one != token]
        without = torch.softmax(logits[..., rest], -1) @ value[:, :, rest]
        expected[..., token] = (without - whole).square().sum((-1, -2))
    torch.testing.assert_close(window_damage(seen).double(), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("side", "rows"),
    [(20, [2, 7, 12, 17]), (24, [2, 8, 14, 20]), (32, [3, 11, 19, 27]), (40, [4, 14, 24, 34]), (48, [5, 17, 29, 41])],
)
def test_published_patch_centres(side, rows):
    expected = tuple(row * side + column for row in rows for column in rows)
    assert patch_centers(Segment(0, side, side)) == expected


def test_patch_centres_of_other_maps():
    assert patch_centers(Segment(0, 2, 3)) == (0, 1, 2, 3, 4, 5)
    tall = patch_centers(Segment(0, 8, 20))
    assert len(tall) == 16
    assert tall[:5] == (2, 7, 12, 17, 42)
    assert patch_centers(Segment(0, 20, 20), centered=True)[:4] == (42, 47, 52, 57)
    assert patch_centers(Segment(0, 1, 1)) == (0,)


def naive_attention(seen: SelectionView) -> torch.Tensor:
    return torch.softmax(seen.query.double() @ seen.key.double().mT, -1).sum(-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_score_is_the_softmax_of_the_window(dtype):
    policy = ScaleKV(pooling="none")
    seen = view(policy, dtype=dtype)
    score, expected = policy.score(seen), naive_attention(seen)
    window = [5 + position for position in policy.observation(SEGMENT)]
    rest = [index for index in range(seen.tokens) if index not in window]
    torch.testing.assert_close(score[..., rest].double(), expected[..., rest], atol=1e-5, rtol=1e-4)
    assert torch.isinf(score[..., window]).all()


@pytest.mark.parametrize(("pooling", "reduce"), [("average", "mean"), ("max", "amax")])
def test_pooling_runs_along_the_kept_sequence_before_the_window_is_set_apart(pooling, reduce):
    policy = ScaleKV(pooling=pooling)
    seen = view(policy)
    padded = torch.nn.functional.pad(naive_attention(seen), (2, 2), value=0.0)
    expected = getattr(padded.unfold(-1, 5, 1), reduce)(-1)
    score = policy.score(seen)
    window = [5 + position for position in policy.observation(SEGMENT)]
    rest = [index for index in range(seen.tokens) if index not in window]
    torch.testing.assert_close(score[..., rest].double(), expected[..., rest], atol=1e-5, rtol=1e-4)


def test_projection_score_is_the_released_code():
    """Logits over sqrt(head_dim), summed without softmax; window out before and after a max pool of 5."""
    policy = ScaleKV(scorer="projection", pooling="max")
    assert policy.projected_observation
    seen = view(policy)
    logits = (seen.query.double() @ seen.key.double().mT).sum(-2) / 4
    window = [5 + position for position in policy.observation(SEGMENT)]
    logits[..., window] = -torch.inf
    padded = torch.nn.functional.pad(logits, (2, 2), value=-torch.inf)
    expected = padded.unfold(-1, 5, 1).amax(-1)
    score = policy.score(seen)
    rest = [index for index in range(seen.tokens) if index not in window]
    torch.testing.assert_close(score[..., rest].double(), expected[..., rest], atol=1e-5, rtol=1e-4)
    assert (score[..., window] == torch.inf).all()


@pytest.mark.parametrize("scorer", ["attention", "projection"])
def test_a_window_larger_than_the_capacity_competes_like_all_others(scorer):
    policy = ScaleKV(scorer=scorer)
    roomy, tight = view(policy), replace(view(policy), capacity=15)
    assert torch.isinf(policy.score(roomy)).any()
    assert torch.isfinite(policy.score(tight)).all()


def test_published_vectors_of_the_plain_baselines():
    """Kept sets of 14 candidates in segments of 1, 4 and 9 tokens."""
    vectors = json.loads((Path(__file__).parents[1] / "data" / "baseline_vectors.json").read_text())
    schedule = Schedule.from_shapes([(1, 1), (2, 2), (3, 3), (4, 4)])
    key = torch.zeros(1, 1, 14, 4)
    for policy, name, capacity in ((SlidingWindow(), "sliding_B6", 6), (StreamingLLM(), "streaming_sink5_B8", 8)):
        seen = SelectionView(0, (0,), schedule, schedule[2], capacity, key, key)
        assert survivors(policy.score(seen), capacity).flatten().tolist() == vectors[name]


@pytest.mark.parametrize("name", POLICIES)
def test_every_method_says_what_it_is(name):
    policy = make_policy(name)
    assert (policy.name, bool(policy.source), bool(policy.summary)) == (name, True, True)
    assert policy.settings()["budget"] in ("10%", "100%")
    assert name == "full" or isinstance(make_policy(name.upper().replace("_", "-"), "5%"), POLICIES[name])


def test_a_method_that_never_scores_cannot_be_asked_to():
    with pytest.raises(TypeError, match="no score"):
        Full().score(view(ScaleKV()))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("nonsense", {}),
        ("scalekv", {"scorer": "magic"}),
        ("scalekv", {"pooling": "sum"}),
        ("scalekv", {"pool_width": 4}),
        ("scalekv", {"pool_width": 0}),
        ("scalekv", {"refiner_floor": -1}),
        ("scalekv", {"drafter_share": 1.5}),
        ("scalekv", {"drafter_share": "many"}),
        ("scalekv", {"pool_width": 5.0}),
        ("scalekv", {"exact_division": "no"}),
        ("scalekv", {"strict": "yes"}),
        ("random", {"seed": "a"}),
        ("streaming_llm", {"sink_segments": 2.5}),
        ("scalekv", {"no_such_setting": 1}),
        ("streaming_llm", {"sink_segments": -1}),
        ("sliding_window", {"budget": "lots"}),
    ],
)
def test_nonsense_settings_are_refused_in_one_sentence(name, settings):
    with pytest.raises(InvalidInput) as caught:
        make_policy(name, **settings)
    assert "\n" not in str(caught.value)
