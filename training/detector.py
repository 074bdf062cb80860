"""Train the detector: ``python -m training.detector DATA RUN``; only measure it: the same with ``--measure``.

An instrument, not a claim about generalisation: it sees all combinations, on other seeds than those it is measured on.
Blur, noise and shifted colours teach it to read pictures that a model drew.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from scalekv.models.infinity import BSQAutoencoder
from scalekv.scenes import Scene, sample_scene, words
from scalekv.scenes.camera import SIDE, project
from scalekv.scenes.detection import WEIGHTS, Detector
from scalekv.scenes.reader import STRIDE, SceneReader
from training import data
from training.measuring import accuracy, print_table
from training.runs import Plan, Run, autocast, pick_device, write_json
from training.tokenizer import reconstruct

PLANS = {
    "cpu": Plan(steps=2500, batch=32, rate=2e-3, warmup=100, decay=0.01, average=0.998, sheet_every=500),
    "gpu": Plan(steps=12_000, batch=128, rate=2e-3, warmup=300, decay=0.01, average=0.999, sheet_every=3000),
}
_CELLS = SIDE // STRIDE


def targets(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    """What the network should say.

    Returns:
        (n, 32, 32) certainty of a centre, 1 in its cell and falling around it; (things, 10) rows of picture, cell row,
        cell column, shape, colour, pattern, size, column and row inside of the cell, depth.
    """
    heat = torch.zeros(len(scenes), _CELLS, _CELLS)
    grid = torch.arange(_CELLS, dtype=torch.float32)
    listed = []
    for index, scene in enumerate(scenes):
        for placed in scene.placed:
            column, row, scale = project(placed.x, placed.y, placed.z)
            column, row = (min(max(one / STRIDE, 0.0), _CELLS - 1e-3) for one in (column, row))
            cell_row, cell_column = int(row), int(column)
            wide = max(0.6, placed.thing.radius * scale / STRIDE / 4)
            away = (grid[:, None] - cell_row) ** 2 + (grid[None, :] - cell_column) ** 2
            heat[index] = torch.maximum(heat[index], torch.exp(-away / (2 * wide**2)))
            thing = placed.thing
            kinds = [
                words.SHAPES.index(thing.shape),
                words.COLOURS.index(thing.colour),
                words.PATTERNS.index(thing.pattern),
                words.SIZES.index(thing.size),
            ]
            listed.append([index, cell_row, cell_column, *kinds, column - cell_column, row - cell_row, placed.z])
    return heat, torch.tensor(listed, dtype=torch.float64)


def worn(images: Tensor) -> Tensor:
    """(n, 3, h, w) of 0..1, half of them blurred, coarsened, tinted or noisy."""
    n = len(images)

    def some(share: float) -> Tensor:
        return (torch.rand(n, 1, 1, 1) < share).to(images.device)

    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]], device=images.device).div(16).expand(3, 1, 3, 3)
    soft = F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    images = torch.where(some(0.3), soft, images)
    coarse = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2.0, mode="bilinear")
    images = torch.where(some(0.2), coarse, images)
    patches = F.interpolate(torch.randn(n, 3, 16, 16, device=images.device), scale_factor=8.0, mode="bilinear")
    images = images + torch.where(some(0.3), patches * 0.05, 0 * patches)
    images = images + some(0.4) * 0.05 * torch.rand(n, 1, 1, 1, device=images.device) * torch.randn_like(images)
    tint = 1 + 0.05 * torch.randn(n, 3, 1, 1, device=images.device)
    return (images * tint).clamp(0, 1)


class DetectorTask:
    """Pictures to the things in them.

    Args:
        plan: how long.
        folder: pictures from ``training.data``.
        device: where to compute.
    """

    adam: tuple[str, ...] = ()

    def __init__(self, plan: Plan, folder: Path, device: torch.device) -> None:
        self.plan, self.device = plan, device
        torch.manual_seed(plan.seed)
        self.network = SceneReader().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.train, self.extra = data.load(folder, "train"), data.load(folder, "extra")
        self.heldout = data.load(folder, "heldout")

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Focal loss of centres, cross entropy of kinds, absolute error of places."""
        quarter = self.plan.batch // 4
        seen = data.batch_indices(step, self.plan.batch - quarter, len(self.train), self.plan.seed)
        unseen = data.batch_indices(step, quarter, len(self.extra), self.plan.seed)
        scenes = [sample_scene(int(row), "train") for row in seen]
        scenes += [sample_scene(data.EXTRA_FIRST + int(row), "heldout") for row in unseen]
        pictures = np.concatenate([self.train[seen], self.extra[unseen]])
        heat, listed = (one.to(self.device) for one in targets(scenes))
        images = torch.from_numpy(pictures).to(self.device).permute(0, 3, 1, 2).float() / 255
        with autocast(self.device):
            reading = self.network(worn(images))
        at = listed[:, :3].long().unbind(1)
        kinds = listed[:, 3:7].long()
        scores = (reading.shape, reading.colour, reading.pattern, reading.size)
        total = _focal(reading.centre, heat)
        parts = {"centre": float(total.detach())}
        for index, (name, logits) in enumerate(zip(("shape", "colour", "pattern", "size"), scores, strict=True)):
            part = F.cross_entropy(logits[at[0], :, at[1], at[2]], kinds[:, index])
            total, parts[name] = total + part, float(part.detach())
        place = (reading.place[at[0], :, at[1], at[2]] - listed[:, 7:9]).abs().mean()
        depth = (reading.depth[at] - listed[:, 9]).abs().mean()
        return (total + place + depth).float(), parts | {"depth": float(depth.detach())}

    def watch(self, step: int, folder: Path) -> dict[str, float]:
        """Accuracy on held-out pictures."""
        table = accuracy(Detector(self.network), self.heldout, [sample_scene(row, "heldout") for row in range(256)])
        return {f"heldout {name}": share for name, share in table["all"].items()}


