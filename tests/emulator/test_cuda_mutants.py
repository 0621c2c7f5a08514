"""The emulated GPU notices broken kernels: each planted mistake fails or computes wrong values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.emulator.cuda.run import launch
from tests.emulator.mutants import Mutants, assert_caught, usage_of

SOURCE = Path(__file__).with_name("split_decode.cu").read_text()
HEADS, DIM, THREADS = 8, 64, 128
RING_BYTES = 2 * 4 * 3 * 16 * DIM * 2

MUTANTS: Mutants = {
    "a wait for one group less": ("wait_group 1;", "wait_group 2;", ""),
    "one try to wait for the mbarrier": ("@done bra OVER; bra WAIT;", "", ""),
    "no wait for the mbarrier": (
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], 0;",
        "setp.eq.u32 done, 0, 0;",
        "",
    ),
    "no barrier before warps meet": ("__syncthreads();  // every warp", "// every warp", ""),
    "no barrier after warps meet": ("__syncthreads();  // all warps", "// all warps", ""),
    "no barrier after the count": ("__syncthreads();  // everyone", "// everyone", ""),
    "no barrier after mbarrier.init": (
        "__syncthreads();  // the mbarrier",
        "// the mbarrier",
        "is not initialised",
    ),
    "a barrier of some warps": (
        "__syncthreads();  // all warps",
        "if (warp < 2) __syncthreads();  // all warps",
        "",
    ),
    "a barrier of some lanes": (
        "__syncthreads();  // all warps",
        "if (lane < 16) __syncthreads();  // all warps",
        "",
    ),
    "another swizzle for reading": (
        "place(lane % 16, i * 2 + lane / 16)",
        "(lane % 16 * DIM + (i * 2 + lane / 16) * 8)",
        "",
    ),
    "rows of values without their swizzle": ("lane / 16 * 8 + lane % 8,", "lane % 16,", ""),
    "fragments swapped": ("mma(s, a, qf[i][0], qf[i][1]);", "mma(s, a, qf[i][1], qf[i][0]);", ""),
    "fragments of the probabilities swapped": (
        "mma(o[i], a, p0, p1);",
        "mma(o[i], a, p1, p0);",
        "",
    ),
    "probabilities not transposed": (
        'asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(r));',
        "",
        "",
    ),
    "misaligned rows": ("lane / 8 % 2 * 8])));", "lane / 8 % 2 * 4])));", "not a multiple of 16"),
    "a slot overwritten while it is read": ("fetch(round + STAGES - 1);", "fetch(round + 3);", ""),
    "a shuffle too few": (
        "for (int m = 4; m < 32; m *= 2) x +=",
        "for (int m = 8; m < 32; m *= 2) x +=",
        "",
    ),
    "a shuffle of half a warp": (
        "__shfl_xor_sync(MASK, x, m, 32));",
        "__shfl_xor_sync(MASK >> 16, x, m, 32));",
        "is without lane",
    ),
    "tokens behind the cache": (", tokens - 1);", ", 1 << 30);", "illegal access"),
    "no mask behind the last token": ("token + j / 2 * 8 < tokens", "true", ""),
    "a block too early combines": ("others = splits - 1 -", "others = splits - 2 -", ""),
    "too little shared memory": ("#define STAGES 3", "#define STAGES 4", "shared"),
    "an index of another array": (
        "float o[4][4] = {}, top[2]",
        "float o[4][3] = {}, top[2]",
        "outside of its array",
    ),
}


def _decode(source: str, tokens: int, splits: int) -> float:
    """Return the largest error, 1 being as much as rounding explains."""
    rng = np.random.default_rng(tokens)
    q, k, v = (rng.standard_normal((n, DIM)).astype(np.float16) for n in (HEADS, tokens, tokens))
    q *= np.float16(0.2)
    part = np.full((splits, HEADS, DIM), np.nan, np.float32)
    lse = np.full((splits, HEADS), np.nan, np.float32)
    out = np.full((HEADS, DIM), np.nan, np.float32)
    arguments = [q, k, v, part, lse, np.zeros(1, np.uint32), out, np.int32(tokens)]
    launch(source, "decode_kernel", arguments, splits, THREADS, RING_BYTES)
    scores = q.astype(np.float64) @ k.astype(np.float64).T
    weights = np.exp2(scores - scores.max(axis=1, keepdims=True))
    expected = weights @ v.astype(np.float64) / weights.sum(axis=1, keepdims=True)
    # Probabilities are rounded to f16: 2^-11 of values near 1.
    return float(np.abs(out - expected).max() / 2e-3)


def _wrong(source: str) -> bool:
    # Not the other way round: the error may be NaN.
    return not _decode(source, 333, 2) < 1


@pytest.mark.parametrize("tokens, splits", [(1, 1), (64, 1), (200, 2), (333, 4), (1000, 3)])
def test_the_kernel_is_right(tokens: int, splits: int) -> None:
    assert _decode(SOURCE, tokens, splits) < 1


def test_it_is_a_kernel_for_gpus() -> None:
    assert usage_of(SOURCE, "decode").spill_stores == 0


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistake_is_caught(name: str) -> None:
    assert_caught(SOURCE, MUTANTS[name], _wrong)
