"""How the published keys of the bitwise tokenizer spell their layers: every one is wrapped one level deeper."""

from __future__ import annotations

from torch import Tensor, nn

from scalekv.models.convolutions import Style, group_norm


class Wrapped(nn.Module):
    """A layer one level deeper, as the published keys have it."""

    def forward(self, states: Tensor) -> Tensor:
        """Apply the wrapped layer."""
        (layer,) = self.children()
        out: Tensor = layer(states)
        return out


class Conv(Wrapped):
    """A convolution under the name ``conv``."""

    def __init__(self, source: int, target: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(source, target, kernel, stride, padding)


class Norm(Wrapped):
    """A group norm under the name ``norm``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)


STYLE = Style(Conv, Norm)
