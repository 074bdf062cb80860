"""What all benchmarks share: the machine in words, medians, one table, one JSON file."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import scalekv
from scalekv import CacheGeometry, CachePlan, KVCache, Profile
from scalekv.cache import attention
from scalekv.cache.stores import Store
from scalekv.planning import Segment
from scalekv.planning.curves import curve_ranks


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the options every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; more blur CPU seconds by waiting")
    parser.add_argument("--repeats", type=int, default=3, help="runs per figure; the median is printed")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser


def machine(device: str) -> str:
    """The machine in one line."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else _processor()
    threads = f"{torch.get_num_threads()} threads"
    return f"{name}, {threads}, torch {torch.__version__}, scalekv {scalekv.__version__}, {platform.system()}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def clock(device: str) -> float:
    """Seconds: of the processor on a CPU (a machine shared with others counts alike), of the wall on a GPU."""
    synchronize(device)
    return perf_counter() if device.startswith("cuda") else process_time()


class Timed:
    """Stands for an object, some of whose methods are called by way of ``timed``."""

    def __init__(self, inner: Any, timed: Callable[..., Any], *names: str) -> None:
        self._inner, self._timed, self._names = inner, timed, names

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return partial(self._timed, found) if name in self._names else found


class TimedCache(KVCache):
    """A cache that also adds up the seconds of selection (judging candidates, copying survivors, encoding them), of
    decoding, and of everything together that happens between queries, keys and values and the output of attention.

    Where attention adds up its weights in passing, selection is what that takes more than attention alone, which is
    done once more to know; ``measuring`` adds up the seconds of that.
    """

    selection = 0.0
    decoding = 0.0
    attending = 0.0
    measuring = 0.0

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self._chooser: Any = Timed(self._chooser, self._timed, "remember", "choose")
        self._keeper: Any = Timed(self._keeper, self._timed, "carry", "keep", "keep_sources")
        self._merger: Any = Timed(self._merger, self._timed, "merge")

    @property
    def bookkeeping(self) -> float:
        """Seconds of selection and of decoding."""
        return self.selection + self.decoding

    def attend(self, *given: Any, **more: Any) -> Tensor:
        """As the cache does, timed."""
        start = clock(str(self.device))
        result = super().attend(*given, **more)
        self.attending += clock(str(self.device)) - start
        return result

    def _timed(self, work: Callable[..., Any], *given: Any) -> Any:
        start, before = clock(str(self.device)), self.selection
        result = work(*given)
        self.selection = before + clock(str(self.device)) - start
        return result

    def _decoded(self, *given: Any) -> Any:
        start = clock(str(self.device))
        result = super()._decoded(*given)
        self.decoding += clock(str(self.device)) - start
        return result

    def _read_weighing(self, layer: int, segment: Segment, store: Store, query: Tensor) -> Tensor:
        output = self._timed(super()._read_weighing, layer, segment, store, query)
        start = clock(str(self.device))
        attention(query, store.key, store.value)
        alone = clock(str(self.device)) - start
        self.selection -= alone
        self.measuring += alone
        return output


def selection_shares(selection: Sequence[float], taken: Sequence[float]) -> list[float]:
    """Selection over the rest of the work, per measured round; ``selection`` may have the unmeasured one in front."""
    chosen = list(selection)[-len(taken) :]
    return [spent / (total - spent) for spent, total in zip(chosen * (len(taken) // len(chosen)), taken, strict=True)]


def single_layer(plan: CachePlan, layer: int) -> CachePlan:
    """The plan of one layer of ``plan``, as a network of its own."""
    return replace(plan, geometry=replace(plan.geometry, layers=1), layers=(plan.layers[layer],))


HEAD_TABLES = ("sigma", "sensitivity", "sensitivity_unguided")
"""Of `random_profile`."""


def random_profile(geometry: CacheGeometry, roles: dict[int, tuple[int, ...]] | None = None) -> Profile:
    """Tables of every kind from one seed, values positive and different by layer, head and segment; drafters as given
    in ``roles``."""
    layers, heads, schedule = geometry.layers, geometry.heads, geometry.schedule
    generator = torch.Generator().manual_seed(0)
    segments = len(schedule)

    def draw(*shape: int) -> list:
        return torch.rand(shape, generator=generator).pow(3).add(0.01).tolist()

    layer_tables = ("asi", "window_entropy", "window_variance", "scale_similarity")
    mass = tuple(draw(segment + 1, layers, heads) for segment in range(segments))
    points = [len(curve_ranks(schedule.start(index) + schedule[index].tokens)) for index in range(segments)]
    curves = [torch.rand((layers, heads, count), generator=generator).sort(-1, descending=True)[0] for count in points]
    return Profile.from_dict(
        {
            **Profile("benchmark", layers, heads, schedule, roles=roles or {}).to_dict(),
            "statistics": {name: draw(segments, layers) for name in layer_tables},
            "head_statistics": {name: draw(segments, layers, heads) for name in HEAD_TABLES},
            "source_statistics": {"mass": mass},
            "curves": {name: [curve.tolist() for curve in curves] for name in ("snapkv", "merging")},
        }
    )


class Measuring(float):
    """What a work returns to have the seconds that it spent on measuring itself taken off its time."""


def seconds(work: Callable[[], Any], device: str) -> float:
    """Time of one call, less its :class:`Measuring`."""
    start = clock(device)
    result = work()
    taken = clock(device) - start
    return taken - result if isinstance(result, Measuring) else taken


def interleaved(works: dict[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, list[float]]:
    """Times of several works, taken in turn so that a busy machine disturbs all alike; one unmeasured round first."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for round_ in range(repeats + 1):
        for name, work in works.items():
            taken = seconds(work, device)
            if round_:
                times[name].append(taken)
    return times


def spread(values: Sequence[float]) -> str:
    """Median with the range: ``1.23 (1.20-1.31)``."""
    return f"{statistics.median(values):.3g} ({min(values):.3g}-{max(values):.3g})"


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], device: str) -> None:
    """Print a table and the machine below it."""
    table = Table(title=title, caption=machine(device))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=110).print(table)


def write(path: Path | None, figures: dict[str, Any], device: str) -> None:
    """Write the figures as JSON if a path was given."""
    if path is not None:
        path.write_text(json.dumps({"machine": machine(device), **figures}, indent=1) + "\n")
