"""What holds of grouped GEMM and fused experts whatever the routing: order, shards, nobody here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.schedules.attention import vectors
from tests.schedules.kernels import assert_matches, compile_function, run_kernel

from wattune.ops import FusedMoe, GroupedGemm, operator
from wattune.ops.experts import ExpertsProblem, poison_untouched
from wattune.schedules.template import templates_for

TOKENS, EXPERTS, TOP_K = 11, 5, 3
# Rows of tiles are others: these schedules are of vector registers.
TARGET = vectors()
# Float32 outputs show every bit; experts do not divide into shards of two.
PROBLEMS: tuple[ExpertsProblem, ...] = (
    FusedMoe(TOKENS, EXPERTS, TOP_K, 128, 128, dtype="float32", format="int4"),
    GroupedGemm(TOKENS, EXPERTS, TOP_K, 24, 40, dtype="float32"),
)
ORDERS = ("expert", "pair")
WEIGHTS = {"fused_moe": ("gate_up_proj", "down_proj"), "grouped_gemm": ("weights",)}

Inputs = dict[str, Any]
Ids = NDArray[np.int32]


@cache
def kernel(problem: ExpertsProblem, order: str) -> Callable[[Mapping[str, Any]], Any]:
    """Compile once; return what runs the kernel on inputs and gives its output."""
    template = templates_for(problem, TARGET)[0]
    space = template.space(problem, TARGET)
    values = {**space.default(), "order": order}
    values["row_block"] = 1 if order == "pair" else 4
    space.check(values)
    compiled = compile_function(template.lower(problem, TARGET, values), TARGET)
    name = operator(problem.operator).signature[-1]

    def run(inputs: Mapping[str, Any]) -> Any:
        return run_kernel(problem, TARGET, template, values, inputs, compiled=compiled)[name]

    return run


def drawn(problem: ExpertsProblem) -> Inputs:
    return operator(problem.operator).make_inputs(problem, np.random.default_rng(4))


def routings() -> dict[str, Ids]:
    """Draw what routers can answer: any, some elsewhere, the same three, one, nobody."""
    rng = np.random.default_rng(5)
    any_ids = np.stack([rng.permutation(EXPERTS)[:TOP_K] for _ in range(TOKENS)]).astype(np.int32)
    one = np.full((TOKENS, TOP_K), -1, np.int32)
    one[:, 1] = EXPERTS - 1
    return {
        "any": any_ids,
        "some": np.where(rng.random(any_ids.shape) < 0.4, -1, any_ids).astype(np.int32),
        "same": np.tile(np.arange(TOP_K, dtype=np.int32), (TOKENS, 1)),
        "one": one,
        "nobody": np.full((TOKENS, TOP_K), -1, np.int32),
    }


ROUTINGS = routings()
cases = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.operator)
orders = pytest.mark.parametrize("order", ORDERS)
routed = pytest.mark.parametrize("routing", list(ROUTINGS))


@cases
@orders
@routed
def test_experts_without_tokens_are_not_read(
    problem: ExpertsProblem, order: str, routing: str
) -> None:
    """The weights of experts that nobody chose are NaN, and so are shares of pairs elsewhere."""
    inputs = {**drawn(problem), "topk_ids": ROUTINGS[routing]}
    for name in WEIGHTS[problem.operator]:
        poison_untouched(inputs[name], inputs["topk_ids"], problem.format)  # type: ignore[attr-defined]
    if "topk_weights" in inputs:
        inputs["topk_weights"][inputs["topk_ids"] < 0] = np.nan
    got = kernel(problem, order)(inputs)
    op = operator(problem.operator)
    assert_matches(problem, {op.signature[-1]: got}, op.reference(problem, inputs))
    if routing == "nobody":
        assert not got.any()


@cases
@orders
def test_permuting_experts_permutes_ids(problem: ExpertsProblem, order: str) -> None:
    inputs = {**drawn(problem), "topk_ids": ROUTINGS["some"]}
    place = np.array([3, 0, 4, 1, 2], np.int32)
    moved = {n: np.empty_like(inputs[n]) for n in WEIGHTS[problem.operator]}
    for name, array in moved.items():
        array[place] = inputs[name]
    ids = inputs["topk_ids"]
    moved["topk_ids"] = np.where(ids < 0, -1, place[ids]).astype(np.int32)
    run = kernel(problem, order)
    np.testing.assert_array_equal(run({**inputs, **moved}), run(inputs))


@cases
@orders
def test_permuting_tokens_permutes_outputs(problem: ExpertsProblem, order: str) -> None:
    inputs = {**drawn(problem), "topk_ids": ROUTINGS["some"]}
    places = np.random.default_rng(6).permutation(TOKENS)
    skip = WEIGHTS[problem.operator]
    moved = {n: a if n in skip else np.ascontiguousarray(a[places]) for n, a in inputs.items()}
    run = kernel(problem, order)
    np.testing.assert_array_equal(run(moved), run(inputs)[places])


@cases
def test_shards_of_experts_sum_to_the_whole(problem: ExpertsProblem) -> None:
    """Shards of two, two and one expert, each with -1 for the experts of the others."""
    inputs = {**drawn(problem), "topk_ids": ROUTINGS["any"]}
    run, ids = kernel(problem, "expert"), ROUTINGS["any"]
    parts = [
        run({**inputs, "topk_ids": np.where(ids // 2 == shard, ids, -1).astype(np.int32)})
        for shard in range(3)
    ]
    whole = run(inputs)
    # A pair is in one shard only; a token's sum adds in another order.
    exact = problem.operator == "grouped_gemm"
    np.testing.assert_allclose(sum(parts), whole, rtol=0, atol=0 if exact else 1e-5)


@orders
@routed
def test_every_pair_once(order: str, routing: str) -> None:
    """Products that name their token and their expert, and are exact."""
    problem = PROBLEMS[1]
    ids = ROUTINGS[routing]
    inputs = {**drawn(problem), "topk_ids": ids}
    inputs["x"] = np.zeros_like(inputs["x"])
    inputs["x"][:, -1] = np.arange(1, TOKENS + 1)
    inputs["weights"][...] = np.arange(1, EXPERTS + 1)[:, None, None]
    want = np.arange(1, TOKENS + 1)[:, None] * (ids + 1)
    got = kernel(problem, order)(inputs)
    np.testing.assert_array_equal(got, np.broadcast_to(want[..., None], got.shape))
