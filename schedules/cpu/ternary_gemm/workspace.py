"""The workspace of ternary GEMM: quantised activations, their scales and their sums."""

from __future__ import annotations

from dataclasses import dataclass

LINE = 64


def round_up(value: int, step: int) -> int:
    """Return the next multiple of ``step``."""
    return -(-value // step) * step


@dataclass(frozen=True)
class Workspace:
    """Byte offsets: int8 rows of ``stride`` bytes, then float32 1/s, then int32 sums, then scratch.

    ``tokens`` is the bucket's upper end rounded up to whole token blocks: kernels compute whole
    blocks and drop the rows beyond the actual tokens when they store.
    """

    tokens: int
    stride: int
    scratch_bytes: int = 0

    @classmethod
    def of(cls, tokens: int, token_block: int, columns: int, scratch_bytes: int = 0) -> Workspace:
        """Return the workspace of a bucket, rows padded to an odd number of cache lines.

        Rows a multiple of 4 KiB apart would share one set of the first cache: more than a dozen
        tokens at a time would evict each other.
        """
        lines = -(-columns // LINE) | 1
        return cls(round_up(tokens, token_block), lines * LINE, scratch_bytes)

    @property
    def scales(self) -> int:
        """Offset of the reciprocal scales."""
        return self.tokens * self.stride

    @property
    def sums(self) -> int:
        """Offset of the sums of the quantised activations."""
        return self.scales + round_up(4 * self.tokens, LINE)

    @property
    def scratch(self) -> int:
        """Offset of the template's own scratch."""
        return self.sums + round_up(4 * self.tokens, LINE)

    @property
    def bytes(self) -> int:
        """Total bytes."""
        return self.scratch + self.scratch_bytes
