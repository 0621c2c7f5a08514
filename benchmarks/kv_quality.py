"""What quantising a KV cache costs in quality: ``python benchmarks/kv_quality.py``.

Attention of one query a head to keys and values in full precision, and to the same ones quantised
and dequantised by the operators' own quantiser. Formats, groups of keys per channel (KC) or per
token (KT), group sizes; values always per token. Three kinds of data:

    random    all numbers normal: outputs are near zero, so relative errors look large
    outliers  four channels of the keys lie off zero by ten standard deviations
    peaked    queries are a key plus noise: a few keys have nearly all weight

Columns: relative error of the keys (root mean square), mean absolute error of the output, mean
absolute output, ||o' - o|| / ||o||, total variation between the weights, largest error. EXPECTED
holds an independent measurement of the scheme on random data and on data with outliers; BitDecoding
prints an error of 0.00277 for the first row.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattune.ops.quantized_kv_cache import QuantizedKVCache

DIM, BLOCK = 128, 128
KINDS = ("random", "outliers", "peaked")
FORMATS = ("int8", "int4", "int2")
GROUPS = (128, 32)
COLUMNS = ("key_error", "mean_error", "mean_output", "relative", "variation", "largest")
OUTLIERS = 4
SHIFT = 10.0

EXPECTED: dict[tuple[str, str, str, int], tuple[float, ...]] = {
    ("random", "int4", "channel", 128): (0.100, 0.0028, 0.0202, 0.141, 0.039, 0.015),
    ("random", "int4", "channel", 32): (0.078, 0.0022, 0.0202, 0.109, 0.031, 0.011),
    ("random", "int4", "token", 128): (0.100, 0.0029, 0.0204, 0.141, 0.039, 0.014),
    ("random", "int2", "channel", 128): (0.500, 0.0165, 0.0207, 0.80, 0.199, 0.082),
    ("random", "int2", "channel", 32): (0.393, 0.0118, 0.0202, 0.59, 0.152, 0.059),
    ("outliers", "int4", "channel", 128): (0.051, 0.0032, 0.0215, 0.147, 0.042, 0.015),
    ("outliers", "int4", "token", 128): (0.198, 0.0094, 0.0215, 0.437, 0.162, 0.046),
    ("outliers", "int2", "channel", 32): (0.200, 0.0127, 0.021, 0.61, 0.161, 0.056),
    ("outliers", "int2", "token", 32): (0.636, 0.0675, 0.021, 3.17, 0.495, 0.62),
}

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Data:
    """Queries [heads, dim], keys and values [heads, tokens, dim]."""

    q: Rows
    k: Rows
    v: Rows


def make(kind: str, heads: int, tokens: int, seed: int = 0) -> Data:
    """Draw data of a kind; tokens are whole blocks."""
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((heads, DIM), dtype=np.float32)
    k, v = (rng.standard_normal((heads, tokens, DIM), dtype=np.float32) for _ in range(2))
    if kind == "outliers":
        for head in range(heads):
            channels = rng.choice(DIM, OUTLIERS, replace=False)
            k[head][:, channels] += SHIFT * rng.choice([-1, 1], OUTLIERS)
    elif kind == "peaked":
        q += k[np.arange(heads), rng.integers(0, tokens, heads)]
    return Data(q, k, v)


def attend(data: Data, k: Any, v: Any) -> tuple[Any, Any]:
    """Return weights [heads, tokens] and outputs [heads, dim] in float64."""
    scores = np.einsum("hd,htd->ht", data.q.astype(np.float64), k) / np.sqrt(DIM)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    return weights, np.einsum("ht,htd->hd", weights, v)


def restored(cache: QuantizedKVCache, which: str, rows: Rows) -> Any:
    """Quantise and dequantise rows."""
    heads, tokens, width = rows.shape
    blocks = rows.reshape(heads, tokens // cache.block_tokens, cache.block_tokens, width)
    return cache.dequantize(which, *cache.quantize(which, blocks)).reshape(rows.shape)


def measure(data: Data, format: str, key_groups: str, group_size: int) -> dict[str, float]:
    """Return the columns for one scheme."""
    cache = QuantizedKVCache(
        len(data.q), DIM, DIM, format, key_groups, group_size, BLOCK, "float32"
    )
    k, v = restored(cache, "k", data.k), restored(cache, "v", data.v)
    weights, outputs = attend(data, data.k, data.v)
    other_weights, other_outputs = attend(data, k, v)
    error = other_outputs - outputs
    found = (
        np.linalg.norm(k - data.k) / np.linalg.norm(data.k),
        np.abs(error).mean(),
        np.abs(outputs).mean(),
        np.linalg.norm(error) / np.linalg.norm(outputs),
        np.abs(other_weights - weights).sum(1).mean() / 2,
        np.abs(error).max(),
    )
    return {name: float(f"{value:.3g}") for name, value in zip(COLUMNS, found, strict=True)}


def rows(heads: int, tokens: int) -> Iterator[dict[str, Any]]:
    """Measure every scheme on every kind of data."""
    for kind in KINDS:
        data = make(kind, heads, tokens)
        for format in FORMATS:
            for key_groups in ("channel", "token"):
                for group_size in GROUPS:
                    found = measure(data, format, key_groups, group_size)
                    expected = EXPECTED.get((kind, format, key_groups, group_size))
                    scheme = Scheme(kind, format, key_groups, group_size)
                    named = dict(zip(COLUMNS, expected, strict=True)) if expected else None
                    yield {**asdict(scheme), **found, "expected": named}


@dataclass(frozen=True)
class Scheme:
    """What a row is about."""

    data: str
    format: str
    key_groups: str
    group_size: int


def line(row: dict[str, Any]) -> str:
    """Return a line of the table: own numbers, and the expected ones in brackets."""
    short = {"channel": "KC", "token": "KT"}[row["key_groups"]]
    name = f"{row['data']:9}{row['format']:5}{short} g{row['group_size']:<4}"
    expected = row["expected"] or {}
    cells = [f"{row[c]:.3g}" + (f" ({expected[c]:.3g})" if c in expected else "") for c in COLUMNS]
    return name + "".join(f"{cell:>18}" for cell in cells)


def main() -> None:
    """Print the table, and write it as JSON where told."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--json", help="file to write the rows to")
    options = parser.parse_args()
    print(" " * 20 + "".join(f"{name:>18}" for name in COLUMNS))
    found = []
    for row in rows(options.heads, options.tokens):
        found.append(row)
        print(line(row), flush=True)
    if options.json:
        sizes = {"heads": options.heads, "tokens": options.tokens, "dim": DIM}
        with open(options.json, "w") as file:
            json.dump({**sizes, "rows": found}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
