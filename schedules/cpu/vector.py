"""The vector vocabulary of CPU templates: each function names what one instruction does.

Vectors are TVM expressions: ``int32x16`` and ``int8x64`` fill a 512-bit register. Every function
returns an expression; `prefetch` emits a statement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.script import tirx as T

# A tensor program's expression or buffer: TVM ships no types.
Expr = Any
Buffer = Any

LANES = 16
BYTES = 64


def _opaque(name: str, dtype: str, *operands: Expr) -> Expr:
    """Call an intrinsic whose results TVM keeps where they are bound.

    Its simplifier puts pure expressions in place of the variables they are bound to, wherever
    these are used: chains of sums grow to the square of their length.
    """
    return T.call_llvm_intrin(T.llvm_lookup_intrinsic_id(name), *operands, dtype=dtype)


def _intrinsic(name: str, dtype: str, *operands: Expr) -> Expr:
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *operands, dtype=dtype)


def splat(value: Expr, lanes: int = LANES) -> Expr:
    """Return a vector with the value in every lane."""
    return T.broadcast(value, lanes)


def splat_u8(value: int, lanes: int = BYTES) -> Expr:
    """Return a vector of one byte value."""
    return T.broadcast(T.uint8(value), lanes)


def constant(entries: Sequence[int]) -> Expr:
    """Return 64 (or 32, 16) known bytes as an int8 vector."""
    words = [
        T.int64(int.from_bytes(bytes(entries[i : i + 8]), "little", signed=True))
        for i in range(0, len(entries), 8)
    ]
    wide = T.Shuffle(words, [T.int32(i) for i in range(len(words))])
    return T.reinterpret(f"int8x{len(entries)}", wide)


def constant_i16(values: Sequence[int]) -> Expr:
    """Return known 16-bit lanes."""
    data = b"".join(value.to_bytes(2, "little", signed=True) for value in values)
    return T.reinterpret(f"int16x{len(values)}", constant(list(data)))


def constant_i32(values: Sequence[int]) -> Expr:
    """Return known 32-bit lanes."""
    data = b"".join(value.to_bytes(4, "little", signed=True) for value in values)
    return T.reinterpret(f"int32x{len(values)}", constant(list(data)))


def multiply_add(left: Expr, right: Expr, total: Expr) -> Expr:
    """Return left * right + total, rounded once where the target has such an instruction."""
    dtype = str(total.ty.dtype)
    return _opaque("llvm.fmuladd", dtype, left, right, total)


def store(buffer: Buffer, at: Sequence[Expr], value: Expr) -> None:
    """Store a scalar, or a vector along the last index."""
    lanes = value.ty.dtype.lanes
    last = at[-1] if lanes == 1 else T.ramp(at[-1], 1, lanes)
    T.buffer_store(buffer, value, [*at[:-1], last])


def array(count: int, dtype: str) -> Buffer:
    """Declare a small array on the stack, which LLVM turns into registers.

    TVM keeps arrays of scope "global" on the stack below 1 KiB. All others, and every one of scope
    "local", come from the heap: a call each time.
    """
    return T.alloc_buffer((count,), dtype, scope="global")


class Registers:
    """Accumulators, addressed by lane: an array of 64 bytes each, so that none is too large."""

    def __init__(self, count: int, dtype: str) -> None:
        """Declare ``count`` registers of a 16- or 32-bit dtype."""
        self.lanes = BYTES * 8 // int(dtype[-2:])
        self.buffers = [array(self.lanes, dtype) for _ in range(count)]

    def load(self, at: int, dtype: str) -> Expr:
        """Load a vector that starts at a lane."""
        return self.buffers[at // self.lanes].vload([at % self.lanes], dtype)

    def store(self, at: int, value: Expr) -> None:
        """Store a vector that starts at a lane."""
        store(self.buffers[at // self.lanes], [at % self.lanes], value)


def load_bytes(buffer: Buffer, at: Expr, count: int = BYTES) -> Expr:
    """Load ``count`` bytes of a uint8 buffer."""
    return buffer.vload([at], f"uint8x{count}")


def load_as(buffer: Buffer, at: Expr, dtype: str, lanes: int = 1) -> Expr:
    """Load a value of another dtype from a uint8 buffer at a byte offset."""
    wide = {"int32": 4, "float32": 4}[dtype] * lanes
    kind = dtype if lanes == 1 else f"{dtype}x{lanes}"
    return T.reinterpret(kind, buffer.vload([at], f"uint8x{wide}"))


def store_as(buffer: Buffer, at: Expr, value: Expr, lanes: int = 1) -> None:
    """Store 4-byte values into a uint8 buffer at a byte offset."""
    store(buffer, [at], T.reinterpret(f"uint8x{4 * lanes}", value))


def splat_quad(buffer: Buffer, at: Expr, lanes: int = LANES) -> Expr:
    """Repeat four bytes of a buffer in every 32-bit lane (the ``{1to16}`` operand)."""
    return T.reinterpret(f"int8x{4 * lanes}", splat(load_as(buffer, at, "int32"), lanes))


def dot_u8s8(total: Expr, unsigned: Expr, signed: Expr, bits: int = 512) -> Expr:
    """Add four products of unsigned and signed bytes to each 32-bit lane (vpdpbusd)."""
    name = f"llvm.x86.avx512.vpdpbusd.{bits}"
    return _opaque(name, f"int32x{bits // 32}", total, unsigned, signed)


def dot_pairs_u8s8(unsigned: Expr, signed: Expr, bits: int = 256) -> Expr:
    """Return saturating sums of two products of bytes in 16-bit lanes (vpmaddubsw)."""
    name = {512: "llvm.x86.avx512.pmaddubs.w.512", 256: "llvm.x86.avx2.pmadd.ub.sw"}[bits]
    return _intrinsic(name, f"int16x{bits // 16}", unsigned, signed)


# bfloat16 vectors cannot pass through TVM, which rewrites them to integers: functions of LLVM IR
# that take the bits. A program that calls one must be emitted inside `bf16_functions`.
_BF16_FUNCTIONS = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
declare <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float>)
define linkonce_odr <16 x float> @wattune_dot_bf16(<16 x float> %c, <16 x i32> %a, <16 x i32> %b)
    alwaysinline {
  %x = bitcast <16 x i32> %a to <32 x bfloat>
  %y = bitcast <16 x i32> %b to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(
    <16 x float> %c, <32 x bfloat> %x, <32 x bfloat> %y)
  ret <16 x float> %r
}
define linkonce_odr <8 x i32> @wattune_round_bf16(<16 x float> %a) alwaysinline {
  %x = call <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float> %a)
  %r = bitcast <16 x bfloat> %x to <8 x i32>
  ret <8 x i32> %r
}
"""


