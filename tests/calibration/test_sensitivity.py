"""How draws depend on the outputs of heads, and what merging and codecs do to these: by hand and by other ways."""

from __future__ import annotations

import pytest
import torch

from scalekv import calibrate
from scalekv.cache import KVCache
from scalekv.calibration import AttentionStatistics, RecordingCache
from scalekv.calibration.measures import coding_loss, merging_loss
from scalekv.models.infinity import InfinityScheduler
from scalekv.pipelines.infinity import InfinityPipeline
from scalekv.pipelines.tiny import tiny_pipeline
from scalekv.pipelines.tiny_var import tiny_var_pipeline
from scalekv.planning import CacheGeometry, Profile, Schedule
from scalekv.planning.curves import curve_ranks
from scalekv.policies import Bytewise, Full
from scalekv.policies.grouping import nearest_groups

GEOMETRY = CacheGeometry(2, 3, 4, Schedule.from_sides([1, 2, 3]), batch=2, guidance=2, element_bytes=4)
BATCH = GEOMETRY.batch


def given(segment, layer: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(10 * segment.index + layer)
    shape = (3, GEOMETRY.rows, GEOMETRY.heads, segment.tokens, GEOMETRY.head_dim)
    return list(torch.randn(shape, generator=generator).unbind())


def weights(seed: int) -> torch.Tensor:
    """``(segments, layers, heads, head_dim)``, too small to move a probability."""
    return 1e-4 * torch.randn(3, 2, 3, 4, generator=torch.Generator().manual_seed(seed))


def differentiated(*, trained: bool, draws: int = 1) -> Profile:
    """Logits of every draw are 0 and a sum over the heads of all layers; probabilities are 1/2."""
    statistics = AttentionStatistics(GEOMETRY)
    guided, unguided = weights(0), weights(1)
    with RecordingCache(GEOMETRY, statistics, dtype=torch.float32, sensitivity=True) as cache:
        assert cache.differentiates
        for segment in GEOMETRY.schedule:
            cache.begin(segment)
            with torch.enable_grad():
                logit = torch.zeros(BATCH, segment.tokens)
                for layer in range(GEOMETRY.layers):
                    query, key, value = given(segment, layer)
                    output = cache.attend(layer, query.requires_grad_(trained), key, value)
                    logit = logit + torch.einsum("bhtd,hd->bt", output[:BATCH], guided[segment.index, layer])
                    logit = logit - torch.einsum("bhtd,hd->bt", output[BATCH:], unguided[segment.index, layer])
                logits = torch.stack([torch.zeros_like(logit), logit], -1).repeat(1, 1, draws)
            cache.differentiate(logits, 2)
    return statistics.profile("by hand")


@pytest.mark.parametrize("trained", [True, False])
def test_squared_gradients_of_a_fair_draw(trained):
    """The log-likelihood of either value has the gradient w/2, up to its sign."""
    found = differentiated(trained=trained).head_statistics
    for name, seed in (("sensitivity", 0), ("sensitivity_unguided", 1)):
        expected = weights(seed).square().sum(-1) / 4
        torch.testing.assert_close(torch.tensor(found[name]), expected, rtol=2e-3, atol=0)


def test_gradients_of_several_draws_of_a_token_add_up_before_they_are_squared():
    """Two fair draws that agree give w, those that do not nothing: w^2/2 in the mean."""
    found = torch.tensor(differentiated(trained=True, draws=2).head_statistics["sensitivity"])
    shares = found / (weights(0).square().sum(-1) / 4)
    agreeing = shares[2] / 4 * (BATCH * 9)
    torch.testing.assert_close(agreeing, agreeing.round(), atol=0.02, rtol=0)
    assert 0.2 < float(shares[2, 0, 0]) / 4 < 0.8


def test_history_counts_as_given_and_outputs_are_those_of_the_full_cache():
    statistics = AttentionStatistics(GEOMETRY)
    plain = KVCache(Full().plan(GEOMETRY), Full(), dtype=torch.float32)
    with RecordingCache(GEOMETRY, statistics, dtype=torch.float32, sensitivity=True) as cache, plain:
        early = None
        for segment in GEOMETRY.schedule:
            cache.begin(segment)
            plain.begin(segment)
            for layer in range(GEOMETRY.layers):
                query, key, value = given(segment, layer)
                with torch.enable_grad():
                    output = cache.attend(layer, query, key.requires_grad_(), value)
                early = early if early is not None else key
                assert torch.equal(output, plain.attend(layer, *given(segment, layer)))
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(output.sum(), [early], allow_unused=True)
        assert gradient is None


def test_without_sensitivity_there_are_no_gradients():
    with RecordingCache(GEOMETRY, AttentionStatistics(GEOMETRY), dtype=torch.float32) as cache:
        assert not cache.differentiates
        cache.begin(GEOMETRY.schedule[0])
        assert not cache.attend(0, *given(GEOMETRY.schedule[0], 0)).requires_grad


# ----------------------------------------------------------------------------------------------------- whole pictures


def infinity() -> InfinityPipeline:
    made = tiny_pipeline(depth=2)
    shapes = {"schedule": [[1, 1], [2, 2], [3, 3], [4, 4]], "extent": [64, 64]}
    scheduler = InfinityScheduler.from_config({**made.scheduler.config, **shapes})
    return InfinityPipeline(**{**made.components, "scheduler": scheduler})


class Watched:
    """A pipeline, and the pictures that it draws."""

    def __init__(self, pipeline) -> None:
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline, self.transformer, self.drawn = pipeline, pipeline.transformer, []

    def __getattr__(self, name):
        return getattr(self.pipeline, name)

    def __call__(self, *args, **options):
        self.drawn.append(self.pipeline(*args, **options))
        return self.drawn[-1]


FAMILIES = {
    "infinity": (infinity, ["a red cube", "two spheres"]),
    "var": (lambda: tiny_var_pipeline(depth=2, sides=(1, 2, 3, 4)), [207, 3]),
}


@pytest.fixture(scope="module", params=FAMILIES)
def both(request):
    """The watched pipeline, and what is measured with sensitivity and without."""
    make, prompts = FAMILIES[request.param]
    pipeline = Watched(make())
    measured = [calibrate(pipeline, prompts, name="tiny", sensitivity=with_it) for with_it in (True, False)]
    return pipeline, *measured


def test_the_picture_is_the_same(both):
    drawn = both[0].drawn
    assert len(drawn) == 4
    for one, other in zip(drawn[:2], drawn[2:], strict=True):
        assert torch.equal(one.images, other.images)
        assert not one.images.requires_grad
    assert not torch.equal(drawn[0].images, drawn[1].images)


def test_all_other_tables_are_the_same(both):
    _, measured, plain = both
    for kind in ("statistics", "source_statistics", "curves"):
        assert getattr(measured, kind) == getattr(plain, kind)
    extra = {"sensitivity", "sensitivity_unguided"}
    assert set(measured.head_statistics) - set(plain.head_statistics) == extra
    assert all(measured.head_statistics[name] == table for name, table in plain.head_statistics.items())


def test_every_head_of_every_segment_matters(both):
    """The network's weights are random: none can be without any effect. VAR draws its first segment unguided."""
    tables = both[1].head_statistics
    cells = [*tables["sensitivity"], *tables["sensitivity_unguided"][1:]]
    assert all(number > 0 for cell in cells for row in cell for number in row)


def test_what_is_measured_plans_bytewise(both):
    pipeline, measured, _ = both
    geometry = pipeline.pipeline.cache_geometry(measured.schedule)
    plan = Bytewise("20%", codec="none").plan(geometry, measured)
    assert len({group.capacity for groups in plan.layers for group in groups}) > 1


def test_frozen_weights_are_measured_alike(both):
    pipeline = both[0]
    prompt = FAMILIES["var" if "VAR" in type(pipeline.pipeline).__name__ else "infinity"][1][:1]
    alone = calibrate(pipeline, prompt, name="tiny")
    pipeline.transformer.requires_grad_(False)
    frozen = calibrate(pipeline, prompt, name="tiny")
    pipeline.transformer.requires_grad_(True)
    assert all(parameter.grad is None for parameter in pipeline.transformer.parameters())
    for name in ("sensitivity", "sensitivity_unguided"):
        expected, found = (torch.tensor(one.head_statistics[name]) for one in (alone, frozen))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-12)