def _focal(logits: Tensor, heat: Tensor) -> Tensor:
    """Penalty-reduced focal loss (Zhou et al., 2019), over the number of centres."""
    chance = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
    centre = heat >= 0.999
    hit = -((1 - chance) ** 2) * chance.log() * centre
    miss = -((1 - heat) ** 4) * chance**2 * (1 - chance).log() * ~centre
    return (hit.sum() + miss.sum()) / centre.sum()


def weights(network: SceneReader) -> dict[str, Tensor]:
    """What is shipped: half precision, without counters."""
    return {
        name: tensor.contiguous() if tensor.dtype == torch.long else tensor.half().contiguous()
        for name, tensor in network.state_dict().items()
    }


def held_out(pictures: NDArray[np.uint8]) -> list[Scene]:
    """The scenes of the held-out pictures."""
    return [sample_scene(row, "heldout") for row in range(len(pictures))]


def main() -> None:
    """Train, or go on training, the detector; or measure the one in RUN."""
    parser = argparse.ArgumentParser(prog="python -m training.detector", description="Train the detector.")
    parser.add_argument("data", type=Path, help="folder drawn by training.data")
    parser.add_argument("run", type=Path, help="folder of the run; one that exists goes on")
    parser.add_argument("--preset", choices=PLANS, default="cpu")
    parser.add_argument("--measure", action="store_true", help="only measure RUN/detector.safetensors")
    parser.add_argument("--through", type=Path, help="measure on pictures that this tokenizer has coded and decoded")
    parser.add_argument("--device", help="default: a GPU if there is one")
    chosen = parser.parse_args()
    if not chosen.measure:
        task = DetectorTask(PLANS[chosen.preset], chosen.data, pick_device(chosen.device))
        run = Run(task, chosen.run)
        run.train()
        if run.stopping:
            return
        with run.averaged_weights():
            save_file(weights(task.network), chosen.run / WEIGHTS)
    pictures, name = data.load(chosen.data, "heldout"), "accuracy.json"
    if chosen.through is not None:
        tokenizer = BSQAutoencoder.from_pretrained(chosen.through).eval()
        pictures, name = reconstruct(tokenizer, pictures, torch.device("cpu")), "accuracy_coded.json"
    table = accuracy(Detector.load(chosen.run / WEIGHTS), pictures, held_out(pictures))
    print_table(table)
    write_json(chosen.run / name, table)


if __name__ == "__main__":
    main()
