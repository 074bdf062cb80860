"""Codecs: how a kept key or value is held, and what that takes in bytes. Arithmetic only; `cache/codecs.py` codes.

A vector is the key or the value of one token in one head. It is coded by itself, with one scale and one minimum [ours:
smaller groups of channels cost more bytes than their smaller error is worth], so that choosing survivors is copying
rows of bytes, and what survives is never rounded again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from scalekv.errors import InvalidInput

HEADER_BYTES = 4
"""Scale and minimum of a vector of integers, in bfloat16: its range is that of float32, and its rounding adds nothing
to the error, because codes are chosen for the rounded scale and minimum."""

CODING_LIMIT = 4 * 2**20
"""Tokens are coded together as long as their scratch stays under this many bytes; one token of all heads always is."""

STRICT_CODING_LIMIT = 2**18
"""The same for strict plans."""

_FORMS = "none, int8, int6, int4 or fp8, or two of them for keys and values, such as 'int8/int4'"


@dataclass(frozen=True)
class VectorCodec:
    """How one vector is held.

    Args:
        name: ``"none"`` (the compute dtype), ``"int8"``, ``"int6"``, ``"int4"`` or ``"fp8"``.
        bits: of one number; 0 for those of the compute dtype.
        header: bytes of scale and minimum.
        pack: numbers that are packed together.
    """

    name: str
    bits: int
    header: int
    pack: int = 1

    @property
    def exact(self) -> bool:
        """Whether nothing is rounded."""
        return not self.bits

    def vector_bytes(self, head_dim: int, element_bytes: int) -> int:
        """Bytes of one vector, scale and minimum included."""
        return self.header + (head_dim * self.bits // 8 if self.bits else head_dim * element_bytes)

    def encoding_bytes(self, head_dim: int, element_bytes: int) -> int:
        """Scratch of encoding one vector: twice in float32, its codes and a few numbers; exact ones are copied."""
        return 10 * head_dim + 64 if self.bits else head_dim * element_bytes

    def decoding_bytes(self, head_dim: int) -> int:
        """Scratch of decoding one vector."""
        return 9 * head_dim + 32 if self.bits else 0

    def check(self, head_dim: int, element_bytes: int) -> None:
        """Refuse heads that cannot be coded, or would not get smaller.

        Raises:
            InvalidInput: one of the two.
        """
        if head_dim % self.pack:
            raise InvalidInput(
                f"The codec {self.name} packs {self.pack} channels together, but this model has {head_dim} per head; "
                f"use int8."
            )
        taken, exact = self.vector_bytes(head_dim, element_bytes), head_dim * element_bytes
        if self.bits and taken >= exact:
            raise InvalidInput(
                f"The codec {self.name} takes {taken} bytes for the {head_dim} channels of this model's heads, "
                f"no fewer than the {exact} without it; use none."
            )


VECTOR_CODECS: dict[str, VectorCodec] = {
    codec.name: codec
    for codec in (
        VectorCodec("none", 0, 0),
        VectorCodec("int8", 8, HEADER_BYTES),
        VectorCodec("int6", 6, HEADER_BYTES, pack=4),
        VectorCodec("int4", 4, HEADER_BYTES, pack=2),
        VectorCodec("fp8", 8, HEADER_BYTES // 2),
    )
}
"""Every codec by name."""


@dataclass(frozen=True)
class Codec:
    """The codecs of keys and of values.

    Args:
        key: of keys.
        value: of values.
    """

    key: VectorCodec
    value: VectorCodec

    @classmethod
    def parse(cls, text: str) -> Codec:
        """Read ``"none"``, ``"int8"``, or keys and values apart: ``"int8/int4"``.

        Raises:
            InvalidInput: it is none of these.
        """
        if isinstance(text, cls):
            return text
        names = [name.strip().lower() for name in text.split("/")] if isinstance(text, str) else []
        if len(names) not in (1, 2) or not all(name in VECTOR_CODECS for name in names):
            raise InvalidInput(f"codec must be {_FORMS}; got {text!r}.")
        return cls(VECTOR_CODECS[names[0]], VECTOR_CODECS[names[-1]])

    @property
    def exact(self) -> bool:
        """Whether neither keys nor values are rounded."""
        return self.key.exact and self.value.exact

    @cached_property
    def halves(self) -> tuple[VectorCodec, VectorCodec]:
        """Of keys and of values."""
        return self.key, self.value

    def token_bytes(self, head_dim: int, element_bytes: int) -> int:
        """Bytes of one token's key and value in one head and row."""
        return sum(half.vector_bytes(head_dim, element_bytes) for half in self.halves)

    def check(self, head_dim: int, element_bytes: int) -> None:
        """Refuse heads that cannot be coded.

        Raises:
            InvalidInput: see :meth:`VectorCodec.check`.
        """
        for half in self.halves:
            half.check(head_dim, element_bytes)

    def __str__(self) -> str:
        return self.key.name if self.key == self.value else f"{self.key.name}/{self.value.name}"


def block_tokens(vectors: int, vector_bytes: int, strict: bool) -> int:
    """Tokens that are coded together.

    Args:
        vectors: vectors that one token is, over the rows and heads that are worked on.
        vector_bytes: scratch of one vector.
        strict: whether scratch is scarce.
    """
    limit = STRICT_CODING_LIMIT if strict else CODING_LIMIT
    return max(1, limit // max(1, vectors * vector_bytes))
