"""Peers of ternary GEMM in ggml (TQ1_0, TQ2_0), through the libraries of llama-cpp-python."""

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

from wattune.compiler.bench.case import Case, Setup, Unavailable, relative_error
from wattune.compiler.bench.ternary import TernaryData
from wattune.compiler.measure.memory import pages

F32 = 0
TYPES = {"tq1_0": 34, "tq2_0": 35}
BLOCK = 256
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
    "ggml_new_tensor_2d": (c_void_p, (c_void_p, c_int, c_int64, c_int64)),
    "ggml_get_data": (c_void_p, (c_void_p,)),
    "ggml_nbytes": (c_size_t, (c_void_p,)),
    "ggml_mul_mat": (c_void_p, (c_void_p, c_void_p, c_void_p)),
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

    def _find(self, name: str) -> Any:
        for library in self.libraries:
            if hasattr(library, name):
                return getattr(library, name)
        raise Unavailable(f"the installed llama_cpp has no {name}")

    def __getattr__(self, name: str) -> Any:
        """Only for type checkers: the functions are set in ``__init__``."""
        raise AttributeError(name)


class TernaryMatMul(Case):
    """``ggml_mul_mat`` of one ternary type with float32 activations, quantised inside."""

    tolerance = 0.02

    def __init__(self, setup: Setup, type_name: str) -> None:
        """Quantise the weights and build one graph per copy."""
        self.data = TernaryData.make(setup)
        self.threads = setup.threads
        inside = self.data.weights.shape[1]
        if inside % BLOCK:
            raise Unavailable(f"needs in_features % {BLOCK} == 0")
        self.ggml = ggml = Ggml()
        self.type = TYPES[type_name]
        if (found := (ggml.ggml_type_name(self.type) or b"").decode()) != type_name:
            raise Unavailable(f"type {self.type} of the installed ggml is {found!r}")
        ggml.ggml_cpu_init()
        pool = ggml.ggml_threadpool_params_default(setup.threads)
        self.pool = ggml.ggml_threadpool_new(ctypes.byref(pool))
        packed = self._quantise()
        self.copies = max(1, -(-setup.footprint // packed.size))
        self._build(packed)
        self.moved = int(packed.size + self.data.x.nbytes + self._result().nbytes)

    def _quantise(self) -> NDArray[np.uint8]:
        out, inside = self.data.weights.shape
        dense = np.ascontiguousarray(self.data.dense)
        packed = np.zeros(dense.nbytes, np.uint8)
        size = self.ggml.ggml_quantize_chunk(
            self.type, dense.ctypes.data, packed.ctypes.data, 0, out, inside, None
        )
        return packed[:size]

    def _build(self, packed: NDArray[np.uint8]) -> None:
        """Let ggml lay its tensors out in huge pages; weights first, then one graph each."""
        ggml, (out, inside), tokens = self.ggml, self.data.weights.shape, len(self.data.x)
        graph = ggml.ggml_graph_overhead_custom(GRAPH_NODES, False)
        per_copy = packed.size + tokens * out * 4 + graph + 4 * TENSOR_OVERHEAD
        size = self.copies * per_copy + self.data.x.nbytes + (1 << 20)
        self.memory = pages(size, huge=True)
        params = InitParams(self.memory.size, self.memory.ctypes.data, False)
        context = ggml.ggml_init(params)
        x = ggml.ggml_new_tensor_2d(context, F32, inside, tokens)
        activations = np.ascontiguousarray(self.data.x)
        ctypes.memmove(ggml.ggml_get_data(x), activations.ctypes.data, activations.nbytes)
        weights = [
            ggml.ggml_new_tensor_2d(context, self.type, inside, out) for _ in range(self.copies)
        ]
        for weight in weights:
            assert ggml.ggml_nbytes(weight) == packed.size
            ctypes.memmove(ggml.ggml_get_data(weight), packed.ctypes.data, packed.size)
        self.results = [ggml.ggml_mul_mat(context, weight, x) for weight in weights]
        self.plans = [self._plan(context, result) for result in self.results]

    def _plan(self, context: int, result: int) -> tuple[int, Plan, Any]:
        graph = self.ggml.ggml_new_graph_custom(context, GRAPH_NODES, False)
        self.ggml.ggml_build_forward_expand(graph, result)
        plan = self.ggml.ggml_graph_plan(graph, self.threads, self.pool)
        work = np.zeros(max(plan.work_size, 64), np.uint8)
        plan.work_data = work.ctypes.data
        return graph, plan, work

    def _result(self) -> NDArray[np.float32]:
        shape = (len(self.data.x), self.data.weights.shape[0])
        address = self.ggml.ggml_get_data(self.results[0])
        values = (c_float * (shape[0] * shape[1])).from_address(address)
        return np.frombuffer(values, np.float32).reshape(shape)

    def call(self, copy: int) -> int:
        """Compute one graph."""
        graph, plan, _ = self.plans[copy]
        status: int = self.ggml.ggml_graph_compute(graph, ctypes.byref(plan))
        return status

    def error(self) -> float:
        """Compare with the product in float64."""
        if status := self.call(0):
            raise Unavailable(f"ggml_graph_compute answered {status}")
        return relative_error(self._result(), self.data.product())