# -------------------------------------------------------------------------------------------- losses of attention


SCHEDULE = Schedule.from_sides([2, 3, 9])


def attended(head_dim: int = 8, heads: int = 3):
    """Query of the last segment, key and value of all, its history."""
    generator = torch.Generator().manual_seed(3)
    segment = SCHEDULE[2]
    query = torch.randn(heads, segment.tokens, head_dim, generator=generator)
    key, value = torch.randn(2, heads, SCHEDULE.start(3), head_dim, generator=generator)
    return query, key, value, segment, SCHEDULE.start(2)


def test_merging_loss_is_that_of_means_in_the_place_of_every_token():
    query, key, value, segment, history = attended()
    found = merging_loss(query, key, value, segment, history)
    ranks = curve_ranks(history)
    assert found.shape == (3, len(ranks))
    assert not found[:, -1].any()
    assert (found[:, :-1] > 0).all()
    watching = [(2 * index + 1) * 81 // 128 for index in range(64)]
    for head in range(3):
        own_query, own_key, own_value = query[head, watching].double(), key[head].double(), value[head].double()
        exact = torch.softmax(own_query @ own_key.mT, -1) @ own_value
        for point, kept in enumerate(ranks[:-1]):
            past = [part[None, head : head + 1, :history] for part in (key, value)]
            groups = nearest_groups(*past, torch.ones(1, 1, history), kept)[0, 0].tolist()
            keys, values = own_key.clone(), own_value.clone()
            for token, group in enumerate(groups):
                members = [other for other in range(history) if groups[other] == group]
                keys[token], values[token] = own_key[members].mean(0), own_value[members].mean(0)
            error = torch.softmax(own_query @ keys.mT, -1) @ values - exact
            expected = error.square().sum(-1).mean()
            torch.testing.assert_close(found[head, point].double(), expected, rtol=1e-4, atol=1e-8)


def test_merging_loss_of_like_tokens_is_nothing():
    query, key, value, segment, history = attended()
    key[:, :history], value[:, :history] = key[:, :1], value[:, :1]
    assert merging_loss(query, key, value, segment, history).max() < 1e-10


def test_coding_loss_falls_with_bits():
    losses = coding_loss(*attended(head_dim=64))
    assert set(losses) == {f"{half}_{name}" for half in ("key", "value") for name in ("int8", "int6", "int4", "fp8")}
    for half in ("key", "value"):
        eight, six, four = (losses[f"{half}_int{bits}"] for bits in (8, 6, 4))
        assert eight.shape == (3,)
        assert (eight > 0).all()
        assert (eight < six / 4).all()
        assert (six < four / 4).all()
        assert (eight < losses[f"{half}_fp8"]).all()


def test_coding_loss_is_of_the_history_only_and_of_codecs_that_suit_the_heads():
    query, key, value, segment, history = attended(head_dim=6)
    losses = coding_loss(query, key, value, segment, history)
    assert set(losses) == {f"{half}_{name}" for half in ("key", "value") for name in ("int8", "int4", "fp8")}
    key[:, :history], value[:, :history] = 0, 0
    assert not any(one.any() for one in coding_loss(query, key, value, segment, history).values())
