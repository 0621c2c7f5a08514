"""What templates for GPUs say that blocks take: as built kernels are launched."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from benchmarks.gpu.sass import PROBLEMS
from tests.schedules.cuda import HOPPER

from wattune.compiler.cuda.program import compile_facts
from wattune.compiler.tvm_setup import prepare_tvm
from wattune.ops import Problem, RectifyAttention, TokenSparseDecodeAttention
from wattune.schedules.candidate import Candidate
from wattune.schedules.cuda import program as gpu
from wattune.schedules.cuda.program import GpuProgram
from wattune.schedules.program import Tensors, tensor_program
from wattune.schedules.template import BlockUse, default_candidate, template_of, templates_for

# One problem an operator: of many SMs' work, so that no block is without a part.
KINDS: tuple[Problem, ...] = (
    *{problem.operator: problem for problem in PROBLEMS}.values(),
    TokenSparseDecodeAttention(16, 32768, 64, 8, 128, max_tokens=4096),
    RectifyAttention(16, 32768, 64, 8, 128, query_tokens=4),
)
# By this factor: estimates are sums of what is alive, the assembler moves loads and places.
REGISTERS_APART = 2.0
# Static memory that the assembler lays out beside what kernels ask for.
SHARED_APART = 512


@dataclass(frozen=True)
class Launched:
    """A program that is built, and the blocks of each kernel as its host function launches them."""

    program: GpuProgram
    blocks: dict[str, int]

    @property
    def longest(self) -> str:
        """Return the kernel with rings in shared memory, or else with the most threads."""
        sizes = self.program.blocks
        return max(sizes, key=lambda n: (sizes[n].shared, self.blocks[n] * sizes[n].threads))


def launched(candidate: Candidate, monkeypatch: pytest.MonkeyPatch) -> Launched:
    prepare_tvm()
    from tvm import sym, tirx

    grids: dict[int, list[Any]] = {}
    sizes: dict[str, Any] = {}
    emit = gpu._emit

    def record(index: int, grid: Any, *rest: Any) -> None:
        grids[index] = [*grid]
        emit(index, grid, *rest)

    def host(arguments: Any, decided: Any, body: Callable[[Tensors], None]) -> Any:
        def emit_body(tensors: Tensors) -> None:
            sizes.update(tensors.sizes)
            body(tensors)

        return tensor_program(arguments, decided, emit_body)

    monkeypatch.setattr(gpu, "_emit", record)
    monkeypatch.setattr(gpu, "tensor_program", host)
    values = candidate.schedule.values
    program = template_of(candidate).lower(candidate.problem, candidate.target, values)
    assert isinstance(program, GpuProgram)
    analyzer = sym.Analyzer()
    for name, number in candidate.problem.extents.items():
        if name in sizes:
            analyzer.bind(sizes[name], tirx.const(number, "int64"))
    one = tirx.const(1, "int64")
    grid = {
        index: [int(analyzer.simplify(one * n)) for n in found] for index, found in grids.items()
    }
    blocks = {name: math.prod(grid[index]) for index, name in enumerate(program.kernels)}
    return Launched(program, blocks)


def use_of(candidate: Candidate) -> BlockUse:
    values = candidate.schedule.values
    counts = template_of(candidate).counts(candidate.problem, candidate.target, values)
    assert counts.block is not None
    return counts.block


@pytest.mark.parametrize("problem", KINDS, ids=str)
def test_blocks_are_those_launched(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = default_candidate(problem, HOPPER)
    made, use = launched(candidate, monkeypatch), use_of(candidate)
    name = made.longest
    assert (use.blocks, use.threads) == (made.blocks[name], made.program.blocks[name].threads)


@pytest.mark.parametrize("problem", KINDS, ids=str)
def test_blocks_of_other_schedules(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some splits of a sampled schedule may have no keys: those blocks are not counted."""
    space = templates_for(problem, HOPPER)[0].space(problem, HOPPER)
    rng = np.random.default_rng(1)
    for _ in range(3):
        values = space.sample(rng)
        assert values is not None
        schedule = default_candidate(problem, HOPPER).schedule
        candidate = Candidate(problem, HOPPER, schedule.make(schedule.template, values))
        made, use = launched(candidate, monkeypatch), use_of(candidate)
        assert any(
            use.threads == block.threads and 1 <= use.blocks <= made.blocks[name]
            for name, block in made.program.blocks.items()
        ), values


@pytest.mark.nvcc
@pytest.mark.parametrize("problem", KINDS, ids=str)
def test_memory_and_registers_are_the_assemblers(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = default_candidate(problem, HOPPER)
    made, use = launched(candidate, monkeypatch), use_of(candidate)
    facts, name = compile_facts(made.program, HOPPER), made.longest
    shared = facts[f"{name}.shared"] + facts[f"{name}.dynamic_shared"]
    registers = facts[f"{name}.registers"]
    assert abs(use.shared - shared) <= SHARED_APART
    assert 1 / REGISTERS_APART <= use.registers / registers <= REGISTERS_APART
