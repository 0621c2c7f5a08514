"""Libraries for GPUs and torch: fake kernels; where there is a GPU real calls and graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.compiler.gpus import no_image
from tests.compiler.toy_gpu import HOPPER, PROBLEMS, expected, export_toy
from tests.emulator.cuda import driver

from wattune.compiler.cuda import device_code
from wattune.compiler.library.loader import Kernels, load
from wattune.compiler.library.torch_ops import schema
from wattune.errors import ArgumentError
from wattune.schedules.target import GPUS, Target

torch = pytest.importorskip("torch")
here = torch.cuda.is_available()
gpu = pytest.mark.skipif(not here, reason="needs a GPU")


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """A library for the GPU at hand, else one that can be opened but not called."""
    if here:
        major, minor = torch.cuda.get_device_capability()
        arch = next(name for name in GPUS if name.startswith(f"sm_{major}{minor}"))
        return load(export_toy(tmp_path / "k.so", target=Target.parse(f"cuda:{arch}")))
    driver.install()
    monkeypatch.setattr(device_code, "compile_image", no_image)
    return load(export_toy(tmp_path / "k.so", PROBLEMS, HOPPER))


def test_the_schema_has_the_sizes_that_no_shape_says(kernels: Kernels) -> None:
    assert schema(kernels.ragged.parts[0].table) == (
        "ragged(Tensor x, Tensor? lengths=None, *, float? factor=None, str? dtype=None, "
        "SymInt? length=None) -> (Tensor, Tensor)"
    )


def test_fake_kernels_make_outputs_on_the_device(kernels: Kernels) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(3, 10, device="cuda:0", dtype=torch.float16)
        lengths = torch.empty(3, device="cuda:0", dtype=torch.int32)
        y, served = torch.ops.wattune.ragged(x, lengths, length=7)
        assert (y.shape, y.dtype, str(y.device)) == ((3, 10), torch.float16, "cuda:0")
        assert (served.shape, served.dtype) == ((3, 2), torch.int32)
        with pytest.raises(ArgumentError, match=r"say which by name: factor=2 or factor=0\.5"):
            torch.ops.wattune.ragged(x.float(), lengths)


def test_tensors_of_the_host_are_refused(kernels: Kernels) -> None:
    x, lengths = torch.zeros(3, 10), torch.zeros(3, dtype=torch.int32)
    with pytest.raises(ArgumentError, match="x is on the CPU; expected a CUDA device"):
        kernels.ragged(x, lengths, factor=2.0)


def given(rows: int = 3, capacity: int = 10) -> tuple[Any, Any]:
    x = torch.randn(rows, capacity, device="cuda")
    return x, torch.randint(0, capacity + 1, (rows,), device="cuda", dtype=torch.int32)


def assert_right(y: Any, x: Any, lengths: Any, factor: float = 2.0) -> None:
    wanted = expected(x.cpu().numpy(), lengths.cpu().numpy(), factor)
    assert torch.equal(y.cpu(), torch.from_numpy(wanted))


@gpu
def test_calls_on_a_gpu(kernels: Kernels) -> None:
    """On whatever stream is current, with memory of torch's; beyond the last bucket too."""
    stream = torch.cuda.Stream()
    for rows, capacity in ((3, 10), (19, 700)):
        x, lengths = given(rows, capacity)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            y, served = kernels.ragged(x, lengths, factor=2.0)
        stream.synchronize()
        assert_right(y, x, lengths)
        assert served.tolist() == [[8, 64 if capacity <= 64 else 512]] * rows
        assert_right(torch.ops.wattune.ragged(x, lengths, factor=0.5)[0], x, lengths, 0.5)


@gpu
def test_graphs_on_a_gpu(kernels: Kernels) -> None:
    x, lengths = given()
    out = torch.empty_like(x), torch.empty(3, 2, device="cuda", dtype=torch.int32)
    scratch = torch.empty(kernels.ragged.workspace_bytes, device="cuda", dtype=torch.uint8)
    calls: list[Callable[[], Any]] = [
        lambda: kernels.ragged(x, lengths, factor=2.0, out=out, workspace=scratch),
        lambda: kernels.ragged(x, lengths, factor=2.0),
    ]
    for call in calls:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y, _ = call()
        for length in (10, 0, 3):
            lengths.fill_(length)
            graph.replay()
            torch.cuda.synchronize()
            assert_right(y, x, lengths)


@gpu
def test_torch_compile_on_a_gpu(kernels: Kernels) -> None:
    compiled = torch.compile(
        lambda x, lengths: kernels.ragged(x, lengths, factor=2.0)[0] * 4, fullgraph=True
    )
    x, lengths = given()
    assert_right(compiled(x, lengths) / 4, x, lengths)
