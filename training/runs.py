"""One training loop for everything that is trained here: resumable, logged, watched.

A step's randomness and data come from (seed, step) alone, and a checkpoint holds weights, optimizer, averaged weights
and step. A run that is killed and started again therefore ends where it would have ended, bit for bit, on one machine
with one number of threads.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from scalekv.errors import InvalidInput
from scalekv.files import replacing, write_atomically
from training.optimizer import Muon


@dataclass(frozen=True)
class Plan:
    """How long and how fast to learn.

    Args:
        steps: optimizer steps in all.
        batch: pictures per step.
        rate: highest learning rate of Adam.
        muon: highest learning rate of Muon, which takes over the matrices that the task does not keep from it; 0 for
            Adam throughout.
        final_rate: learning rate of the last step over ``rate``.
        warmup: steps of linear increase before the cosine.
        decay: weight decay of matrices.
        clip: largest gradient norm.
        average: decay of the averaged weights, what is kept in the end.
        seed: of weights, data order and noise.
        checkpoint_every: seconds between checkpoints.
        sheet_every: steps between sample sheets.
    """

    steps: int
    batch: int
    rate: float
    muon: float = 0.0
    final_rate: float = 0.01
    warmup: int = 100
    decay: float = 0.0
    clip: float = 1.0
    average: float = 0.999
    seed: int = 0
    checkpoint_every: float = 120.0
    sheet_every: int = 250


class Task(Protocol):
    """What is trained."""

    plan: Plan
    adam: tuple[str, ...]
    """Parts of names of matrices that are no maps between hidden states, and stay with Adam."""

    @property
    def network(self) -> nn.Module:
        """What learns."""

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of a step's batch, and numbers for the log; all randomness from torch's seeded generator."""

    def watch(self, step: int, folder: Path) -> dict[str, float]:
        """Measure on held-out data with the averaged weights in place, and draw a sample sheet."""


def pace(step: int, plan: Plan) -> float:
    """The learning rate of a step over the highest: linear warm-up, then a cosine to the final rate."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    done = min(1.0, (step - plan.warmup) / max(1, plan.steps - plan.warmup))
    return plan.final_rate + (1 - plan.final_rate) * (1 + math.cos(math.pi * done)) / 2


def seed_step(seed: int, step: int) -> None:
    """Make torch's randomness a function of (seed, step)."""
    torch.manual_seed((seed * 1_000_003 + step) * 2_654_435_761 % 2**63)


