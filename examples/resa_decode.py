"""Decodes sparsely with a small random transformer, without and with rectification (ReSA).

python examples/resa_decode.py [--tokens 512] [--threads 1] [--references]

Each step attends to a tenth of the key blocks. What that leaves out goes into the keys and values
of later layers, and so into every later step. ReSA (arXiv 2506.04108) computes every 32 tokens
again with dense attention and overwrites their rows of the cache. All three runs are given the
same tokens, so their outputs can be compared.

The traffic is what the operators that were called must move. It is more than the model's sum, which
is of long contexts and of keys and values alone: here a tenth of the blocks is rounded up to whole
ones, and the queries of rectified tokens are counted too.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import wattune as wt
from wattune.ops import Problem

Floats = NDArray[np.float32]

LAYERS, HIDDEN, INNER, VOCABULARY = 4, 256, 512, 256
HEADS, KV_HEADS, WIDTH = 8, 2, 64
PROMPT, BLOCK, KEEP, EVERY = 512, 16, 0.1, 32
# Attention moves the hidden state as much as all else does: errors show.
ATTENTION_GAIN = 3.0


def main() -> int:
    """Compile the kernels, decode, print errors and traffic."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=512, help="to decode")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--references", action="store_true", help="numpy in place of kernels")
    options = parser.parse_args()
    found = problems(PROMPT + options.tokens)
    run = references(found) if options.references else compiled(found, options.threads)
    rows, traffic = decode(found, run, options.tokens)
    print_errors(rows)
    print_traffic(traffic)
    return 0


# --- kernels -------------------------------------------------------------------------------------

Run = Callable[[str, Mapping[str, Any]], Any]


def problems(context: int) -> dict[str, Problem]:
    """Return what is needed, by role: operators of one layer, for one request."""
    cache: dict[str, Any] = {"kv_heads": KV_HEADS, "head_dim": WIDTH, "dtype": "float32"}
    heads = {**cache, "query_heads": HEADS}
    blocks: dict[str, Any] = {"block_size": BLOCK}
    ops = wt.ops
    most = selected(context)
    return {
        "append": ops.KVCacheAppend(1, context, **cache),
        "dense": ops.DecodeAttention(1, context, **heads),
        "rectify": ops.RectifyAttention(1, context, query_tokens=EVERY, **heads),
        "bounds": ops.BlockMinmax(1, context, **cache, **blocks),
        "bounds again": ops.BlockMinmax(1, context, query_tokens=EVERY, **cache, **blocks),
        "score": ops.BlockScore(1, context, **heads, **blocks),
        "select": ops.SelectBlocks(
            1, context, KV_HEADS, most, BLOCK, method="fraction", fraction=KEEP
        ),
        "sparse": ops.BlockSparseDecodeAttention(1, context, max_blocks=most, **heads, **blocks),
    }


def selected(context: int) -> int:
    """Return how many blocks of a context are kept."""
    return int(np.ceil(KEEP * np.ceil(context / BLOCK)))


def compiled(found: Mapping[str, Problem], threads: int) -> Run:
    """Return what calls the kernels of a library with the default schedules."""
    library = wt.compile(list(found.values()), wt.Target.native(threads))
    with tempfile.TemporaryDirectory() as folder:
        kernels = wt.load(library.export(Path(folder) / "kernels.so"))
    fields = {"bounds": {"query_tokens": 1}, "bounds again": {"query_tokens": EVERY}}

    def run(role: str, tensors: Mapping[str, Any]) -> Any:
        entry = getattr(kernels, found[role].operator)
        return entry(**tensors, **fields.get(role, {}))

    return run


def references(found: Mapping[str, Problem]) -> Run:
    """Return what computes the operators' references."""

    def run(role: str, tensors: Mapping[str, Any]) -> Any:
        op = wt.ops.operator(found[role].operator)
        results = op.reference(found[role], tensors)
        for name in [name for name in results if name in tensors]:
            tensors[name][...] = results.pop(name)
        outputs = tuple(results.values())
        return outputs if len(outputs) > 1 else outputs[0] if outputs else None

    return run


# --- the model -----------------------------------------------------------------------------------


