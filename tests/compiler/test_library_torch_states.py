"""Libraries and torch: states, fields, several outputs and sizes, as custom operators."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tests.compiler.libraries import ATTENTION, attend, exported_attention
from tests.compiler.toy_gather import expected, exported_gather, inputs

from wattune.compiler.library.loader import Kernels, load
from wattune.compiler.library.torch_ops import schema
from wattune.errors import ArgumentError
from wattune.ops import operator
from wattune.ops.decode_attention import DecodeAttention

torch = pytest.importorskip("torch")
Tensors = dict[str, Any]


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return load(exported_gather())


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield


def tensors(**sizes: Any) -> Tensors:
    return {name: torch.from_numpy(array) for name, array in inputs(**sizes).items()}


def arrays(given: Tensors) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in given.items()}


def test_schema(kernels: Kernels) -> None:
    assert schema(kernels.gather.parts[0].table) == (
        "gather(Tensor store, Tensor(a1!)? log=None, Tensor? lengths=None, Tensor? picks=None, "
        "Tensor? pages=None, Tensor? bias=None, *, int? width=None, float? factor=None, "
        "bool? biased=None, bool? served=None, SymInt? length=None) -> (Tensor, Tensor)"
    )


def test_call(kernels: Kernels) -> None:
    given = tensors()
    y, served = kernels.gather(**given, factor=0.125)
    np.testing.assert_allclose(y.numpy(), expected(arrays(given), 0.125), rtol=1e-5)
    assert served.tolist() == [[4, 64, 16]] * 2 and given["log"][0] == 1
    with pytest.raises(ArgumentError, match=r"picks\[0, 1\] is 9"):
        given["picks"][0, 1] = 9
        kernels.gather(**given, factor=0.125)
    with pytest.raises(ArgumentError, match=r"requires gradients.*no_grad"):
        store = torch.zeros(2, 6, 2, requires_grad=True)
        kernels.gather(**{**tensors(), "store": store}, factor=1.0)


@pytest.mark.parametrize(("capacity", "picks"), [(0, 0), (4, 0), (0, 2)])
def test_tensors_without_memory(kernels: Kernels, capacity: int, picks: int) -> None:
    given = tensors(capacity=capacity, picks=picks)
    given["picks"][:] = -1
    assert 0 in {tensor.data_ptr() for tensor in given.values()}
    y, _ = kernels.gather(**given, factor=1.0)
    assert (y == 0).all() and given["log"][0] == 1


@pytest.mark.parametrize("pages", [True, False])
def test_custom_operator(kernels: Kernels, pages: bool) -> None:
    given, op = tensors(), torch.ops.wattune.gather
    fields: Tensors = {"factor": 0.125} if pages else {"served": False}
    if not pages:
        del given["pages"]
    y, served = op(**given, **fields)
    np.testing.assert_allclose(y, expected(arrays(given), 0.125 if pages else 1.0), rtol=1e-5)
    assert given["log"][0] == 1
    # An output that the variant does not have.
    assert served.dtype == (torch.int32 if pages else torch.bool) and len(served) == 2 * pages
    checks = torch.library.opcheck(op.default, tuple(given.values()), fields)
    assert set(checks.values()) == {"SUCCESS"}


def test_operator_of_no_variant(kernels: Kernels) -> None:
    given, op = tensors(), torch.ops.wattune.gather
    with pytest.raises(ArgumentError, match=r"say which by name: factor=1 or factor=0\.125"):
        op(**given)
    with pytest.raises(ArgumentError, match=r"no loaded library serves store .*, factor=0\.25$"):
        op(**given, factor=0.25)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile(kernels: Kernels, backend: str) -> None:
    def layer(given: Tensors, factor: float) -> Any:
        y, served = kernels.gather(**given, factor=factor)
        return torch.relu(y) + 1, served * 2

    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    for rows, capacity in ((2, 6), (3, 6), (5, 40)):
        for factor in (1.0, 0.125):
            given = tensors(rows=rows, capacity=capacity)
            result, served = compiled(given, factor)
            wanted = np.maximum(expected(arrays(given), factor), 0) + 1
            np.testing.assert_allclose(result, wanted, rtol=1e-5)
            assert given["log"][0] == -(-rows // 4) and served.shape == (rows, 3)


def test_compile_with_out(kernels: Kernels) -> None:
    given = tensors()
    pages = given.pop("pages")

    def one(out: Any) -> Any:
        return kernels.gather(**given, out=out)

    def two(out: Any) -> Any:
        return kernels.gather(**given, pages=pages, factor=1.0, out=out)

    out = torch.zeros(2, 2), torch.zeros(2, 3, dtype=torch.int32)
    torch.compile(two, backend="eager", fullgraph=True)(out)
    np.testing.assert_allclose(out[0], expected(arrays(given)), rtol=1e-5)
    assert out[1].tolist() == [[4, 8, 4]] * 2
    y = torch.zeros(2, 2)
    torch.compile(one, backend="eager", fullgraph=True)(y)
    assert torch.equal(y, out[0])


def as_torch(array: Any) -> Any:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


@pytest.mark.parametrize("problem", ATTENTION[1:], ids=str)
def test_attention_in_a_graph(problem: Any) -> None:
    """Caches are written in place, outputs are those of a call outside the graph."""
    kernels = load(exported_attention())
    drawn = operator(problem.operator).verification_inputs(problem, np.random.default_rng(0))
    first = {name: as_torch(array.copy()) for name, array in drawn.items()}
    second = {name: as_torch(array.copy()) for name, array in drawn.items()}
    wanted = attend(kernels, problem, first)
    compiled = torch.compile(
        lambda given: attend(kernels, problem, given), backend="aot_eager", fullgraph=True
    )
    got = compiled(second)
    for one, other in zip(*map(_tuple, (got, wanted)), strict=True):
        assert torch.equal(one, other)
    for name, tensor in first.items():
        assert torch.equal(tensor.view(torch.uint8), second[name].view(torch.uint8)), name


def _tuple(result: Any) -> Any:
    if result is None:
        return ()
    return result if isinstance(result, tuple) else (result,)


def test_dynamic_sizes() -> None:
    """One graph for any batch and capacity (torch takes equal sizes of the first call for one)."""
    kernels = load(exported_attention())
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def layer(q: Any, k: Any, v: Any, lengths: Any) -> Any:
        return kernels.decode_attention(q, k, v, lengths, window=16)

    compiled = torch.compile(layer, backend=backend, fullgraph=True, dynamic=True)
    for batch, capacity in ((3, 70), (4, 80), (5, 33)):
        problem = DecodeAttention(batch, capacity, 8, 2, 64, value_dim=32, window=16)
        made = operator(problem.operator).make_inputs(problem, np.random.default_rng(0))
        given = [as_torch(made[name]) for name in ("q", "k_cache", "v_cache", "seq_lens")]
        assert torch.equal(compiled(*given), layer(*given))
    assert len(graphs) == 1