def bf16_functions() -> Any:
    """Return the frame in which `dot_pairs_bf16` and `round_bf16` can be called."""
    return T.attr(T.int32(0), "pragma_import_llvm", _BF16_FUNCTIONS)


def dot_pairs_bf16(total: Expr, left: Expr, right: Expr) -> Expr:
    """Add two products of bfloat16 to each fp32 lane (vdpbf16ps); operands are int32x16 of bits."""
    return T.call_pure_extern("float32x16", "wattune_dot_bf16", total, left, right)


def round_bf16(value: Expr) -> Expr:
    """Round float32x16 to bfloat16, two neighbours in each lane of int32x8 (vcvtneps2bf16)."""
    return T.call_pure_extern("int32x8", "wattune_round_bf16", value)


def _orders() -> str:
    """Return LLVM IR of a table: of every mask of 8 lanes, the numbers of its lanes in order."""
    chosen = ([lane for lane in range(8) if mask >> lane & 1] for mask in range(256))
    words = (f"i64 {sum(lane << (8 * at) for at, lane in enumerate(row))}" for row in chosen)
    functions = "".join(
        f"""
define linkonce_odr <{lanes} x i32> @wattune_order_{lanes}(i32 %mask) alwaysinline {{
  %wide = zext i32 %mask to i64
  %at = getelementptr [256 x i64], ptr @wattune_orders, i64 0, i64 %wide
  %bytes = load <{lanes} x i8>, ptr %at, align 8
  %order = zext <{lanes} x i8> %bytes to <{lanes} x i32>
  ret <{lanes} x i32> %order
}}
"""
        for lanes in (4, 8)
    )
    kind = "linkonce_odr hidden unnamed_addr constant [256 x i64]"
    return f"@wattune_orders = {kind} [{', '.join(words)}], align 64\n{functions}"


