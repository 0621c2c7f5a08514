"""Libraries and torch: zero-copy calls, gradients, custom operators, torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
from tests.compiler.libraries import IN, OUT, assert_close, case, sources
from tests.compiler.libraries import kernels as kernels

from wattune.compiler.library.loader import Kernels
from wattune.compiler.library.packed import Packed
from wattune.errors import ArgumentError
from wattune.ops import TernaryGemm

torch = pytest.importorskip("torch")


@pytest.fixture
def packed(kernels: Kernels) -> Packed:
    inputs, _ = case(TernaryGemm(1, OUT, IN))
    return kernels.ternary_gemm.pack(torch.from_numpy(inputs["weights"]), inputs["scale"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_results(kernels: Kernels, dtype: str) -> None:
    problem = TernaryGemm(11, OUT, IN, dtype=dtype)
    inputs, expected = case(problem)
    packed = kernels.ternary_gemm.pack(**sources(inputs))
    x = torch.from_numpy(inputs["x"].astype("float32")).to(getattr(torch, dtype))
    y = kernels.ternary_gemm(x, packed)
    assert_close(problem, y, expected)
    out = torch.empty_like(y)
    assert kernels.ternary_gemm(x, packed, out=out) is out
    assert torch.equal(out, y)
    # Columns of a wider tensor, then memory in another order.
    assert torch.equal(kernels.ternary_gemm(torch.cat([x, x], 1)[:, :IN], packed), y)
    assert torch.equal(kernels.ternary_gemm(x.t().contiguous().t(), packed), y)


def test_scaled_int8(kernels: Kernels, packed: Packed) -> None:
    x = torch.randint(-128, 128, (3, IN), dtype=torch.int8)
    sums = kernels.ternary_gemm(x, packed)
    scaled = kernels.ternary_gemm(x, packed, x_scale=torch.full((3,), 2.0))
    assert sums.dtype == torch.int32
    torch.testing.assert_close(scaled, sums * packed.torch["weight_scale"] / 2)


def test_gradients_are_refused(kernels: Kernels, packed: Packed) -> None:
    x = torch.zeros(2, IN, requires_grad=True)
    with pytest.raises(ArgumentError, match=r"requires gradients.*no_grad"):
        kernels.ternary_gemm(x, packed)
    with torch.no_grad():
        assert kernels.ternary_gemm(x, packed).shape == (2, OUT)


def test_tensors_without_memory(kernels: Kernels, packed: Packed) -> None:
    for x in (torch.zeros(2, IN, device="meta"), torch.zeros(2, IN).to_sparse()):
        with pytest.raises(ArgumentError, match="cannot be passed"):
            kernels.ternary_gemm(x, packed)


def test_custom_operator(kernels: Kernels, packed: Packed) -> None:
    x = torch.randn(9, IN)
    op = torch.ops.wattune.ternary_gemm
    assert torch.equal(op(x, **packed.torch), kernels.ternary_gemm(x, packed))
    checks = torch.library.opcheck(op.default, (x,), dict(packed.torch))
    assert set(checks.values()) == {"SUCCESS"}
    with pytest.raises(ArgumentError, match=r"no loaded library serves x .* float64"):
        op(x.double(), **packed.torch)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile(kernels: Kernels, packed: Packed, backend: str) -> None:
    entry = kernels.ternary_gemm

    def layer(x: Any) -> Any:
        return torch.relu(entry(x * 2, packed)) + 1

    torch._dynamo.reset()
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    for x in (torch.randn(3, IN), torch.randn(9, IN), torch.randn(2, IN).bfloat16()):
        assert torch.equal(compiled(x), layer(x))


def test_torch_export(kernels: Kernels, packed: Packed) -> None:
    class Layer(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return kernels.ternary_gemm(x, packed)

    x = torch.randn(3, IN)
    exported = torch.export.export(Layer(), (x,))
    assert "wattune.ternary_gemm" in str(exported.graph)
    assert torch.equal(exported.module()(x), Layer()(x))
