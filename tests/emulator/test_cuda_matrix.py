"""Matrix instructions on the emulated GPU: fragments as the PTX ISA defines them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tests.emulator.cuda.run import LaunchError, launch
from tests.emulator.lanes import Values

from wattune.ops.dtypes import numpy_dtype

Place = Callable[[int, int, int], tuple[int, int]]

# Where element i of a lane lies, by group = lane / 4 and t = lane % 4: "Matrix fragments for
# mma.m16n8k*" of the PTX ISA, for A and B.
LAYOUTS: dict[str, tuple[Place, Place]] = {
    "k8": (
        lambda g, t, i: (g + 8 * (i >= 2), 2 * t + i % 2),
        lambda g, t, i: (2 * t + i % 2, g),
    ),
    "k16": (
        lambda g, t, i: (g + 8 * (i // 2 % 2), 2 * t + i % 2 + 8 * (i >= 4)),
        lambda g, t, i: (2 * t + i % 2 + 8 * (i >= 2), g),
    ),
    "k8_words": (
        lambda g, t, i: (g + 8 * (i % 2), t + 4 * (i >= 2)),
        lambda g, t, i: (t + 4 * i, g),
    ),
    "k16_bytes": (
        lambda g, t, i: (g + 8 * (i >= 4), 4 * t + i % 4),
        lambda g, t, i: (4 * t + i % 4, g),
    ),
    "k32_bytes": (
        lambda g, t, i: (g + 8 * (i // 4 % 2), 4 * t + i % 4 + 16 * (i >= 8)),
        lambda g, t, i: (4 * t + i % 4 + 16 * (i >= 4), g),
    ),
}

FORMS = [
    ("m16n8k16.row.col.f32.f16.f16.f32", "float16", 16, "k16"),
    ("m16n8k16.row.col.f32.bf16.bf16.f32", "bfloat16", 16, "k16"),
    ("m16n8k8.row.col.f32.f16.f16.f32", "float16", 8, "k8"),
    ("m16n8k8.row.col.f32.bf16.bf16.f32", "bfloat16", 8, "k8"),
    ("m16n8k8.row.col.f32.tf32.tf32.f32", "float32", 8, "k8_words"),
    ("m16n8k16.row.col.s32.s8.s8.s32", "int8", 16, "k16_bytes"),
    ("m16n8k32.row.col.s32.s8.s8.s32", "int8", 32, "k32_bytes"),
    ("m16n8k32.row.col.s32.u8.u8.s32", "uint8", 32, "k32_bytes"),
]


@pytest.mark.parametrize("form, dtype, k, layout", FORMS)
def test_mma(form: str, dtype: str, k: int, layout: str) -> None:
    rng = np.random.default_rng(0)
    low = 0 if dtype == "uint8" else -8  # small integers: products and sums are exact
    a, b = (rng.integers(low, 9, shape).astype(numpy_dtype(dtype)) for shape in ((16, k), (k, 8)))
    total = np.int32 if ".s32." in form else np.float32
    c = rng.integers(-99, 99, (16, 8)).astype(total)
    a_place, b_place = LAYOUTS[layout]
    registers = k * a.itemsize // 16
    words = _fragment(a, a_place, 2 * registers), _fragment(b, b_place, registers)
    got = _mma(form, words[0], words[1], _fragment(c, _accumulator, 4)).view(total)
    wide = np.int64 if total is np.int32 else np.float64
    expected = (a.astype(wide) @ b.astype(wide) + c).astype(total)
    np.testing.assert_array_equal(got, _fragment(expected, _accumulator, 4).view(total))


def _accumulator(g: int, t: int, i: int) -> tuple[int, int]:
    return g + 8 * (i >= 2), 2 * t + i % 2


def _fragment(matrix: Values, place: Place, registers: int) -> Values:
    """Return the words of each lane."""
    per = 4 // matrix.itemsize
    values = [
        [matrix[place(lane // 4, lane % 4, i)] for i in range(registers * per)]
        for lane in range(32)
    ]
    return np.array(values, dtype=matrix.dtype).view(np.uint32)


def _mma(form: str, a: Values, b: Values, c: Values) -> Values:
    d = np.zeros((32, 4), dtype=np.uint32)
    sizes = [4, a.shape[1], b.shape[1], 4]
    groups, position = [], 0
    for size in sizes:
        groups.append("{" + ", ".join(f"%{position + i}" for i in range(size)) + "}")
        position += size
    kind = "r" if ".s32." in form else "f"
    results = ", ".join(f'"={kind}"(d[{i}])' for i in range(4))
    words = [f'"r"(a[{i}])' for i in range(sizes[1])] + [f'"r"(b[{i}])' for i in range(sizes[2])]
    operands = ", ".join([*words, *(f'"{kind}"(c[{i}])' for i in range(4))])
    source = f"""
    extern "C" __global__ void kernel(unsigned* d, unsigned* a, unsigned* b, unsigned* c) {{
      int lane = threadIdx.x;
      d += lane * 4, a += lane * {sizes[1]}, b += lane * {sizes[2]}, c += lane * 4;
      asm volatile("mma.sync.aligned.{form} {", ".join(groups)};" : {results} : {operands});
    }}"""
    launch(source, "kernel", [d, a, b, c])
    return d


def test_ldmatrix_brings_fragments_of_mma() -> None:
    """A from rows, B from rows of its transpose and, transposed, from its own: one product."""
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-8, 9, (16, n)).astype(np.float16) for n in (16, 8))
    out = np.zeros((2, 16, 8), dtype=np.float32)
    source = """
    #define MMA(d) asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]))
    extern "C" __global__ void kernel(half* a, half* b, half* bt, float* out) {
      __shared__ alignas(16) half as[256];
      __shared__ alignas(16) half bs[128];
      __shared__ alignas(16) half ts[128];
      int l = threadIdx.x;
      for (int i = l; i < 256; i += 32) as[i] = a[i];
      for (int i = l; i < 128; i += 32) bs[i] = b[i], ts[i] = bt[i];
      __syncwarp();
      unsigned x[4], y[2];
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"((unsigned)__cvta_generic_to_shared(&as[l % 16 * 16 + l / 16 * 8])));
      for (int form = 0; form < 2; ++form) {
        float d[4] = {0, 0, 0, 0};
        if (form == 0)
          asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(y[0]), "=r"(y[1]) : "r"((unsigned)__cvta_generic_to_shared(&ts[l % 8 * 16 + l / 8 % 2 * 8])));
        else
          asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(y[0]), "=r"(y[1]) : "r"((unsigned)__cvta_generic_to_shared(&bs[l % 16 * 8])));
        MMA(d);
        for (int i = 0; i < 4; ++i)
          out[form * 128 + (l / 4 + i / 2 * 8) * 8 + l % 4 * 2 + i % 2] = d[i];
      }
    }"""  # noqa: E501
    launch(source, "kernel", [a, b, np.ascontiguousarray(b.T), out])
    expected = a.astype(np.float32) @ b.astype(np.float32)
    np.testing.assert_array_equal(out, [expected, expected])


def test_stmatrix_undoes_ldmatrix() -> None:
    x = np.arange(256, dtype=np.uint16)
    out = np.zeros((2, 256), dtype=np.uint16)
    source = """
    extern "C" __global__ void kernel(unsigned short* x, unsigned short* out) {
      __shared__ alignas(16) unsigned short s[256];
      __shared__ alignas(16) unsigned short t[256];
      int l = threadIdx.x;
      for (int i = l; i < 256; i += 32) s[i] = x[i];
      __syncwarp();
      unsigned r[4], at = __cvta_generic_to_shared(&s[l * 8]), to = __cvta_generic_to_shared(&t[l * 8]);
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at));
      asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" :: "r"(to), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]));
      __syncwarp();
      for (int i = l; i < 256; i += 32) out[i] = t[i];
      for (int i = 0; i < 4; ++i) asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(r[i]));
      __syncwarp();
      asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" :: "r"(to), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]));
      __syncwarp();
      for (int i = l; i < 256; i += 32) out[256 + i] = t[i];
    }"""  # noqa: E501
    launch(source, "kernel", [x, out])
    np.testing.assert_array_equal(out, [x, x])


def test_a_misaligned_row_fails() -> None:
    source = """
    extern "C" __global__ void kernel() {
      __shared__ alignas(16) half s[512];
      unsigned r, at = __cvta_generic_to_shared(&s[threadIdx.x * 8 + (threadIdx.x == 3) * 4]);
      asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r) : "r"(at));
    }"""
    with pytest.raises(LaunchError, match=r"ldmatrix: shared address .* is not a multiple of 16"):
        launch(source, "kernel", [])


def test_a_warp_without_some_lanes_fails() -> None:
    source = """
    extern "C" __global__ void kernel() {
      if (threadIdx.x == 5) return;
      unsigned r = 0;
      asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(r));
    }"""
    with pytest.raises(LaunchError, match="movmatrix"):
        launch(source, "kernel", [])