def order_functions() -> Any:
    """Return the frame in which `order_of` can be called."""
    return T.attr(T.int32(0), "pragma_import_llvm", _orders())


def order_of(mask: Expr, lanes: int) -> Expr:
    """Return the numbers of a mask's 4 or 8 lanes, then zeros, as int32 (vpmovzxbd of a table)."""
    return T.call_pure_extern(f"int32x{lanes}", f"wattune_order_{lanes}", mask)


def permuted(values: Expr, order: Expr) -> Expr:
    """Return int32x8 or int32x4 in another order (vpermd, vpermilps)."""
    if values.ty.dtype.lanes == 8:
        return _intrinsic("llvm.x86.avx2.permd", "int32x8", values, order)
    real = T.reinterpret("float32x4", values)
    moved = _intrinsic("llvm.x86.avx.vpermilvar.ps", "float32x4", real, order)
    return T.reinterpret("int32x4", moved)


def mask_of(chosen: Expr, lanes: int) -> Expr:
    """Return which of 4 or 8 lanes are chosen, a bit each (vmovmskps)."""
    full = T.Select(chosen, splat(T.int32(-1), lanes), splat(T.int32(0), lanes))
    name = {4: "llvm.x86.sse.movmsk.ps", 8: "llvm.x86.avx.movmsk.ps.256"}[lanes]
    return _intrinsic(name, "int32", T.reinterpret(f"float32x{lanes}", full))


def dot_pairs_s16(left: Expr, right: Expr) -> Expr:
    """Return sums of two products of 16-bit lanes in 32-bit lanes (vpmaddwd, 256 bits)."""
    return _intrinsic("llvm.x86.avx2.pmadd.wd", "int32x8", left, right)


def add_pairs_s16(total: Expr, left: Expr, right: Expr) -> Expr:
    """Add two products of 16-bit lanes to each 32-bit lane (vpmaddwd, vpaddd, 256 bits)."""
    return total + _opaque("llvm.x86.avx2.pmadd.wd", "int32x8", left, right)


def lookup128(low: Expr, index: Expr, high: Expr) -> Expr:
    """Look 64 bytes up in a table of 128: bit 6 of the index chooses the half (vpermi2b)."""
    return _intrinsic("llvm.x86.avx512.vpermi2var.qi.512", "int8x64", low, index, high)


def lookup64(table: Expr, index: Expr) -> Expr:
    """Look 64 bytes up in a table of 64: the top two bits of the index are ignored (vpermb)."""
    return _intrinsic("llvm.x86.avx512.permvar.qi.512", "int8x64", table, index)


def lookup16(table: Expr, index: Expr, bits: int = 512) -> Expr:
    """Look bytes up in the 16-byte table of their own 128-bit lane (vpshufb)."""
    name = {512: "llvm.x86.avx512.pshuf.b.512", 256: "llvm.x86.avx2.pshuf.b"}[bits]
    return _intrinsic(name, f"int8x{bits // 8}", table, index)


def shift_fields(value: Expr, bits: int, lanes: int = BYTES) -> Expr:
    """Shift bytes right by shifting 16-bit lanes: the top bits of a byte come from its neighbour.

    The caller masks them away. There is no byte shift in x86.
    """
    half = lanes // 2
    wide = T.reinterpret(f"uint16x{half}", value)
    return T.reinterpret(f"uint8x{lanes}", T.shift_right(wide, splat(T.uint16(bits), half)))