class Transformer:
    """A decoder of random weights: RMSNorm, rotary GQA, SwiGLU."""

    def __init__(self, rng: np.random.Generator) -> None:
        """Draw the weights."""

        def matrix(rows: int, columns: int, gain: float = 1.0) -> Floats:
            drawn = rng.standard_normal((rows, columns), dtype=np.float32)
            return drawn * np.float32(gain * rows**-0.5)

        self.embedding = rng.standard_normal((VOCABULARY, HIDDEN), dtype=np.float32)
        self.layers = [
            {
                "q": matrix(HIDDEN, HEADS * WIDTH),
                "k": matrix(HIDDEN, KV_HEADS * WIDTH),
                "v": matrix(HIDDEN, KV_HEADS * WIDTH),
                "o": matrix(HEADS * WIDTH, HIDDEN, ATTENTION_GAIN),
                "gate": matrix(HIDDEN, INNER),
                "up": matrix(HIDDEN, INNER),
                "down": matrix(INNER, HIDDEN, 0.5),
            }
            for _ in range(LAYERS)
        ]

    def __call__(self, tokens: NDArray[np.int64], start: int, attend: Any) -> Floats:
        """Return the hidden state after the last layer; ``attend(layer, q, k, v)`` attends."""
        x, positions = self.embedding[tokens], start + np.arange(len(tokens))
        for number, w in enumerate(self.layers):
            h = normalised(x)
            q, k, v = ((h @ w[name]).reshape(1, len(tokens), -1, WIDTH) for name in "qkv")
            out = attend(number, rotated(q, positions), rotated(k, positions), v)
            x = x + out.reshape(len(tokens), -1) @ w["o"]
            h = normalised(x)
            gate = h @ w["gate"]
            x = x + (gate / (1 + np.exp(-gate)) * (h @ w["up"])) @ w["down"]
        return normalised(x)


def normalised(x: Floats) -> Floats:
    """Divide by the root mean square."""
    mean: Floats = (x * x).mean(-1, keepdims=True)
    return np.asarray(x / np.sqrt(mean + np.float32(1e-6)))


def rotated(x: Floats, positions: NDArray[np.int64]) -> Floats:
    """Apply rotary embeddings to [1, tokens, heads, WIDTH]."""
    angles = positions[:, None] * 10000.0 ** (-np.arange(0, WIDTH, 2) / WIDTH)
    cos, sin = (f(angles)[:, None].astype(np.float32) for f in (np.cos, np.sin))
    low, high = np.split(x, 2, -1)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], -1)


# --- decoding ------------------------------------------------------------------------------------


