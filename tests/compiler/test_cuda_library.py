"""Libraries for GPUs through the emulated driver: dispatch, bounds, checks, streams, threads."""

from __future__ import annotations

import ctypes
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm_ffi
from click.testing import CliRunner
from tests.compiler.gpus import aligned, on_gpu
from tests.compiler.toy_gpu import HOPPER, RAGGED, TEMPLATES, Ragged, expected, export_toy
from tests.emulator.cuda import driver
from tests.schedules.cuda import emulated_image

from wattune import ops
from wattune.compiler.cli.inspect import inspect_command
from wattune.compiler.cuda import device_code
from wattune.compiler.cuda import program as gpu_program
from wattune.compiler.cuda.source import DeviceSource
from wattune.compiler.library.entry import Entry
from wattune.compiler.library.loader import load
from wattune.errors import ArgumentError, BuildError, TargetError
from wattune.schedules.target import Target

_folder = tempfile.TemporaryDirectory(prefix="wattune-tests-")


@cache
def exported() -> Path:
    """Return a library for the emulated driver; it is compiled once a test run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_code, "compile_image", emulated_image)
        return export_toy(Path(_folder.name) / "kernels.so")


@pytest.fixture
def entry() -> Entry:
    driver.install()
    return load(exported()).ragged


HOPPER_ONLY = 'extern "C" __global__ void f() { asm volatile("griddepcontrol.wait;"); }'


class Call:
    """The tensors of one call, as arrays."""

    def __init__(self, rows: int, capacity: int, dtype: str = "float32", spare: int = 0) -> None:
        rng = np.random.default_rng(rows)
        self.x = aligned((rows, capacity), dtype)
        self.x[:] = rng.standard_normal(self.x.shape)
        self.lengths = aligned((rows,), "int32")
        self.lengths[:] = rng.integers(0, capacity - spare + 1, rows)
        self.y = aligned((rows, capacity), dtype)
        self.y[:] = np.nan
        self.served = aligned((rows, 2), "int32")

    def __call__(self, entry: Entry, **more: Any) -> list[tuple[int, ...]]:
        """Call, compare, and return the buckets that served the rows."""
        scratch = on_gpu(aligned((entry.workspace_bytes,), "uint8"))
        given = {"out": [on_gpu(self.y), on_gpu(self.served)], "workspace": scratch, **more}
        entry(on_gpu(self.x), on_gpu(self.lengths), **given)
        factor = more.get("factor", 2.0)
        np.testing.assert_array_equal(self.y, expected(self.x, self.lengths, factor))
        return [tuple(map(int, row)) for row in dict.fromkeys(map(tuple, self.served))]


@pytest.mark.parametrize(
    ("rows", "capacity", "most", "served"),
    [
        (1, 64, None, [(2, 64)]),
        (2, 64, 0, [(2, 64)]),
        (3, 17, None, [(8, 64)]),
        (3, 65, None, [(8, 512)]),
        (3, 65, 64, [(8, 64)]),
        (3, 1000, None, [(8, 512)]),
        (3, 1000, 3, [(8, 64)]),
        # No kernel is for so few rows and so long: the first that is large enough in all respects.
        (2, 65, 1 << 40, [(8, 512)]),
        # Beyond the last bucket: pieces of 8.
        (19, 65, None, [(8, 512)]),
    ],
)
def test_the_bucket_is_chosen_by_room_or_by_a_bound(
    entry: Entry, rows: int, capacity: int, most: int | None, served: list[tuple[int, ...]]
) -> None:
    """Lengths lie where the host cannot read them; they may be less than either says."""
    assert Call(rows, capacity, spare=capacity // 3)(entry, factor=2.0, length=most) == served


def test_variants(entry: Entry) -> None:
    assert Call(3, 10)(entry, factor=0.5) == [(8, 64)]
    assert Call(3, 10, "float16")(entry) == [(8, 64)]
    with pytest.raises(ArgumentError, match=r"say which by name: factor=2 or factor=0\.5"):
        Call(3, 10)(entry)


def test_nothing_to_do(entry: Entry) -> None:
    Call(0, 10)(entry, factor=2.0)
    Call(3, 0)(entry, factor=2.0)


def test_lengths_are_not_read(entry: Entry) -> None:
    """What would be refused on a CPU is the kernel's to bear."""
    call = Call(2, 8)
    call.lengths[:] = 100
    call(entry, factor=2.0)


def test_wrong_calls(entry: Entry) -> None:
    call = Call(2, 8)
    x, lengths = on_gpu(call.x), on_gpu(call.lengths)
    out = (on_gpu(call.y), on_gpu(call.served))
    scratch = on_gpu(aligned((entry.workspace_bytes,), "uint8"))
    odd = aligned((68,), "uint8")[4:].view("float32").reshape(2, 8)
    wrong: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((call.x, lengths), {}, "x is on the CPU; expected a CUDA device"),
        ((x, call.lengths), {}, "lengths is on the CPU; expected a CUDA device"),
        (
            (x, on_gpu(call.lengths, 1)),
            {},
            "lengths is on CUDA device 1, x on CUDA device 0; expected one device",
        ),
        ((x, lengths), {"out": (call.y, call.served)}, "y is on the CPU; expected a CUDA"),
        (
            (x, lengths),
            {"workspace": None},
            "workspace is missing; expected 64 bytes on the device",
        ),
        ((x, lengths), {"workspace": on_gpu(aligned((8,), "uint8"))}, "workspace has 8 bytes"),
        (
            (x, lengths),
            {"out": (on_gpu(odd), out[1])},
            "y is at address .*; expected a multiple of 16",
        ),
        ((x, lengths), {"out": (x, out[1])}, "y overlaps x; expected memory of its own"),
        ((x, on_gpu(call.lengths[:1])), {}, r"lengths has shape \[1\].*with rows 2"),
        (
            (x, lengths),
            {"length": -1},
            "length is at most -1; allowed: 1 or more, 0 where it is not",
        ),
        ((x, lengths), {"width": 3}, "ragged has no field width; allowed: dtype, factor"),
    ]
    for tensors, more, message in wrong:
        given = {"out": out, "workspace": scratch, "factor": 2.0, **more}
        with pytest.raises(ArgumentError, match=message):
            entry(*tensors, **given)
    with pytest.raises(TypeError, match="length is not an integer"):
        entry(x, lengths, out=out, workspace=scratch, factor=2.0, length="many")


