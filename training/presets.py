"""The recipes: sizes and plans by name. ``cpu`` is an evening on two cores, ``gpu`` 25 minutes of one H200."""

from __future__ import annotations

from dataclasses import dataclass, replace

from training.runs import Plan

SIDES = (1, 2, 3, 4, 6, 8, 10, 13, 16)
"""Tokens per side of the nine segments: 655 tokens to 128 x 128 pixels."""

GRIDS = tuple((side, side) for side in SIDES)

CROP_GRIDS = tuple((max(1, side // 2), max(1, side // 2)) for side in SIDES)
"""What the grids of a picture leave of it in a crop of half its sides."""


@dataclass(frozen=True)
class TokenizerRecipe:
    """Size and plan of the tokenizer; arguments of the network as in ``BSQAutoencoder``."""

    plan: Plan
    bits: int = 16
    base_channels: int = 32
    multipliers: tuple[int, ...] = (1, 1, 2, 4)
    decoder_multipliers: tuple[int, ...] | None = None
    """Channels of the decoder's levels; None for those of the encoder."""
    res_blocks: int = 1
    commitment: float = 4.0
    """Weight of the squared distance from latent to codes beyond ``slack``; closer than that it is free to move."""
    slack: float = 0.2
    crop_steps: int = 0
    """Steps at the beginning that see a quarter of each picture: four times as many steps for the same work."""
    squares: float = 2.0
    """Weight of the squared error, against 1 of the absolute one; PSNR asks for squares, eyes for both."""
    early_stop: float = 0.1
    """Chance that a picture is decoded from its first few scales only, so that early scales carry the gist."""


TOKENIZERS = {
    "cpu": TokenizerRecipe(
        Plan(steps=1400, batch=16, rate=2e-3, muon=4e-3, warmup=30, average=0.995, final_rate=0.02, sheet_every=350),
        crop_steps=1400,
    ),
    "cpu-whole": TokenizerRecipe(
        Plan(steps=120, batch=12, rate=8e-4, muon=1.6e-3, warmup=10, average=0.97, final_rate=0.03, sheet_every=60)
    ),
    "cpu-more": TokenizerRecipe(
        Plan(steps=1300, batch=16, rate=1.5e-3, muon=3e-3, warmup=30, average=0.995, final_rate=0.02, sheet_every=300),
        squares=6.0,
    ),
    "gpu": TokenizerRecipe(
        Plan(steps=6000, batch=64, rate=2e-3, muon=4e-3, warmup=100, average=0.999, sheet_every=2000),
        multipliers=(1, 2, 4, 4),
        res_blocks=2,
    ),
}


POLISHES = {
    "cpu": TokenizerRecipe(
        Plan(steps=1500, batch=16, rate=1e-3, muon=2e-3, warmup=30, average=0.995, final_rate=0.02), early_stop=0.05
    ),
    "gpu": TokenizerRecipe(
        Plan(steps=6000, batch=64, rate=1e-3, muon=2e-3, warmup=100, average=0.999, sheet_every=2000),
        multipliers=(1, 2, 4, 4),
        res_blocks=2,
        early_stop=0.05,
    ),
}
"""Recipes that go on with the decoder alone: the bits, and so everything trained on them, stay valid."""


def shortened(plan: Plan, steps: int | None) -> Plan:
    """``plan`` with another number of steps, if one is given."""
    return plan if steps is None else replace(plan, steps=steps)


@dataclass(frozen=True)
class Stage:
    """Steps that see the first few segments only; several times cheaper, and exact."""

    steps: int
    segments: int
    batch: int


@dataclass(frozen=True)
class TransformerRecipe:
    """Size and plan of the transformer; ``plan.batch`` is that of passes over all segments, after the stages."""

    plan: Plan
    stages: tuple[Stage, ...] = ()
    depth: int = 8
    width: int = 256
    heads: int = 4
    text_channels: int = 128
    text_layers: int = 2
    falloff: float = 0.4
    """Tokens of a segment of n weigh n^-falloff."""
    flip_share: float = 0.75
    """Share of pictures with flipped bits."""
    flip_most: float = 0.2
    """The share of bits that are flipped is drawn from 0 to this."""
    text_dropout: float = 0.1
    unknown_words: float = 0.02
    """Chance that a word is shown as unknown, so that prompts with words of their own still work."""
    learns: tuple[str, ...] = ("",)
    """Parts of names: weights that have one of them learn, all others stay what they are."""
    new_text: bool = False
    """Whether a text encoder that is gone on with keeps its words only and begins again with new blocks."""

    def at(self, step: int) -> tuple[int, int, int]:
        """Segments, pictures and number of batch at ``step``."""
        for stage in self.stages:
            if step < stage.steps:
                return stage.segments, stage.batch, step
            step -= stage.steps
        return len(SIDES), self.plan.batch, step

    @property
    def lengths(self) -> tuple[int, ...]:
        """The numbers of segments that any step sees."""
        return tuple({stage.segments: None for stage in self.stages} | {len(SIDES): None})


TRANSFORMERS = {
    "cpu": TransformerRecipe(
        Plan(steps=1000, batch=8, rate=1e-3, muon=4e-3, warmup=60, decay=0.02, average=0.997, sheet_every=500),
        stages=(Stage(200, 5, 48), Stage(300, 6, 32)),
    ),
    "cpu-more": TransformerRecipe(
        Plan(steps=2700, batch=8, rate=8e-4, muon=3.2e-3, warmup=30, decay=0.02, average=0.997, sheet_every=450),
        stages=(Stage(1150, 6, 32), Stage(200, 7, 18)),
    ),
    "cpu-layout": TransformerRecipe(
        Plan(steps=900, batch=8, rate=8e-4, muon=3.2e-3, warmup=30, final_rate=0.3, decay=0.02, average=0.99),
        stages=(Stage(900, 6, 32),),
    ),
    "cpu-words": TransformerRecipe(
        Plan(steps=2200, batch=12, rate=8e-4, muon=3.2e-3, warmup=30, decay=0.02, average=0.995, sheet_every=300),
        stages=(Stage(700, 4, 128), Stage(700, 6, 32)),
        new_text=True,
    ),
    "cpu-finish": TransformerRecipe(
        Plan(steps=900, batch=12, rate=6e-4, muon=2.4e-3, warmup=20, decay=0.02, average=0.995, sheet_every=300),
        stages=(Stage(100, 6, 32),),
    ),
    "cpu-bare": TransformerRecipe(
        Plan(steps=480, batch=12, rate=1e-3, warmup=20, decay=0.02, average=0.99, sheet_every=480),
        stages=(Stage(480, 5, 64),),
        learns=("text_encoder.",),
    ),
    "cpu-read": TransformerRecipe(
        Plan(steps=260, batch=12, rate=5e-4, muon=2e-3, warmup=20, decay=0.02, average=0.985, sheet_every=260),
        stages=(Stage(260, 5, 64),),
        learns=("text_encoder.", ".ca."),
    ),
    "gpu-more": TransformerRecipe(
        Plan(steps=3700, batch=128, rate=8e-4, muon=3.2e-3, warmup=100, decay=0.02, average=0.998, sheet_every=1900),
        stages=(Stage(300, 4, 1024), Stage(2100, 6, 640)),
    ),
    "gpu": TransformerRecipe(
        Plan(steps=11_000, batch=192, rate=1e-3, muon=4e-3, warmup=300, decay=0.03, average=0.9995, sheet_every=4000),
        stages=(Stage(4000, 6, 512),),
    ),
    "gpu-large": TransformerRecipe(
        Plan(steps=11_000, batch=96, rate=8e-4, muon=3e-3, warmup=300, decay=0.03, average=0.9995, sheet_every=3500),
        stages=(Stage(4000, 6, 512),),
        depth=16,
        width=512,
        heads=8,
        text_channels=256,
        text_layers=4,
    ),
}
