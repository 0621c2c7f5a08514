"""What top-k and alignment cost beside a kernel that does nothing.

    python -m benchmarks.routing_calls [--folder KERNELS [--compile]]

Kernels of MiMo-V2-Flash's router for one thread are called in a loop in C, 64 batches of tokens in
turn. `empty` takes the arguments of the alignment, checks them as every kernel does and returns:
what is left of the alignment's time is its work. Writes a dated file. With a folder, kernels are
kept in it by their source and target, and `--compile` only compiles them: compilers do not disturb
what is timed later.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from benchmarks.kept import Kept, add_options, kept_in

from wattune.compiler.bench.machine import describe_machine
from wattune.compiler.bench.results import results_file, write_rows
from wattune.compiler.measure.ffi import Call, Library
from wattune.compiler.measure.memory import pages
from wattune.compiler.measure.pool import Rotation
from wattune.compiler.measure.timing import Timer
from wattune.ops import MoeAlignBlockSize, MoeTopk, Problem, operator
from wattune.schedules.host import device_name
from wattune.schedules.program import tensor_program
from wattune.schedules.target import Target
from wattune.schedules.template import templates_for

RESULTS = Path(__file__).with_name("results")
EXPERTS, TOP_K = 256, 8
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 1024)
COPIES = 64
ROUNDS, BUDGET = 15, 0.02


class Timed:
    """A compiled kernel with its arguments; inputs rotate."""

    def __init__(self, problem: Problem, target: Target, kept: Kept, empty: bool) -> None:
        """Compile the default schedule, or nothing."""
        template = templates_for(problem, target)[0]
        values = template.space(problem, target).default()
        sizes = template.sizes(problem, target, values)
        arguments = operator(problem.operator).arguments(problem)
        function = template.lower(problem, target, values)
        if empty:
            function = tensor_program(arguments, sizes, _nothing)
        name = "empty" if empty else problem.operator
        path = kept.path(name, template, problem, target, values, lambda: function)
        self.library = Library(str(path))
        sizes = {**problem.extents, **sizes}
        drawn = [_inputs(problem, seed) for seed in range(COPIES)]
        self.kept, tensors, rotations = [], [], []
        for index, argument in enumerate(arguments):
            shape = argument.concrete(sizes)
            copies = [d[argument.name] for d in drawn if argument.name in d]
            data = _aligned(np.stack(copies) if copies else np.zeros(shape, argument.dtype))
            self.kept.append(data)
            tensors.append((data.ctypes.data, argument.dtype, shape))
            if copies:
                places = data.ctypes.data + data[0].nbytes * np.arange(COPIES, dtype=np.int64)
                rotations.append((index, Rotation(places)))
        self.timer = Timer(self.library.address("main"), Call(tensors), rotations)
        self.runs: list[float] = []

    def measure(self) -> None:
        """Time a round."""
        self.runs.append(median(self.timer.measure(BUDGET, rotate=True, best=None)))


def _aligned(array: Any) -> Any:
    """Copy an array to pages of its own: kernels count on aligned workspaces."""
    found = pages(max(1, array.nbytes), huge=False)[: array.nbytes].view(array.dtype)
    found[...] = array.reshape(-1)
    return found.reshape(array.shape)


def _nothing(tensors: Any) -> None:
    """Emit a statement that does nothing."""
    from tvm.script import tirx as T

    del tensors
    T.evaluate(0)


def _inputs(problem: Problem, seed: int) -> dict[str, Any]:
    """Draw a batch; ids of tokens are distinct."""
    rng, tokens = np.random.default_rng(seed), problem.extents["tokens"]
    if isinstance(problem, MoeTopk):
        return operator("moe_topk").make_inputs(problem, rng)
    order = np.argsort(rng.random((tokens, EXPERTS)), -1)
    return {"topk_ids": order[:, :TOP_K].astype(np.int32)}


def kernels(target: Target, tokens: int, kept: Kept) -> dict[str, Timed]:
    """Compile what is timed for a number of tokens."""
    align = MoeAlignBlockSize(tokens, EXPERTS, TOP_K)
    return {
        "topk": Timed(
            MoeTopk(tokens, EXPERTS, TOP_K, e_score_correction_bias=True), target, kept, False
        ),
        "align": Timed(align, target, kept, False),
        "empty": Timed(align, target, kept, True),
    }


def row(tokens: int, timed: dict[str, Timed]) -> dict[str, Any]:
    """Measure a number of tokens."""
    for _ in range(ROUNDS):
        for one in timed.values():
            one.measure()
    seconds = {name: median(one.runs) for name, one in timed.items()}
    both = [a + t for a, t in zip(timed["align"].runs, timed["topk"].runs, strict=True)]

    def share(name: str) -> float:
        """Return the median over the rounds: a machine may be slower in some of them."""
        return median(run / whole for run, whole in zip(timed[name].runs, both, strict=True))

    return {
        "tokens": tokens,
        "threads": 1,
        "seconds": seconds,
        "align_over_both": share("align"),
        "empty_over_both": share("empty"),
    }


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    options = parser.parse_args()
    target, rows = Target.native(threads=1), []
    with kept_in(parser, options) as kept:
        compiled = {tokens: kernels(target, tokens, kept) for tokens in TOKENS}
        if options.compile:
            return
        for tokens, timed in compiled.items():
            rows.append(found := row(tokens, timed))
            times = (f"{name} {1e9 * value:.0f} ns" for name, value in found["seconds"].items())
            print(f"{tokens} tokens: {', '.join(times)}; {100 * found['align_over_both']:.0f} %")
    path = results_file(RESULTS, "routing-calls", device_name())
    write_rows(path, {"machine": describe_machine(target)}, rows)
    print(f"{path} written")


if __name__ == "__main__":
    main()