def test_libraries_of_both_kinds(entry: Entry, tmp_path: Path) -> None:
    """The device of the tensors says which; on the CPU lengths are read, and need no bound."""
    host = export_toy(tmp_path / "cpu.so", target=Target.parse("cpu:generic"))
    for paths in ([host, exported()], [exported(), host]):
        both = load(paths).ragged
        assert Call(3, 1000)(both, factor=2.0, length=64) == [(8, 64)]
        call = Call(3, 1000)
        call.lengths[:] = 65
        y, served = both(call.x, call.lengths, factor=2.0, length=1)
        np.testing.assert_array_equal(y, expected(call.x, call.lengths))
        assert served.tolist() == [[8, 512]] * 3
        with pytest.raises(ArgumentError, match="lengths is on CUDA device 0; expected the CPU"):
            both(call.x, on_gpu(call.lengths), factor=2.0)
    only = load(host).ragged
    with pytest.raises(ArgumentError, match="x is on CUDA device 0; expected the CPU"):
        only(on_gpu(call.x), on_gpu(call.lengths), factor=2.0)


def test_threads_have_calls_of_their_own(entry: Entry) -> None:
    def work(seed: int) -> bool:
        return all(Call(1 + (seed + i) % 11, 33)(entry, factor=2.0) for i in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_a_graph_serves_lengths_that_grow(entry: Entry) -> None:
    """Recorded once; what lies in the tensors counts when it is replayed."""
    call, emulated = Call(3, 40), driver.install()
    stream, graph = ctypes.c_void_p(), ctypes.c_void_p()
    scratch = on_gpu(aligned((entry.workspace_bytes,), "uint8"))
    given = {"out": [on_gpu(call.y), on_gpu(call.served)], "workspace": scratch, "factor": 0.5}
    x, lengths = on_gpu(call.x), on_gpu(call.lengths)
    assert not emulated.cuStreamCreate(ctypes.byref(stream), 0)
    assert not emulated.cuStreamBeginCapture_v2(stream, 0)
    with tvm_ffi.use_raw_stream(tvm_ffi.device("cuda:0"), stream.value):
        entry(x, lengths, **given)
    assert not emulated.cuStreamEndCapture(stream, ctypes.byref(graph))
    assert np.isnan(call.y).all(), "nothing ran yet"
    for length in (0, 1, 40):
        call.lengths[:] = length
        assert not emulated.cuGraphLaunch(graph, stream)
        np.testing.assert_array_equal(call.y, expected(call.x, call.lengths, 0.5))


def test_pieces_keep_tensors_aligned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 8 bytes: pieces of 3 would put every other one beside a multiple of 16."""
    monkeypatch.setattr(device_code, "compile_image", emulated_image)
    driver.install()
    entry = load(export_toy(tmp_path / "k.so", (Ragged(3, 64),))).ragged
    assert Call(7, 32)(entry) == [(3, 64)]
    assert Call(2, 1)(entry) == [(3, 64)]
    with pytest.raises(ArgumentError, match="pieces of 3, which must be a multiple of 4"):
        Call(7, 1)(entry)


@pytest.mark.nvcc
def test_code_that_another_architecture_does_not_have(tmp_path: Path) -> None:
    program = TEMPLATES[0].lower(Ragged(2, 64), HOPPER, {"reserved": 0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_program, "device_source", lambda *_: DeviceSource(HOPPER_ONLY, {}))
        with pytest.raises(BuildError, match=r"f: its code for sm_90a does not .* sm_80 too; comp"):
            gpu_program.build_gpu("f", program, HOPPER, tmp_path / "f.o", ("sm_80",))


@pytest.mark.nvcc
def test_one_source_serves_older_architectures_too(tmp_path: Path) -> None:
    """What waits for the kernel before it on a Hopper has nothing to wait for on an Ampere."""
    program = TEMPLATES[0].lower(Ragged(2, 64), HOPPER, {"reserved": 0})
    facts = gpu_program.build_gpu("f", program, HOPPER, tmp_path / "f.o", ("sm_80", "sm_89"))
    assert facts["scale.registers"] > 0


def test_nothing_unverified_leaves(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"cannot run the target.*allow_unverified"):
        export_toy(tmp_path / "k.so", target=Target.parse("cuda:sm_80"), ask=True)


def test_inspect_names_the_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ops._OPERATORS, "ragged", RAGGED)
    text = CliRunner().invoke(inspect_command, [str(exported())]).output
    for words in ("cuda sm_90a", "GPU code for  sm_90a", "ragged_gpu"):
        assert " ".join(words.split()) in " ".join(text.split())
