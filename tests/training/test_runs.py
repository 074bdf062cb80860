"""A run that is killed and started again ends where it would have ended."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from training.encode import describe, encode
from training.norms import QuickGroupNorm, _GroupNorm, quicken
from training.optimizer import Muon, orthogonal
from training.presets import Stage, TokenizerRecipe, TransformerRecipe
from training.runs import Crew, Plan, Run, pace, seed_step
from training.text import features, token_ids
from training.tokenizer import TokenizerTask, psnr, reconstruct
from training.tokenizer import build as build_tokenizer
from training.transformer import TransformerTask, assemble, begin_with

from scalekv.errors import InvalidInput
from training import data, text

CPU = torch.device("cpu")
PLAN = Plan(steps=4, batch=2, rate=1e-3, muon=1e-3, warmup=2, sheet_every=100, checkpoint_every=1e9)
TOKENIZER = TokenizerRecipe(PLAN, bits=8, base_channels=24, multipliers=(1, 1, 1, 1), crop_steps=2)
STAGES = (Stage(1, 2, 4), Stage(1, 3, 3))
TRANSFORMER = TransformerRecipe(PLAN, STAGES, depth=4, width=32, heads=2, text_layers=1)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "heldout"):
        data.draw(folder, split, 6, 0)
    return folder


@pytest.fixture(scope="module")
def latents(tmp_path_factory, pictures):
    folder = tmp_path_factory.mktemp("latents")
    for split in ("train", "heldout"):
        encode(build_tokenizer(TOKENIZER), pictures, split, folder, CPU)
        describe(split, 6, folder, 0)
    return folder


@pytest.fixture
def tokenizer_task(pictures):
    return lambda: TokenizerTask(TOKENIZER, pictures, CPU)


@pytest.fixture
def transformer_task(latents, monkeypatch):
    monkeypatch.setattr("training.transformer.SHEET", 2)
    return lambda: TransformerTask(TRANSFORMER, latents, build_tokenizer(TOKENIZER), CPU)


def weights(run):
    return [*run.parameters, *run.averaged]


@pytest.mark.parametrize("kind", ["tokenizer_task", "transformer_task"])
def test_a_resumed_run_ends_in_the_same_place(kind, request, tmp_path):
    make = request.getfixturevalue(kind)
    whole = Run(make(), tmp_path / "whole")
    whole.train(4)
    first = Run(make(), tmp_path / "parts")
    first.train(3)
    torch.rand(5)
    second = Run(make(), tmp_path / "parts")
    assert second.step == 3
    second.train(4)
    assert second.step == 4
    for one, other in zip(weights(whole), weights(second), strict=True):
        assert torch.equal(one, other)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


class Toy:
    """Numbers to one number; the last weight is used by the first half of a batch only."""

    plan = Plan(steps=6, batch=4, rate=0.1, warmup=1, sheet_every=100, checkpoint_every=1e9)
    adam = ()

    def __init__(self, crew: Crew) -> None:
        torch.manual_seed(0)
        self.crew, self.network = crew, torch.nn.ParameterList([torch.zeros(3), torch.zeros(1)])

    def loss(self, step):
        rows = torch.randn(self.plan.batch, 3, generator=torch.Generator().manual_seed(step))
        drawn = rows @ self.network[0]
        errors = [(one - 1 + (self.network[1][0] if row < 2 else 0)).square() for row, one in enumerate(drawn)]
        return torch.stack(errors[self.crew.share(self.plan.batch)]).mean(), {}

    def watch(self, step, folder):
        return {}


def work(rank: int, folder, store: str) -> None:
    """One process of two; the second is asked to stop in its fourth step."""
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    task = Toy(Crew(rank, 2))
    run = Run(task, folder / "crew", task.crew)
    run.train(3)
    run.asked = rank == 1
    run.train()
    assert (run.step, run.stopping) == (4, True)
    torch.distributed.destroy_process_group()


def test_processes_share_a_batch_and_stop_together(tmp_path):
    torch.multiprocessing.spawn(work, (tmp_path, str(tmp_path / "store")), nprocs=2)
    alone = Run(Toy(Crew()), tmp_path / "alone")
    alone.train(4)
    together = Run(Toy(Crew()), tmp_path / "crew")
    assert together.step == 4
    assert alone.parameters[1].abs() > 0
    for one, other in zip(weights(alone), weights(together), strict=True):
        torch.testing.assert_close(one, other)
    assert len((tmp_path / "crew" / "log.jsonl").read_text().splitlines()) == 4


def test_shares_cover_a_batch():
    for size in (1, 5, 8):
        parts = [Crew(rank, 3).share(size) for rank in range(3)]
        assert [row for part in parts for row in range(size)[part]] == list(range(size))


def test_stages_follow_each_other():
    assert [TRANSFORMER.at(step) for step in range(4)] == [(2, 4, 0), (3, 3, 0), (9, 2, 0), (9, 2, 1)]
    assert TRANSFORMER.lengths == (2, 3, 9)


def test_training_goes_on_from_a_trained_pipeline(transformer_task, tmp_path):
    task = transformer_task()
    pipeline = assemble(task.network, task.vae, task.tokenizer)
    pipeline.save_pretrained(tmp_path)
    other = transformer_task()
    torch.nn.init.normal_(other.transformer.head.weight)
    assert not torch.equal(other.transformer.head.weight, task.transformer.head.weight)
    begin_with(other, tmp_path)
    for name, value in task.network.state_dict().items():
        assert torch.equal(value, other.network.state_dict()[name]), name


def test_a_text_encoder_that_begins_again_keeps_its_words_and_tells_where_they_stand(transformer_task, tmp_path):
    task = transformer_task()
    assemble(task.network, task.vae, task.tokenizer).save_pretrained(tmp_path)
    other = transformer_task()
    other.recipe = replace(other.recipe, new_text=True)
    begin_with(other, tmp_path)
    one, two = (
        torch.from_numpy(token_ids(other.tokenizer, [caption]).astype("int64"))
        for caption in ("a red ball and a blue cube", "a blue ball and a red cube")
    )

    def words(part, ids):
        states, real = features(part.network["text_encoder"], ids)
        return states[real]

    assert torch.cosine_similarity(words(task, one), words(other, one)).min() > 0.5
    ball = 2
    apart = words(other, one)[ball] - words(other, two)[ball]
    assert apart.norm() > 0.1 * words(other, one)[ball].norm()


def test_a_recipe_may_leave_most_weights_as_they_are(transformer_task, latents, tmp_path):
    recipe = replace(TRANSFORMER, learns=("text_encoder.",))
    run = Run(TransformerTask(recipe, latents, build_tokenizer(TOKENIZER), CPU), tmp_path)
    before = {name: value.clone() for name, value in run.task.network.state_dict().items()}
    run.train(2)
    changed = {name for name, value in run.task.network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("text_encoder.") for name in changed)


def test_polishing_leaves_the_encoder_alone(pictures, tmp_path):
    trained = build_tokenizer(replace(TOKENIZER, plan=replace(PLAN, seed=5)))
    task = TokenizerTask(TOKENIZER, pictures, CPU, trained)
    for name, value in trained.state_dict().items():
        assert torch.equal(value, task.network.state_dict()[name]), name
    Run(task, tmp_path).train(2)
    for name, value in trained.state_dict().items():
        assert torch.equal(value, task.network.state_dict()[name]) == name.startswith("encoder"), name


def test_another_recipe_is_refused(tokenizer_task, tmp_path):
    Run(tokenizer_task(), tmp_path).save()
    task = tokenizer_task()
    task.plan = Plan(steps=5, batch=2, rate=2e-3)
    with pytest.raises(InvalidInput, match="another recipe"):
        Run(task, tmp_path)


def test_averaged_weights_come_and_go(tokenizer_task, tmp_path):
    run = Run(tokenizer_task(), tmp_path)
    run.train(2)
    before = [one.detach().clone() for one in run.parameters]
    with run.averaged_weights():
        assert all(torch.equal(a, b) for a, b in zip(run.averaged, run.parameters, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, run.parameters, strict=True))


def test_every_epoch_visits_everything_once():
    seen = np.concatenate([data.batch_indices(step, 4, 10, 0) for step in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert list(seen[:10]) != list(seen[10:])


def test_the_pace_rises_and_falls():
    plan = Plan(steps=100, batch=1, rate=1.0, warmup=10, final_rate=0.1)
    paces = [pace(step, plan) for step in range(100)]
    assert paces[0] == 0.1
    assert max(paces) == paces[10] == 1.0
    assert paces[-1] == pytest.approx(0.1, abs=1e-3)


def test_the_quick_norm_has_the_gradients_of_the_plain_one():
    seed_step(0, 0)
    norm = torch.nn.GroupNorm(4, 16, eps=1e-6)
    torch.nn.init.normal_(norm.weight)
    states, gradient = torch.randn(2, 16, 6, 5, requires_grad=True), torch.randn(2, 16, 6, 5)
    tensors = (states, norm.weight, norm.bias)
    plain = torch.autograd.grad((norm(states) * gradient).sum(), tensors)
    out = _GroupNorm.apply(states, norm.weight, norm.bias, 4, 1e-6)
    for one, other in zip(plain, torch.autograd.grad((out * gradient).sum(), tensors), strict=True):
        assert torch.allclose(one, other, atol=1e-4)
    network = torch.nn.Sequential(norm)
    quicken(network)
    assert isinstance(network[0], QuickGroupNorm)
    assert torch.equal(network(states), torch.nn.functional.group_norm(states, 4, norm.weight, norm.bias, 1e-6))


def test_muon_takes_nearly_orthogonal_steps():
    seed_step(0, 1)
    for shape in ((8, 24), (24, 8), (8, 8)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert values.max() < 1.3
        assert values[: len(values) // 2].min() > 0.5
    target, weight = torch.randn(4, 3), torch.nn.Parameter(torch.zeros(4, 3))
    optimizer = Muon([weight], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        (weight - target).square().sum().backward()
        optimizer.step()
    assert (weight - target).abs().max() < 0.3


def test_the_vocabulary_knows_every_caption():
    tokenizer = text.word_tokenizer()
    for split in ("train", "heldout"):
        for number, caption in enumerate(data.captions(np.arange(200), split, 0)):
            ids = tokenizer(caption).input_ids
            assert tokenizer.unk_token_id not in ids, caption
            assert ids[-1] == tokenizer.eos_token_id
            assert len(ids) <= text.TEXT_TOKENS, number
    assert tokenizer("A RED ball").input_ids == tokenizer("a red ball").input_ids
    assert tokenizer.unk_token_id in tokenizer("a frobnicator").input_ids


def test_unknown_words_replace_words_only():
    seed_step(0, 0)
    ids = torch.tensor([[7, 8, 9, 1, 0, 0]])
    assert text.with_unknown(ids, 1.0).tolist() == [[2, 2, 2, 1, 0, 0]]
    assert torch.equal(text.with_unknown(ids, 0.0), ids)


def test_reconstruction_is_measured_per_picture(pictures):
    shown = data.load(pictures, "heldout")
    drawn = reconstruct(build_tokenizer(TOKENIZER).eval(), shown, CPU)
    assert drawn.shape == shown.shape
    assert psnr(shown, shown) > 80
    assert 0 < psnr(shown, drawn) < 30
