"""A run: its results, and that neither kills nor processes nor additions change them."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.helpers import SIDES, Counting, comparable, request_of
from scalekv.errors import InvalidInput, ProfileError
from scalekv.evaluation import RunFolder, Share, Subject, evaluate, scenes_subjects
from scalekv.evaluation.jobs import FULL
from scalekv.evaluation.plugins import Scorer
from scalekv.evaluation.runner import lacking
from scalekv.evaluation.store import Writer
from scalekv.planning import Schedule
from scalekv.policies import POLICIES, Policy, Random
from scalekv.scenes.prompts import benchmark
from scalekv.scenes.scoring import score_pipeline


def lines(folder: Path) -> int:
    return sum(len(file.read_bytes().splitlines()) for file in folder.glob("results*.jsonl"))


def test_what_a_result_says(whole: RunFolder, pipeline: Any) -> None:
    records = {record["key"]: record for record in whole.records()}
    assert len(records) == lines(whole.path) == 3 * 3
    record = records["random/30%/1/0"]
    plan = Random(budget="30%").plan(pipeline.cache_geometry(Schedule.from_sides(SIDES), 2))
    assert (record["policy"], record["label"], record["budget"], record["seed"]) == ("random", "random", "30%", 0)
    assert (record["prompt"], record["prompt_index"], record["picture_seed"], record["batch"]) == ("b", 1, 1, 2)
    assert record["settings"] == Random(budget="30%").settings()
    assert (record["limit_bytes"], record["nominal_bytes"]) == (plan.limit_bytes, plan.nominal_bytes)
    assert record["kept_bytes"] == record["nominal_bytes"] == max(record["segment_bytes"])
    assert record["peak_bytes"] == record["measured_peak_bytes"] == plan.peak_bytes
    assert (record["tokens"], record["attention_flops"]) == (plan.mean_tokens, plan.attention_flops)
    assert record["schedule"] == Schedule.from_sides(SIDES).key
    assert len(record["agreement"]) == len(SIDES)
    assert record["agreement"][0] == 1  # nothing was dropped before the first segment
    assert 0.4 < min(record["agreement"]) < 1
    assert not record["identical"]
    assert record["psnr"] == pytest.approx(-10 * np.log10(record["mse"]))
    assert 0 < record["ssim"] < 1
    assert "ms_ssim" not in record  # 64 pixels are too few
    assert "following" not in record
    assert records["random/30%/2/0"]["batch"] == 1


def test_the_full_cache_is_identical_to_itself(whole: RunFolder) -> None:
    full = [record for record in whole.records() if record["policy"] == "full"]
    assert len(full) == 3
    for record in full:
        assert (record["identical"], record["psnr"], record["mse"], record["ssim"]) == (True, None, 0, pytest.approx(1))
        assert record["agreement"] == [1] * len(SIDES)
        assert record["kept_bytes"] == record["lossless_bytes"]


def test_everything_kept_is_identical(pipeline: Any, tmp_path: Path) -> None:
    run = evaluate(pipeline, request_of("scalekv,random,streaming_llm", "100%", "ab"), tmp_path / "run")
    assert [record["identical"] for record in run.records()] == [True] * 8


def test_a_picture_is_what_it_is_alone(whole: RunFolder, pipeline: Any) -> None:
    import torch

    alone = pipeline("b", generator=torch.Generator().manual_seed(1), kv_cache=Random(budget="30%")).images[0]
    kept = whole.picture(request_of("random").grid.cells[1], 1, 0)
    assert kept is not None
    assert np.abs(np.asarray(alone).astype(int) - np.asarray(kept)).max() <= 1


class Killed(BaseException):
    """Ends a run as nothing that it expects."""


@pytest.mark.parametrize(("after", "torn"), [(1, "half a line"), (2, "nothing"), (3, "some lines"), (5, "half a line")])
def test_a_killed_run_ends_like_an_undisturbed_one(
    pipeline: Any, whole: RunFolder, tmp_path: Path, after: int, torn: str
) -> None:
    calls = Counter[str]()

    def kill(done: int, total: int, what: str) -> None:
        calls["n"] += 1
        if calls["n"] == after:
            raise Killed

    with pytest.raises(Killed):
        evaluate(pipeline, request_of(), tmp_path / "run", progress=kill)
    file = tmp_path / "run" / "results-0.jsonl"
    content = file.read_bytes()
    if torn == "half a line":
        file.write_bytes(content[:-30])
    if torn == "some lines":  # of a batch of two, one result was written
        file.write_bytes(content[: content[:-1].rfind(b"\n") + 1] + b'{"key": "ra')
    counting = Counting(pipeline)
    resumed = evaluate(counting, request_of(), tmp_path / "run")
    assert comparable(resumed) == comparable(whole)
    assert lines(tmp_path / "run") == 9
    assert len(counting.drawn) == 6 - after + (torn != "nothing")
    table, expected = (
        [{**row, "seconds": ""} for row in csv.DictReader((run.path / "results.csv").open())]
        for run in (resumed, whole)
    )
    assert table == expected


def test_a_whole_run_draws_nothing_again(pipeline: Any, tmp_path: Path) -> None:
    first = evaluate(pipeline, request_of(prompts="ab"), tmp_path / "run")
    before, counting = first.records(), Counting(pipeline)
    assert evaluate(counting, request_of(prompts="ab"), tmp_path / "run").records() == before
    assert counting.drawn == []


def test_two_processes_do_the_work_of_one(pipeline: Any, whole: RunFolder, tmp_path: Path) -> None:
    request, shares = request_of(), [Share(1, 2), Share(0, 2)]
    runs = []
    for share in shares:
        runs.append(evaluate(pipeline, request, tmp_path / "run", share=share))
        assert (runs[-1].path / "results.csv").exists() == (share.rank == 0)
    assert comparable(runs[-1]) == comparable(whole)
    assert lines(tmp_path / "run") == 9
    assert sorted(file.name for file in (tmp_path / "run").glob("*.jsonl")) == ["results-0.jsonl", "results-1.jsonl"]


def test_another_number_of_processes_goes_on(pipeline: Any, whole: RunFolder, tmp_path: Path) -> None:
    request = request_of()
    half = evaluate(pipeline, request, tmp_path / "run", share=Share(0, 2))
    assert 0 < lacking(half, request) < 9
    run = evaluate(pipeline, request, tmp_path / "run")
    assert comparable(run) == comparable(whole)
    assert lines(run.path) == 9


def test_two_processes_cannot_write_one_file(pipeline: Any, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    run = evaluate(pipeline, request_of(prompts="a"), tmp_path / "run")
    with run.writer(0), pytest.raises(InvalidInput, match="Another evaluation writes"):
        evaluate(pipeline, request_of(prompts="ab"), tmp_path / "run")
    assert len(RunFolder.open(run.path).info.subjects) == 1


def test_a_run_grows(pipeline: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = evaluate(pipeline, request_of("random", "10%", "abc"), folder)
    before, counting = (folder / "results-0.jsonl").read_bytes(), Counting(pipeline)
    grown = request_of("random,streaming_llm", "10%,50%", "xabcy", seeds=(0, 7))
    run = evaluate(counting, grown, folder)
    assert (folder / "results-0.jsonl").read_bytes().startswith(before)
    assert [subject.text for subject in run.info.subjects] == list("abcxy")
    assert lines(folder) == len(run.records()) == 5 * 5 * 2
    # The full cache of prompts a, b and c at seed 0 is there, and so is 'random' at 10 %.
    assert counting.drawn.count(("a", "b")) == 3 + 5
    assert first.records() == [record for record in run.records() if record["key"] in {*map(_key, first.records())}]
    fewer = Counting(pipeline)
    evaluate(fewer, request_of("random", "10%", "b"), folder)
    assert fewer.drawn == []


def _key(record: dict[str, Any]) -> str:
    return str(record["key"])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"batch": 3}, "batch = 2, not 3"),
        ({"generation": {"guidance_scale": 2.0}}, "generation.guidance_scale = its default, not 2.0"),
        ({"scorers": (Scorer("m:f", lambda *_: 1.0),)}, "scorers"),
    ],
    ids=["batch", "generation", "scorers"],
)
def test_other_settings_are_refused(pipeline: Any, whole: RunFolder, more: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        evaluate(pipeline, request_of(**more), whole.path)


def test_another_model_is_refused(pipeline: Any, whole: RunFolder, var: Any) -> None:
    import torch

    with pytest.raises(InvalidInput, match="pipeline = InfinityPipeline, not VARPipeline"):
        evaluate(var, request_of(), whole.path)
    weight = pipeline.transformer.word_embed.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(2)
        with pytest.raises(InvalidInput, match="with another model; results"):
            evaluate(pipeline, request_of(), whole.path)
    finally:
        weight.data.copy_(kept)


def test_a_run_that_another_process_begins_meanwhile_is_continued(
    pipeline: Any, whole: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, listed = tmp_path / "run", Path.iterdir
    folder.mkdir()

    def begun_meanwhile(path: Path) -> Iterator[Path]:
        if path == folder:
            shutil.copytree(whole.path, folder, dirs_exist_ok=True)
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", begun_meanwhile)
    assert evaluate(pipeline, request_of(), folder).records() == whole.records()


def test_what_another_process_wrote_before_the_run_is_no_other_folder(
    pipeline: Any, whole: RunFolder, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "profile.json").write_text("{}")
    (folder / "results-1.jsonl").touch()
    found = evaluate(pipeline, request_of(), folder).records()
    assert [record["key"] for record in found] == [record["key"] for record in whole.records()]


def test_other_folders_are_refused(pipeline: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InvalidInput, match="is no run of"):
        evaluate(pipeline, request_of(), tmp_path)
    (tmp_path / "a").mkdir()
    for text, said in (
        ("{", "is damaged"),
        ("{}", "was not written by"),
        ('{"format": "scalekv evaluation"}', "version"),
    ):
        (tmp_path / "a" / "run.json").write_text(text)
        with pytest.raises(InvalidInput, match=said):
            evaluate(pipeline, request_of(), tmp_path / "a")


def test_a_damaged_line_is_named(pipeline: Any, tmp_path: Path) -> None:
    run = evaluate(pipeline, request_of("random", "10%", "ab"), tmp_path / "run")
    file = run.path / "results-0.jsonl"
    content = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(content[0] + b"{}\n" + content[2])
    with pytest.raises(InvalidInput, match=r"Line 2 of .*results-0.jsonl is damaged"):
        run.records()


def test_what_does_not_fit_is_recorded(pipeline: Any, tmp_path: Path) -> None:
    run = evaluate(pipeline, request_of("random,sliding_window", "0.01%,20%", "ab"), tmp_path / "run")
    infeasible = [record for record in run.records() if "infeasible" in record]
    assert [record["key"] for record in infeasible] == [
        f"{name}/0.01%/{i}/0" for name in ("random", "sliding_window") for i in (0, 1)
    ]
    assert "the smallest feasible one" in infeasible[0]["infeasible"]
    assert len(run.records()) == 2 + 4 + 4
    assert (run.path / "results.csv").exists()
    counting = Counting(pipeline)
    evaluate(counting, request_of("random,sliding_window", "0.01%,20%", "ab"), run.path)
    assert counting.drawn == []


def test_a_method_that_cannot_work_is_refused_before_the_first_picture(
    pipeline: Any, tmp_path: Path, monkeypatch
) -> None:
    class Measured(Random):
        name = "measured"

        def plan(self, geometry: Any, profile: Any = None) -> Any:
            raise ProfileError("calibrate first")

    monkeypatch.setitem(POLICIES, "measured", Measured)
    counting = Counting(pipeline)
    with pytest.raises(ProfileError, match="calibrate first"):
        evaluate(counting, request_of("random,measured"), tmp_path / "run")
    assert counting.drawn == []


def test_lost_references_are_drawn_again(pipeline: Any, tmp_path: Path) -> None:
    run = evaluate(pipeline, request_of("random", "10%", "abc"), tmp_path / "run")
    before = (run.path / "results-0.jsonl").read_bytes()
    (run.path / "drawn" / "00001-0.npz").write_bytes(b"PK\x03\x04")
    run.picture_path(FULL, 2, 0).unlink()
    counting = Counting(pipeline)
    grown = evaluate(counting, request_of("random", "10%,50%", "abc"), run.path)
    assert counting.drawn == [("a", "b")] * 2 + [("c",)] * 2
    assert (run.path / "results-0.jsonl").read_bytes().startswith(before)
    assert lines(run.path) == len(grown.records()) == 9


def test_pictures_are_kept_when_asked_for(pipeline: Any, tmp_path: Path) -> None:
    def kept(policy: str) -> list[str]:
        return sorted(path.name for path in (tmp_path / "run" / "pictures" / policy).rglob("*.png"))

    request = request_of("random", "10%", "abcd", sheet=1)
    evaluate(pipeline, request, tmp_path / "run")
    assert kept("full") == [f"0000{index}-0.png" for index in range(4)]
    assert kept("random") == ["00000-0.png"]
    size = lines(tmp_path / "run")
    evaluate(pipeline, request_of("random", "10%", "abcd", save_pictures=True), tmp_path / "run")
    assert kept("random") == kept("full")
    assert lines(tmp_path / "run") == size


def test_seeds_are_apart(pipeline: Any, tmp_path: Path) -> None:
    request = request_of("random", "10%", "ab", seeds=(3, 1_000_003))
    run = evaluate(pipeline, request, tmp_path / "run")
    assert {record["picture_seed"] for record in run.records()} == {3, 4, 1_000_003, 1_000_004}


def test_scorers_of_ones_own(pipeline: Any, tmp_path: Path) -> None:
    def look(picture: Any, reference: Any, prompt: str) -> dict[str, float]:
        return {"same": picture == reference, "words": len(prompt.split())}

    scorers = (Scorer("mine:look", look), Scorer("mine:size", lambda picture, *_: picture.width))
    run = evaluate(pipeline, request_of("random", "10%", scorers=scorers, subjects=[Subject("a b")]), tmp_path / "run")
    full, random = run.records()
    assert full["scores"] == {"look.same": 1, "look.words": 2, "size": 64}
    assert random["scores"]["look.same"] == 0
    bad = Scorer("mine:bad", lambda *_: float("nan"))
    with pytest.raises(InvalidInput, match="mine:bad returned nan"):
        evaluate(pipeline, request_of("random", "10%", "a", scorers=(bad,)), tmp_path / "other")


def test_prompts_followed_are_those_of_the_benchmark(larger: Any, tmp_path: Path) -> None:
    policy: Policy = Random(budget="20%")
    prompts = benchmark(1)
    run = evaluate(larger, request_of("random", "20%", subjects=scenes_subjects(7), batch=3), tmp_path / "run")
    scores = score_pipeline(larger, prompts, batch=3, kv_cache=policy)
    judged = [record["following"] for record in run.records() if record["policy"] == "random"]
    assert judged == [{"category": one.prompt.category, "right": one.right} for one in scores.verdicts]
    assert [record["prompt"] for record in run.records()[:7]] == [one.text for one in prompts]


def test_the_detector_is_believed(larger: Any, tmp_path: Path, monkeypatch) -> None:
    from scalekv.evaluation import following
    from scalekv.scenes import Placed, Thing

    (prompt,) = (one for one in benchmark(1) if one.category == "colours")
    (wanted,) = prompt.wanted
    seen = Placed(Thing(wanted.shape, wanted.colour), 0, 0.5, 0)

    class Sees:
        @classmethod
        def load(cls) -> Any:
            return cls()

        def __call__(self, pictures: Any) -> Any:
            return [[seen]] * len(pictures)

    monkeypatch.setattr(following, "Detector", Sees)
    run = evaluate(larger, request_of("random", "20%", subjects=scenes_subjects(7)), tmp_path / "run")
    right = {record["following"]["category"]: record["following"]["right"] for record in run.records()}
    assert right["colours"]
    assert not right["counting"]


def test_classes(var: Any, tmp_path: Path) -> None:
    request = request_of("sliding_window", "30%,100%", subjects=[Subject("3"), Subject("7"), Subject("3")])
    run = evaluate(var, request, tmp_path / "run")
    small = [record for record in run.records() if record["budget"] == "30%"]
    assert [record["prompt"] for record in small] == ["3", "7", "3"]
    assert all(record["agreement"][:2] == [1, 1] for record in small)
    assert min(min(record["agreement"]) for record in small) < 1
    assert small[0]["mse"] != small[2]["mse"]  # other seeds
    assert all(record["identical"] for record in run.records() if record["budget"] == "100%")


def test_run_json_tells_what_was_run(whole: RunFolder) -> None:
    told = json.loads((whole.path / "run.json").read_text())
    assert told["settings"]["batch"] == 2
    assert told["settings"]["dtype"] == "float32"
    assert {"scalekv", "torch", "torchmetrics"} <= told["versions"].keys()
    assert [one["text"] for one in told["prompts"]] == list("abc")
    assert told["windows"] == [[0, 2], [2, 3]]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"prompts": ""}, "at least one prompt"),
        ({"batch": 0}, "batch of 1 or more"),
        ({"generation": {"kv_cache": None}}, "sets kv_cache itself"),
    ],
)
def test_bad_requests(more: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        request_of(**more)


@pytest.mark.parametrize("before", [1, 3])
def test_a_kill_between_pictures_and_results_loses_nothing(
    pipeline: Any, whole: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    append, calls = Writer.append, Counter[str]()

    def kill(self: Writer, records: Any) -> None:
        calls["n"] += 1
        if calls["n"] == before:
            raise Killed
        append(self, records)

    with monkeypatch.context() as patched:
        patched.setattr(Writer, "append", kill)
        with pytest.raises(Killed):
            evaluate(pipeline, request_of(), tmp_path / "run")
    assert comparable(evaluate(pipeline, request_of(), tmp_path / "run")) == comparable(whole)
    assert lines(tmp_path / "run") == 9


def test_a_result_that_is_there_twice_counts_once(pipeline: Any, tmp_path: Path) -> None:
    run = evaluate(pipeline, request_of("random", "10%", "ab"), tmp_path / "run")
    before, file = run.records(), run.path / "results-0.jsonl"
    (run.path / "results-1.jsonl").write_bytes(file.read_bytes().replace(b'"identical": false', b'"identical": true'))
    assert run.records() == before
