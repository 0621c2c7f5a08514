"""ggml's functions through the libraries of llama-cpp-python, and graphs of one operation each."""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    Structure,
    c_bool,
    c_char_p,
    c_float,
    c_int,
    c_int64,
    c_size_t,
    c_uint32,
    c_void_p,
)
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.bench.case import Unavailable
from wattune.compiler.measure.memory import pages

TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "tq1_0": 34, "tq2_0": 35}
# What ggml keeps beside a tensor's data: its header, the object list and padding.
TENSOR_OVERHEAD = 1024
GRAPH_NODES = 8


class InitParams(Structure):
    """``ggml_init_params``."""

    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


class Plan(Structure):
    """The head of ``ggml_cplan``, with room for the fields that newer releases add."""

    _fields_ = [
        ("work_size", c_size_t),
        ("work_data", c_void_p),
        ("n_threads", c_int),
        ("threadpool", c_void_p),
        ("rest", ctypes.c_uint8 * 128),
    ]


class PoolParams(Structure):
    """``ggml_threadpool_params``."""

    _fields_ = [
        ("cpumask", c_bool * 512),
        ("n_threads", c_int),
        ("prio", c_int),
        ("poll", c_uint32),
        ("strict_cpu", c_bool),
        ("paused", c_bool),
    ]


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ggml_init": (c_void_p, (InitParams,)),
    "ggml_type_name": (c_char_p, (c_int,)),
    "ggml_new_tensor_4d": (c_void_p, (c_void_p, c_int, c_int64, c_int64, c_int64, c_int64)),
    "ggml_view_4d": (
        c_void_p,
        (c_void_p, c_void_p, *[c_int64] * 4, c_size_t, c_size_t, c_size_t, c_size_t),
    ),
    "ggml_row_size": (c_size_t, (c_int, c_int64)),
    "ggml_get_data": (c_void_p, (c_void_p,)),
    "ggml_nbytes": (c_size_t, (c_void_p,)),
    "ggml_mul_mat": (c_void_p, (c_void_p, c_void_p, c_void_p)),
    "ggml_flash_attn_ext": (c_void_p, (*[c_void_p] * 5, c_float, c_float, c_float)),
    "ggml_new_graph_custom": (c_void_p, (c_void_p, c_size_t, c_bool)),
    "ggml_graph_overhead_custom": (c_size_t, (c_size_t, c_bool)),
    "ggml_build_forward_expand": (None, (c_void_p, c_void_p)),
    "ggml_quantize_chunk": (
        c_size_t,
        (c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, POINTER(c_float)),
    ),
    "ggml_threadpool_params_default": (PoolParams, (c_int,)),
    "ggml_cpu_init": (None, ()),
    "ggml_threadpool_new": (c_void_p, (POINTER(PoolParams),)),
    "ggml_graph_plan": (Plan, (c_void_p, c_int, c_void_p)),
    "ggml_graph_compute": (c_int, (c_void_p, POINTER(Plan))),
}


class Ggml:
    """The functions used here, found in whichever of ggml's libraries has them."""

    def __init__(self) -> None:
        """Load the libraries of the installed ``llama_cpp``."""
        spec = find_spec("llama_cpp")
        if spec is None or spec.origin is None:
            raise Unavailable("llama_cpp (llama-cpp-python) is not installed")
        folder = Path(spec.origin).parent / "lib"
        paths = [folder / f"lib{name}.so" for name in ("ggml-base", "ggml-cpu", "ggml")]
        self.libraries = [ctypes.CDLL(str(p), ctypes.RTLD_GLOBAL) for p in paths if p.exists()]
        for name, (result, arguments) in _SIGNATURES.items():
            function = self._find(name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        # Without it the tables of float16 are empty.
        self.ggml_cpu_init()

    def _find(self, name: str) -> Any:
        for library in self.libraries:
            if hasattr(library, name):
                return getattr(library, name)
        raise Unavailable(f"the installed llama_cpp has no {name}")

    def __getattr__(self, name: str) -> Any:
        """Only for type checkers: the functions are set in ``__init__``."""
        raise AttributeError(name)


def quantized(ggml: Ggml, type_name: str, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the bytes of [rows, width] in one of ggml's types, which must be that of its name."""
    number = TYPES[type_name]
    if (found := (ggml.ggml_type_name(number) or b"").decode()) != type_name:
        raise Unavailable(f"type {number} of the installed ggml is {found!r}")
    count, width = rows.shape
    packed = np.zeros(count * ggml.ggml_row_size(number, width), np.uint8)
    size = ggml.ggml_quantize_chunk(
        number, rows.ctypes.data, packed.ctypes.data, 0, count, width, None
    )
    assert size == packed.size
    return packed


class Graphs:
    """A context in huge pages: tensors that ggml lays out, and graphs that compute one each."""

    def __init__(self, ggml: Ggml, threads: int, graphs: int, tensor_bytes: int) -> None:
        """Map memory for so many graphs, their results, and tensors of so many bytes together."""
        self.ggml, self.threads = ggml, threads
        params = ggml.ggml_threadpool_params_default(threads)
        self.pool = ggml.ggml_threadpool_new(ctypes.byref(params))
        # A few tensors more than one a graph: what all graphs share.
        each = ggml.ggml_graph_overhead_custom(GRAPH_NODES, False) + 4 * TENSOR_OVERHEAD
        self.memory = pages((graphs + 4) * each + tensor_bytes + (1 << 20), huge=True)
        init = InitParams(self.memory.size, self.memory.ctypes.data, False)
        self.context = ggml.ggml_init(init)
        self.plans: list[tuple[int, Plan, Any]] = []
        self.results: list[int] = []

    def tensor(self, type_name: str, *shape: int) -> int:
        """Return a new tensor of up to four sizes, the innermost first."""
        sizes = (*shape, 1, 1, 1)[:4]
        made: int = self.ggml.ggml_new_tensor_4d(self.context, TYPES[type_name], *sizes)
        return made

    def fill(self, tensor: int, data: NDArray[Any]) -> None:
        """Copy an array's bytes into a tensor of as many."""
        self.bytes_of(tensor)[:] = np.ascontiguousarray(data).reshape(-1).view(np.uint8)

    def bytes_of(self, tensor: int) -> NDArray[np.uint8]:
        """Return a tensor's memory, which lies in the context's."""
        start = self.ggml.ggml_get_data(tensor) - self.memory.ctypes.data
        return self.memory[start : start + self.ggml.ggml_nbytes(tensor)]

    def add(self, result: int) -> None:
        """Make the graph that computes a tensor."""
        graph = self.ggml.ggml_new_graph_custom(self.context, GRAPH_NODES, False)
        self.ggml.ggml_build_forward_expand(graph, result)
        plan = self.ggml.ggml_graph_plan(graph, self.threads, self.pool)
        work = np.zeros(max(plan.work_size, 64), np.uint8)
        plan.work_data = work.ctypes.data
        self.plans.append((graph, plan, work))
        self.results.append(result)

    def compute(self, number: int) -> int:
        """Compute a graph; 0 is success."""
        graph, plan, _ = self.plans[number]
        status: int = self.ggml.ggml_graph_compute(graph, ctypes.byref(plan))
        return status

    def result(self, number: int, *shape: int) -> NDArray[np.float32]:
        """Compute a graph and return its float32 result in this shape."""
        if status := self.compute(number):
            raise Unavailable(f"ggml_graph_compute answered {status}")
        return self.bytes_of(self.results[number]).view(np.float32).reshape(shape)
