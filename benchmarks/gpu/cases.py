"""The standard measurement's problems: what papers report on, at decoding's sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from wattune.ops import (
    BlockSparseDecodeAttention,
    DecodeAttention,
    Problem,
    QuantizedDecodeAttention,
)

K = 1024
# Blocks of 64 keys.
BLOCK = 64


@dataclass(frozen=True)
class Case:
    """A problem with a name; ``standard`` ones are measured unless told, small ones sanitized.

    ``energy``: its candidates' energies are compared.
    """

    name: str
    problem: Problem
    standard: bool = True
    small: bool = False
    energy: bool = False


def seer(batch: int, context: int, sparsity: float = 0.0) -> Problem:
    """Return SeerAttention-R's shape (arXiv 2506.08889): 64/8 heads of 128, blocks of 64."""
    sizes = (batch, context, 64, 8, 128)
    if not sparsity:
        return DecodeAttention(*sizes)
    listed = round(context // BLOCK * (1 - sparsity))
    return BlockSparseDecodeAttention(*sizes, max_blocks=listed, block_size=BLOCK)


def bit(context: int, kv_heads: int, bits: str = "") -> Problem:
    """Return BitDecoding's shape (arXiv 2503.18773): 32 heads of 128, one request."""
    sizes = (1, context, 32, kv_heads, 128)
    return QuantizedDecodeAttention(*sizes, format=bits) if bits else DecodeAttention(*sizes)


def mimo(batch: int, context: int, query_tokens: int, window: int = 0) -> Problem:
    """Return a layer of MiMo-V2-Flash: global 64/4, windowed with sinks 64/8, 192/128 wide."""
    return DecodeAttention(
        *(batch, context, 64, 8 if window else 4, 192),
        value_dim=128,
        query_tokens=query_tokens,
        window=window,
        sinks=bool(window),
    )


def cases() -> Iterator[Case]:
    """Yield all cases; names start with the paper or model they come from."""
    for batch, context in ((1, 8), (1, 32), (1, 128), (4, 32), (16, 8), (16, 32), (16, 128)):
        standard = (batch, context) in ((16, 32), (1, 128))
        name, energy = f"seer {batch}x{context}K", (batch, context) == (16, 32)
        yield Case(f"{name} dense", seer(batch, context * K), standard, energy=energy)
        for share in (0.5, 0.7, 0.9):
            yield Case(
                f"{name} {share:.0%} sparse",
                seer(batch, context * K, share),
                standard and share == 0.9,
                energy=energy and share == 0.9,
            )
    for context in (4, 32, 128):
        for kv_heads in (8, 32):
            for bits in ("", "int8", "int4", "int2"):
                standard = context == 32 and kv_heads == 8 and bits != "int8"
                name = f"bit {context}K 32/{kv_heads} {bits or 'bfloat16'}"
                problem = bit(context * K, kv_heads, bits)
                yield Case(name, problem, standard, energy=standard and bits == "int4")
    for tokens in (1, 4):
        for batch in (1, 16):
            name = f"mimo {batch}x32K q{tokens}"
            yield Case(f"{name} global", mimo(batch, 32 * K, tokens), batch == 16)
            yield Case(f"{name} window", mimo(batch, 32 * K, tokens, 128), batch == 16)
    # Odd sizes that end in the middle of everything, for the sanitizer.
    small = {"standard": False, "small": True}
    yield Case("small dense", DecodeAttention(2, 333, 16, 2, 128), **small)
    yield Case("small window", mimo(2, 333, 4, 128), **small)
    sparse = BlockSparseDecodeAttention(2, 333, 16, 2, 128, max_blocks=3)
    yield Case("small sparse", sparse, **small)
    yield Case("small int4", QuantizedDecodeAttention(2, 333, 16, 2, 128), **small)