class Request:
    """A request's caches and its ways to take a step; ``moved`` counts bytes by role."""

    def __init__(self, model: Transformer, found: Mapping[str, Problem], run: Run) -> None:
        """Make empty caches."""
        self.model, self.problems, self.run = model, found, run
        self.moved: Counter[str] = Counter()
        context = found["dense"].sizes["context"]
        blocks = -(-context // BLOCK)
        shape = (1, KV_HEADS, context, WIDTH)
        bounds = (1, KV_HEADS, blocks, WIDTH)
        shapes = {"k_cache": shape, "v_cache": shape, "k_min": bounds, "k_max": bounds}
        self.layers = [
            {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
            for _ in range(LAYERS)
        ]

    def copy(self) -> Request:
        """Return a request with the same caches that has moved nothing."""
        other = Request(self.model, self.problems, self.run)
        other.layers = [{n: a.copy() for n, a in layer.items()} for layer in self.layers]
        return other

    def call(self, role: str, layer: int, end: int, **tensors: Any) -> Any:
        """Run an operator on a layer's caches of ``end`` tokens, and count what it must move."""
        op = wt.ops.operator(self.problems[role].operator)
        states = {name: a for name, a in self.layers[layer].items() if name in op.signature}
        actual: dict[str, Any] = {"context": end}
        if role == "sparse":
            actual["max_blocks"] = int((tensors["block_indices"] >= 0).sum(-1).max())
        problem = dataclasses.replace(self.problems[role], **actual)
        self.moved[role] += op.work(problem).bytes
        return self.run(role, {**tensors, **states, "seq_lens": np.array([end], np.int32)})

    def rewrite(self, tokens: NDArray[np.int64], start: int) -> None:
        """Compute EVERY tokens densely and write their rows: a piece of a prompt, or again."""
        end = start + len(tokens)

        def attend(layer: int, q: Floats, k: Floats, v: Floats) -> Floats:
            out: Floats = self.call("rectify", layer, end, q=q, k=k, v=v)
            self.call("bounds again", layer, end)
            return out

        self.model(tokens, start, attend)

    def dense(self, tokens: NDArray[np.int64], start: int) -> Floats:
        """Decode one token with dense attention."""

        def attend(layer: int, q: Floats, k: Floats, v: Floats) -> Floats:
            self.call("append", layer, start + 1, k=k, v=v)
            out: Floats = self.call("dense", layer, start + 1, q=q)
            return out

        return self.model(tokens, start, attend)

    def sparse(self, tokens: NDArray[np.int64], start: int) -> Floats:
        """Decode one token with attention to the best blocks."""
        end = start + 1

        def attend(layer: int, q: Floats, k: Floats, v: Floats) -> Floats:
            self.call("append", layer, end, k=k, v=v)
            self.call("bounds", layer, end)
            scores = self.call("score", layer, end, q=q)
            blocks, _ = self.call("select", layer, end, scores=scores)
            out: Floats = self.call("sparse", layer, end, q=q, block_indices=blocks)
            return out

        return self.model(tokens, start, attend)


@dataclasses.dataclass(frozen=True)
class Row:
    """Mean relative errors of EVERY tokens: of the outputs, and what the cache did at the end."""

    tokens: int
    sparse: float
    rectified: float
    cache_sparse: float
    cache_rectified: float


def decode(found: Mapping[str, Problem], run: Run, count: int) -> tuple[list[Row], dict[str, Any]]:
    """Decode densely, sparsely and with rectification; return the errors and the traffic."""
    rng = np.random.default_rng(0)
    model = Transformer(rng)
    tokens = rng.integers(0, VOCABULARY, PROMPT + count)
    dense = Request(model, found, run)
    for start in range(0, PROMPT, EVERY):
        dense.rewrite(tokens[start : start + EVERY], start)
    sparse, rectified = dense.copy(), dense.copy()
    dense.moved.clear()
    rows: list[Row] = []
    errors: list[tuple[float, float]] = []
    for at in range(PROMPT, PROMPT + count):
        token = tokens[at : at + 1]
        expected = dense.dense(token, at)
        steps = [relative_error(r.sparse(token, at), expected) for r in (sparse, rectified)]
        errors.append((steps[0], steps[1]))
        if len(errors) == EVERY:
            # A dense step on a cache that sparse steps wrote: only the cache's errors remain.
            cache = [
                relative_error(r.copy().dense(token, at), expected) for r in (sparse, rectified)
            ]
            means = np.mean(errors, 0)
            rows.append(Row(at + 1 - PROMPT, *map(float, means), *cache))
            rectified.rewrite(tokens[at + 1 - EVERY : at + 1], at + 1 - EVERY)
            errors.clear()
    return rows, {"dense": dense.moved, "rectified": rectified.moved}


def relative_error(found: Floats, expected: Floats) -> float:
    """Return the norm of the difference over the norm."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def print_errors(rows: list[Row]) -> None:
    """Print a line every EVERY tokens."""
    print("relative error of the last hidden state, against dense attention throughout")
    print("                    sparse steps     a dense step on their cache")
    print("  tokens      sparse   rectified            sparse     rectified")
    for row in rows:
        steps = f"{row.sparse:>12.3f}{row.rectified:>12.3f}"
        print(f"{row.tokens:>8}{steps}{row.cache_sparse:>18.4f}{row.cache_rectified:>14.4f}")


def print_traffic(traffic: Mapping[str, Counter[str]]) -> None:
    """Print the bytes that had to move, as fractions of what dense attention reads."""
    moved, whole = traffic["rectified"], traffic["dense"]["dense"]
    parts = {
        "block bounds": (("score",), 1 / BLOCK),
        "selected blocks": (("sparse",), KEEP),
        "rectification": (("rectify", "bounds again"), 1 / EVERY),
        "append, bounds, selection": (("append", "bounds", "select"), 0.0),
    }
    print("\nbytes that must move for attention, as a fraction of dense attention's")
    print(f"{'':>28}{'measured':>10}{'model':>10}")
    total = np.zeros(2)
    for name, (roles, model) in parts.items():
        measured = sum(moved[role] for role in roles) / whole
        total += measured, model
        print(f"{name:>28}{measured:>10.4f}{model:>10.4f}")
    print(f"{'together (1/bs + p + 1/f)':>28}{total[0]:>10.4f}{total[1]:>10.4f}")


if __name__ == "__main__":
    sys.exit(main())