def repeat16(buffer: Buffer, at: Expr, lanes: int = BYTES) -> Expr:
    """Repeat 16 bytes of a buffer in every 128-bit lane (vbroadcasti128, vbroadcasti32x4)."""
    part = buffer.vload([at], "uint8x16")
    return T.reinterpret(f"int8x{lanes}", T.Shuffle([part] * (lanes // 16), list(range(lanes))))


def interleave_bytes(low: Expr, high: Expr, lanes: int = BYTES) -> tuple[Expr, Expr]:
    """Interleave bytes of the lower, and of the upper, half of each 128-bit lane (vpunpckbw)."""
    halves = []
    for half in (0, 8):
        pairs = [(at + i, lanes + at + i) for at in range(half, lanes, 16) for i in range(8)]
        halves.append(T.Shuffle([low, high], [index for pair in pairs for index in pair]))
    return halves[0], halves[1]


def signs(bits: Expr, which: int) -> Expr:
    """Return -1 in the bytes that have bit ``which`` set, +1 in others (vgf2p8affineqb).

    The matrix copies the bit into the bits 1 to 7; the constant term sets bit 0.
    """
    matrix = constant(([1 << which] * 7 + [0]) * (BYTES // 8))
    return _intrinsic(
        "llvm.x86.vgf2p8affineqb.512", "int8x64", T.reinterpret("int8x64", bits), matrix, T.int8(1)
    )


def negate_unless(bits: Expr, which: int, value: Expr) -> Expr:
    """Negate the bytes for which bit ``which`` of ``bits`` is clear (vptestnmb, masked vpsubb).

    LLVM turns a test for a set bit round, and then no longer merges it with the subtraction.
    """
    clear = T.bitwise_and(bits, splat_u8(1 << which)).equal(splat_u8(0))
    return T.Select(clear, splat(T.int8(0), BYTES) - value, value)


def apply_sign(value: Expr, sign: Expr) -> Expr:
    """Negate bytes where ``sign`` is negative, clear them where it is zero (vpsignb, 256 bits)."""
    return _intrinsic("llvm.x86.avx2.psign.b", "int8x32", value, sign)


def round_product(left: Expr, right: Expr) -> Expr:
    """Return round(left * right / 2^15) of 16-bit lanes (vpmulhrsw, 256 bits)."""
    return _intrinsic("llvm.x86.avx2.pmul.hr.sw", "int16x16", left, right)


def nearest_s32(value: Expr) -> Expr:
    """Round float32x8 to integers, ties to even (vcvtps2dq, 256 bits)."""
    return _intrinsic("llvm.x86.avx.cvt.ps2dq.256", "int32x8", value)


def pack_s32(low: Expr, high: Expr) -> Expr:
    """Narrow 32-bit lanes to signed 16; low, then high, in each 128-bit lane (vpackssdw, 256)."""
    return _intrinsic("llvm.x86.avx2.packssdw", "int16x16", low, high)


def pack_s16(low: Expr, high: Expr) -> Expr:
    """Narrow 16-bit lanes to signed bytes: all of ``low``, then all of ``high``.

    Two instructions: vpacksswb works within 128-bit lanes, vpermq puts them in order.
    """
    packed = _intrinsic("llvm.x86.avx2.packsswb", "int8x32", low, high)
    ordered = T.Shuffle([T.reinterpret("int64x4", packed)], [0, 2, 1, 3])
    return T.reinterpret("int8x32", ordered)


def pack_u32(low: Expr, high: Expr) -> Expr:
    """Narrow 32-bit lanes to 16 bits; low, then high, in each 128-bit lane (vpackusdw, 512)."""
    return _intrinsic("llvm.x86.avx512.packusdw.512", "int16x32", low, high)


def pack_u16(low: Expr, high: Expr) -> Expr:
    """Narrow 16-bit lanes to bytes; low, then high, in each 128-bit lane (vpackuswb, 512)."""
    return _intrinsic("llvm.x86.avx512.packuswb.512", "int8x64", low, high)


def prefetch(buffer: Buffer, at: Expr, level: int = 1) -> None:
    """Ask for the cache line of an element, into the first or second cache (prefetcht0, t1).

    Beyond the end is harmless.
    """
    T.evaluate(
        T.call_llvm_intrin(
            T.llvm_lookup_intrinsic_id("llvm.prefetch"),
            T.address_of(buffer[at]),
            T.int32(0),
            T.int32(4 - level),
            T.int32(1),
            dtype="void",
        )
    )
