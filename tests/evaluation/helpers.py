"""Small models, and short ways to evaluate with them."""

from __future__ import annotations

from typing import Any

from scalekv.evaluation import Grid, Request, RunFolder, Subject, parse_budgets, parse_specs
from scalekv.models.infinity import InfinityScheduler
from scalekv.pipelines import InfinityPipeline, tiny_pipeline

SIDES = (1, 2, 3, 4)
LARGER = (1, 2, 4, 8)


class Counting:
    """A pipeline that remembers what it was asked to draw."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.drawn: list[tuple[str, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline, name)

    def __call__(self, texts: list[str], **arguments: Any) -> Any:
        output = self.pipeline(texts, **arguments)
        self.drawn.append(tuple(texts))
        return output


Counting.__name__ = InfinityPipeline.__name__  # a run remembers the kind of its pipeline


def small(sides: tuple[int, ...]) -> InfinityPipeline:
    scheduler = InfinityScheduler(schedule=[[side, side] for side in sides], temperature=0.5)
    made = InfinityPipeline.from_pipe(tiny_pipeline(depth=2), scheduler=scheduler)
    made.set_progress_bar_config(disable=True)
    return made


def request_of(
    policies: str = "random,sliding_window", budgets: str = "30%", prompts: str = "abc", **more: Any
) -> Request:
    seeds = more.pop("seeds", (0,))
    subjects = more.pop("subjects", [Subject(text) for text in prompts])
    return Request(Grid(parse_specs([policies]), parse_budgets([budgets]), seeds), subjects, **{"batch": 2, **more})


def comparable(run: RunFolder) -> list[dict[str, Any]]:
    """Results without what no two runs share."""
    return [{name: value for name, value in record.items() if name != "seconds"} for record in run.records()]
