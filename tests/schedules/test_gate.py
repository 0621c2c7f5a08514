"""The learned gate on CPUs: modes, dtypes, ragged requests, the state machine step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.schedules.attention import check, run, values_of
from tests.schedules.kernels import assert_matches, compile_function
from tests.schedules.test_block_score import TARGETS, with_slots

from wattune.ops import AttnGate, AttnGateCompress, operator
from wattune.ops.attn_gate_compress import POOLINGS
from wattune.ops.dtypes import FLOATS
from wattune.schedules.target import Target

GATE, COMPRESS = operator("attn_gate"), operator("attn_gate_compress")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("target", TARGETS)
def test_every_dtype(target: Target, dtype: str) -> None:
    if dtype == "float16" and not target.has("f16c") and target.arch == "x86_64":
        pytest.skip("no conversion of half precision")
    check(AttnGate(3, 333, 4, 2, 16, 32, 16, dtype=dtype), target)
    check(AttnGateCompress(5, 100, 2, 32, 16, 16, 3, dtype=dtype), target)


@pytest.mark.parametrize("mode", ["qproj", "qavgproj", "qavg"])
@pytest.mark.parametrize(("norm", "rope"), [(True, True), (True, False), (False, True)])
def test_query_branches(mode: str, norm: bool, rope: bool) -> None:
    check(AttnGate(3, 333, 8, 2, 16, 16, 16, mode, norm, rope))


@pytest.mark.parametrize(
    ("group", "head_dim", "threads"), [(1, 128, 1), (4, 16, 2), (7, 64, 2), (8, 16, 1)]
)
def test_groups_and_widths(group: int, head_dim: int, threads: int) -> None:
    target = Target.native(min(threads, Target.native().cores))
    check(AttnGate(3, 700, 2 * group, 2, head_dim, 64, 16), target, vectors=2, grain=32)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("vectors", [4, 16])
def test_blocks_of_requests_and_columns(batch: int, vectors: int) -> None:
    # 40 columns do not come out even in pieces of two vectors.
    check(AttnGate(batch, 100, 2, 2, 16, 40, 16, dtype="float32"), vectors=vectors)


def test_slots_beyond_the_context_get_no_logit() -> None:
    problem = AttnGate(2, 40 * 16, 2, 2, 16, 16, 16)
    inputs = GATE.make_inputs(problem, np.random.default_rng(0))
    inputs = with_slots(inputs, ("k_compressed",), 71)
    expected = GATE.reference(problem, inputs)
    assert (expected["logits"][:, :, 40:] == -np.inf).all()
    assert_matches(problem, run(problem, inputs, grain=32), expected)


def test_positions_beyond_the_table_use_its_last_row() -> None:
    problem = AttnGate(2, 100, 2, 2, 16, 16, 16)
    inputs = GATE.make_inputs(problem, np.random.default_rng(0))
    inputs["cos_sin_cache"] = inputs["cos_sin_cache"][:40]
    assert_matches(problem, run(problem, inputs), GATE.reference(problem, inputs))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_poolings(pooling: str) -> None:
    check(AttnGateCompress(4, 80, 2, 16, 32, 16, 20, pooling, dtype="float32"))


@pytest.mark.parametrize("rule", ["first", "last"])
@pytest.mark.parametrize(("norm", "rope"), [(True, False), (False, True), (True, True)])
def test_key_branches(norm: bool, rope: bool, rule: str) -> None:
    problem = AttnGateCompress(
        4, 80, 2, 16, 16, 16, 2, norm=norm, rope=rope, position_rule=rule, dtype="float32"
    )
    check(problem)


@pytest.mark.parametrize(
    ("tokens", "threads"), [(1, 1), (1, 2), (2, 1), (63, 1), (64, 1), (65, 1), (130, 2), (400, 1)]
)
def test_new_tokens_before_within_and_over_blocks(tokens: int, threads: int) -> None:
    target = Target.native(min(threads, Target.native().cores))
    check(AttnGateCompress(7, 333, 2, 64, 32, 64, tokens), target, vectors=4, pooled=2)


def test_only_first_and_last_tokens_of_blocks_touch_entries() -> None:
    # One fills a block, one opens one, one is in the middle, one is empty.
    problem = AttnGateCompress(4, 64, 2, 16, 16, 16, dtype="float32")
    inputs = COMPRESS.make_inputs(problem, np.random.default_rng(3))
    inputs["k_compressed"][:] = 7
    inputs["seq_lens"] = np.array([32, 33, 40, 0], np.int32)
    got = run(problem, inputs)
    assert_matches(problem, got, COMPRESS.reference(problem, inputs))
    changed = (got["k_compressed"] != 7).any((1, 3))
    assert [np.flatnonzero(row).tolist() for row in changed] == [[1], [2], [], []]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_entries_are_rounded_to_nearest(dtype: str) -> None:
    # Within the tolerance, cutting off the lower bits would pass.
    problem = AttnGateCompress(4, 64, 2, 16, 64, 16, 64, dtype=dtype)
    inputs = COMPRESS.make_inputs(problem, np.random.default_rng(0))
    got, want = run(problem, inputs), COMPRESS.reference(problem, inputs)
    assert (got["k_compressed"] == want["k_compressed"]).mean() > 0.95


def test_norms_of_small_rows_feel_the_epsilon() -> None:
    for problem in (
        AttnGate(1, 64, 2, 2, 16, 16, 16, dtype="float32"),
        AttnGateCompress(1, 64, 2, 16, 16, 16, 64, dtype="float32"),
    ):
        op = operator(problem.operator)
        inputs = op.make_inputs(problem, np.random.default_rng(0))
        inputs["q" if "q" in inputs else "k"] *= np.float32(1e-3)
        assert_matches(problem, run(problem, inputs), op.reference(problem, inputs))


class Machine:
    """A compiled step; its states stay in place from call to call."""

    def __init__(self, problem: AttnGateCompress, inputs: dict[str, Any]) -> None:
        target = Target.native(1)
        template, values = values_of(problem, target)
        self.problem = problem
        self.kernel = compile_function(template.lower(problem, target, values), target)
        scratch = template.sizes(problem, target, values)["workspace_bytes"]
        self.arrays = {n: a.copy() for n, a in inputs.items()}
        self.arrays["workspace"] = _aligned(scratch)

    def step(self, k: Any, seq_lens: Any) -> None:
        from tvm_ffi import from_dlpack

        self.arrays["k"], self.arrays["seq_lens"] = np.ascontiguousarray(k), seq_lens
        names = [a.name for a in COMPRESS.arguments(self.problem)]
        self.kernel(*(from_dlpack(self.arrays[name]) for name in names))

    def states(self) -> dict[str, Any]:
        return {name: self.arrays[name] for name in ("k_remainder", "k_compressed")}


def _aligned(count: int) -> Any:
    whole = np.full(count + 64, 0xFF, np.uint8)
    start = -whole.ctypes.data % 64
    return whole[start : start + count]


@pytest.mark.parametrize("rule", ["first", "last"])
def test_three_blocks_token_by_token(rule: str) -> None:
    """Requests start at their own lengths; after every step all states equal the reference."""
    problem = AttnGateCompress(4, 64, 2, 16, 16, 16, position_rule=rule, dtype="float32")
    rng = np.random.default_rng(0)
    inputs = COMPRESS.make_inputs(problem, rng)
    # Slots that no token has reached may hold anything.
    inputs["k_compressed"][:] = np.inf
    inputs["k_remainder"][:] = np.nan
    machine = Machine(problem, inputs)
    begins = np.array([0, -3, -15, -100])
    states = {name: inputs[name] for name in ("k_remainder", "k_compressed")}
    for step in range(1, 52):
        k = rng.standard_normal(inputs["k"].shape, dtype=np.float32)
        seq_lens = np.maximum(begins + step, 0).astype(np.int32)
        now = {**inputs, **states, "k": k, "seq_lens": seq_lens}
        states = COMPRESS.reference(problem, now)
        machine.step(k, seq_lens)
        assert_matches(problem, machine.states(), states)
    entries = machine.arrays["k_compressed"]
    full = [int(np.isfinite(entry).all(-1).all(0).sum()) for entry in entries]
    # 51, 48, 36 and 0 tokens: the entries of open blocks are zero.
    assert full == [4, 3, 3, 0]
    assert not entries[0, :, 3].any()
    assert entries[1, :, 2].all()
    assert np.isinf(entries[3]).all()


@pytest.mark.parametrize("rest", [0, 1, 15])
def test_steps_of_one_and_of_many_tokens_equal_one_call(rest: int) -> None:
    length = 16 * 3 + rest
    rng = np.random.default_rng(rest)
    once = AttnGateCompress(2, 64, 2, 16, 16, 16, length, dtype="float32")
    inputs = COMPRESS.make_inputs(once, rng)
    inputs["seq_lens"] = np.full(2, length, np.int32)
    whole = run(once, inputs)
    assert_matches(once, whole, COMPRESS.reference(once, inputs))
    for tokens in (1, 7):
        problem = AttnGateCompress(2, 64, 2, 16, 16, 16, tokens, dtype="float32")
        machine = Machine(problem, {n: inputs[n] for n in inputs if n not in ("k", "seq_lens")})
        for end in range(length % tokens or tokens, length + 1, tokens):
            # Rows before position 0, of a first call that has too few tokens, are left out.
            k = np.full((2, tokens, 2, 16), np.nan, np.float32)
            first = max(0, end - tokens)
            k[:, tokens - (end - first) :] = inputs["k"][:, first:end]
            machine.step(k, np.full(2, end, np.int32))
        for name, found in machine.states().items():
            np.testing.assert_array_equal(found, whole[name])
