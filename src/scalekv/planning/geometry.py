"""What a cache of one model, batch and schedule measures, before anything is dropped."""

from __future__ import annotations

from dataclasses import dataclass, replace

from scalekv.errors import InvalidInput
from scalekv.planning.schedule import Schedule

STOCK_KEY_BYTES = 4
"""The published Infinity and VAR loops hold keys in float32 under autocast, values in 16 bit."""


@dataclass(frozen=True)
class CacheGeometry:
    """The shape of a KV cache: everything a byte count depends on, and nothing else.

    Args:
        layers: self-attention layers L.
        heads: heads per layer h.
        head_dim: channels per head D.
        schedule: the segments of the run.
        batch: images drawn together.
        guidance: rows per image, 2 with classifier-free guidance (all conditional rows come first), else 1.
        element_bytes: bytes of one stored number, that of the dtype attention computes in.
        parts: row kinds that are held apart, see :meth:`apart`; 1 for none.

    Raises:
        InvalidInput: a count below 1.
    """

    layers: int
    heads: int
    head_dim: int
    schedule: Schedule
    batch: int = 1
    guidance: int = 2
    element_bytes: int = 2
    parts: int = 1

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "head_dim", "batch", "guidance", "element_bytes", "parts"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"A cache needs {name} >= 1, got {getattr(self, name)}.")

    @property
    def rows(self) -> int:
        """Rows run through the network: batch times guidance."""
        return self.batch * self.guidance

    def apart(self) -> CacheGeometry:
        """The same cache with each kind of row of a head as a head of its own, which may hold more than the other.

        Heads 0 to h - 1 are the conditional rows, h to 2h - 1 the unconditional ones, and the rows are the images.
        """
        return replace(self, heads=self.heads * self.guidance, guidance=1, parts=self.guidance * self.parts)

    @property
    def network_heads(self) -> int:
        """Heads of a layer of the network, whatever is held apart."""
        return self.heads // self.parts

    @property
    def head_token_bytes(self) -> int:
        """Bytes of one token's key and value in one head of one layer, over all rows."""
        return 2 * self.head_dim * self.element_bytes * self.rows

    @property
    def layer_token_bytes(self) -> int:
        """Bytes of one token's keys and values in all heads of one layer, over all rows."""
        return self.heads * self.head_token_bytes

    @property
    def token_bytes(self) -> int:
        """Bytes of one token in the whole network, over all rows."""
        return self.layers * self.layer_token_bytes

    @property
    def lossless_bytes(self) -> int:
        """The least an exact cache holds: the last segment is never stored. 100 % of a budget means this."""
        return self.token_bytes * self.schedule.history_tokens

    @property
    def stock_bytes(self) -> int:
        """What the published loops hold: the last segment too, and keys in float32."""
        elements = self.layers * self.heads * self.head_dim * self.rows * self.schedule.total_tokens
        return elements * (max(STOCK_KEY_BYTES, self.element_bytes) + self.element_bytes)


@dataclass(frozen=True)
class Convention:
    """How a paper or code base counts the bytes of a cache.

    Args:
        key_bytes: bytes of one key element.
        value_bytes: bytes of one value element.
        last_segment: whether the tokens of the last segment are counted.
    """

    key_bytes: int
    value_bytes: int
    last_segment: bool

    def cache_bytes(self, geometry: CacheGeometry, tokens: int | None = None) -> int:
        """Bytes of ``tokens`` tokens per head and layer (default: the full cache) in this convention.

        ``L * h * D * T * (size_k + size_v) * B * G``.
        """
        schedule = geometry.schedule
        if tokens is None:
            tokens = schedule.total_tokens if self.last_segment else schedule.history_tokens
        elements = geometry.layers * geometry.heads * geometry.head_dim * geometry.rows
        return elements * tokens * (self.key_bytes + self.value_bytes)


CONVENTIONS: dict[str, Convention] = {
    "scalekv": Convention(4, 2, last_segment=False),
    "heatkv": Convention(4, 2, last_segment=False),
    "hack": Convention(4, 2, last_segment=True),
    "stock": Convention(4, 2, last_segment=True),
    "16bit": Convention(2, 2, last_segment=False),
    "32bit": Convention(4, 4, last_segment=False),
}
"""Conventions by the name of the paper that counts so, from their memory columns [inferred; exact for ScaleKV's]."""