def optimizers(task: Task) -> list[torch.optim.Optimizer]:
    """Adam, and Muon for matrices between hidden states if the plan has a rate for it."""
    named = [(name, one) for name, one in task.network.named_parameters() if one.requires_grad]
    by_muon = {
        name
        for name, one in named
        if task.plan.muon and one.ndim >= 2 and max(one.shape) < one.numel() and not any(p in name for p in task.adam)
    }
    matrices = [one for name, one in named if name not in by_muon and one.ndim >= 2]
    vectors = [one for name, one in named if name not in by_muon and one.ndim < 2]
    groups = [{"params": matrices, "weight_decay": task.plan.decay}, {"params": vectors, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=task.plan.rate, betas=(0.9, 0.97), fused=True)
    if not by_muon:
        return [adam]
    matrices = [one for name, one in named if name in by_muon]
    precision = torch.bfloat16 if halves(matrices[0].device) else torch.float32
    return [adam, Muon(matrices, task.plan.muon, weight_decay=task.plan.decay, precision=precision)]


@dataclass(frozen=True)
class Crew:
    """The processes that share a run, under ``torchrun --nproc_per_node N -m training...``; one without.

    Every one holds the whole network and computes its share of each batch.

    Args:
        rank: number of this one.
        size: how many.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> Crew:
        """The crew of this process, as torchrun tells it."""
        if not dist.is_torchelastic_launched():
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    def share(self, size: int) -> slice:
        """The part of a batch of ``size`` that is this process's."""
        return slice(self.rank * size // self.size, (self.rank + 1) * size // self.size)

    def mean(self, parameters: list[nn.Parameter], flag: bool) -> bool:
        """Replace gradients by their mean over the crew; whether anyone raised the flag."""
        if self.size == 1:
            return flag
        # What a share of the batch does not use, such as the text of no prompt, another share may.
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
        flat = torch.cat([*(one.flatten().float() for one in gradients), gradients[0].new_tensor([float(flag)])])
        dist.all_reduce(flat)
        *parts, raised = flat.split([*(one.numel() for one in gradients), 1])
        for one, part in zip(parameters, parts, strict=True):
            one.grad = part.view_as(one) / self.size
        return bool(raised > 0)


class Run:
    """A training run in a folder.

    Args:
        task: what is trained.
        folder: checkpoint, log and sheets; a run found there goes on.
        crew: the processes that share it; only the first writes.

    Raises:
        InvalidInput: the folder holds a run of another recipe.
    """

    def __init__(self, task: Task, folder: Path, crew: Crew | None = None) -> None:
        self.task, self.plan, self.folder, self.step = task, task.plan, folder, 0
        self.crew = crew or Crew()
        self.parameters = [one for one in task.network.parameters() if one.requires_grad]
        self.averaged = [one.detach().clone() for one in self.parameters]
        self.optimizers = optimizers(task)
        self.rates = [group["lr"] for one in self.optimizers for group in one.param_groups]
        self.asked = self.stopping = False
        folder.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.is_file():
            self._restore()

    @property
    def checkpoint(self) -> Path:
        """The file that a resumed run starts from."""
        return self.folder / "checkpoint.pt"

    def _restore(self) -> None:
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        fixed = {name: value for name, value in asdict(self.plan).items() if not name.endswith("_every")}
        stored = {name: state["plan"].get(name) for name in fixed}
        if stored != fixed:
            changed = [f"{name} {stored[name]} -> {fixed[name]}" for name in fixed if stored[name] != fixed[name]]
            raise InvalidInput(f"{self.folder} holds a run of another recipe ({', '.join(changed)}); use a new folder.")
        self.task.network.load_state_dict(state["network"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        for mine, kept in zip(self.averaged, state["averaged"], strict=True):
            mine.copy_(kept)
        self.step = int(state["step"])

    def save(self) -> None:
        """Write the checkpoint; it replaces the old one whole or not at all."""
        if self.crew.rank:
            return
        state = {
            "network": self.task.network.state_dict(),
            "optimizers": [one.state_dict() for one in self.optimizers],
            "averaged": self.averaged,
            "step": self.step,
            "plan": asdict(self.plan),
        }
        with replacing(self.checkpoint) as temporary:
            torch.save(state, temporary)

    def train(self, until: int | None = None) -> None:
        """Train to the end, to step ``until``, or to the first SIGINT or SIGTERM, which saves and returns."""
        last = min(self.plan.steps, self.plan.steps if until is None else until)
        bar = tqdm(total=self.plan.steps, initial=self.step, mininterval=5, smoothing=0.05, disable=self.crew.rank > 0)
        with _polite(self), bar:
            saved = time.monotonic()
            while self.step < last and not self.stopping:
                started = time.process_time()
                entry = self._one_step()
                if not self.crew.rank and (self.step % self.plan.sheet_every == 0 or self.step == self.plan.steps):
                    with self.averaged_weights():
                        entry |= self.task.watch(self.step, self.folder)
                self._log(entry | {"cpu_seconds": round(time.process_time() - started, 3)})
                bar.set_postfix_str(f"loss {entry['loss']:.4f}", refresh=False)
                bar.update()
                if time.monotonic() - saved > self.plan.checkpoint_every:
                    self.save()
                    saved = time.monotonic()
            self.save()

    def _one_step(self) -> dict[str, Any]:
        seed_step(self.plan.seed, self.step * self.crew.size + self.crew.rank)
        self.task.network.train()
        share = pace(self.step, self.plan)
        groups = [group for one in self.optimizers for group in one.param_groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate * share
        loss, numbers = self.task.loss(self.step)
        loss.backward()
        self.stopping = self.crew.mean(self.parameters, self.asked)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.plan.clip)
        if bool(torch.isfinite(norm)):
            for one in self.optimizers:
                one.step()
        self.task.network.zero_grad(set_to_none=True)
        self.step += 1
        keep = min(self.plan.average, self.step / (self.step + 10))
        torch._foreach_lerp_(self.averaged, [one.detach() for one in self.parameters], 1 - keep)
        return {"step": self.step, "loss": float(loss.detach()), "norm": float(norm), "pace": share, **numbers}

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The averaged weights in the network, for as long as the block runs."""
        own = [one.detach().clone() for one in self.parameters]
        _copy(self.averaged, self.parameters)
        self.task.network.eval()
        try:
            yield
        finally:
            _copy(own, self.parameters)

    def _log(self, entry: dict[str, Any]) -> None:
        if self.crew.rank:
            return
        rounded = {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in entry.items()}
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(rounded) + "\n")


@torch.no_grad()
def _copy(source: list[Tensor], target: list[nn.Parameter]) -> None:
    for one, other in zip(source, target, strict=True):
        other.copy_(one)


@contextmanager
def _polite(run: Run) -> Iterator[None]:
    """Turn SIGINT or SIGTERM into the end of a step, the same one for all of the crew."""

    def stop(*_: Any) -> None:
        run.asked = True

    wanted = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(one, stop) for one in wanted]
    try:
        yield
    finally:
        for one, handler in zip(wanted, before, strict=True):
            signal.signal(one, handler)


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people, whole or not at all."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def halves(device: torch.device) -> bool:
    """Whether bfloat16 is quicker than float32 there: CPUs before AVX-512 imitate it, several times slower."""
    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")


def autocast(device: torch.device) -> torch.autocast:
    """Matrix products and convolutions in bfloat16, where that is quicker."""
    return torch.autocast(device.type, torch.bfloat16, enabled=halves(device))


def pick_device(name: str | None) -> torch.device:
    """The device called ``name``; default a GPU if there is one."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
