"""The vocabulary of CUDA templates: each function names what one instruction does.

Pointers are those of buffers (`Buffer.ptr_to`, `T.address_of`). Destinations are elements of
register arrays (`registers`) and come first. Functions that return nothing emit a statement. All
that TVM may spell differently one day is in this module, and in `warpgroup` for its products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.script import tirx as T

# A tensor program's expression or buffer: TVM ships no types.
Expr = Any
Buffer = Any

WARP = 32
WIDE = 16
_ALL = 0xFFFFFFFF
# PTX's names of the 16-bit floats.
SHORT = {"float16": "f16", "bfloat16": "bf16"}


def emit(name: str, *operands: Expr) -> None:
    """Emit an instruction by its name in PTX."""
    T.evaluate(T.ptx[name](*operands))


def registers(count: int, dtype: str) -> Buffer:
    """Declare registers of a thread; they must be indexed by constants."""
    return T.alloc_local((count,), dtype)


def put(buffer: Buffer, at: Expr, value: Expr) -> None:
    """Store a value in a flat buffer."""
    T.buffer_store(buffer, value, [at])


def hold(value: Expr) -> Expr:
    """Return an int32 computed here and kept in a register.

    TVM's simplifier puts values bound by `T.bind` in place of their variables and looks into them
    at each use: numbers made of such numbers again and again take it minutes. It does not look
    into registers.
    """
    register = registers(1, "int32")
    put(register, 0, value)
    return T.bind(register[0])


def load_wide(into: Buffer, first: int, buffer: Buffer, at: Expr, count: int) -> None:
    """Load 2 or 4 elements from ``at`` on in one access, aligned to its size."""
    T.buffer_store(into, buffer.vload([at], f"{buffer.dtype}x{count}"), [T.ramp(first, 1, count)])


# Copies to shared memory that go on beside the program.


def copy(into: Expr, source: Expr) -> None:
    """Begin a copy of 16 bytes from global to shared memory, past L1 (cp.async.cg)."""
    emit("cp.async.cg.shared.global.L2::128B", into, source, WIDE)


def copy_or_zero(into: Expr, source: Expr, count: Expr) -> None:
    """Begin a copy of ``count`` bytes, 0 to 16, filled up with zeros to 16 (cp.async.cg)."""
    emit("cp.async.cg.shared.global.L2::128B", into, source, WIDE, T.cast(count, "uint32"))


def copies_end() -> None:
    """End a group of this thread's copies (cp.async.commit_group)."""
    emit("cp.async.commit_group")


def copies_wait(pending: int) -> None:
    """Wait until all but the last ``pending`` groups have landed (cp.async.wait_group)."""
    emit("cp.async.wait_group", pending)


def arrivals_begin(barrier: Expr, count: int) -> None:
    """Set up a barrier in shared memory for ``count`` arrivals a phase (mbarrier.init)."""
    emit("mbarrier.init.shared.b64", barrier, T.uint32(count))


def arrivals_begun() -> None:
    """Make barriers that were set up known to the copy engine (fence.mbarrier_init)."""
    emit("fence.mbarrier_init.release.cluster")
    emit("fence.proxy.async.shared::cta")


def arrivals_end(barrier: Expr) -> None:
    """Take down a barrier, so that its memory can be set up again (mbarrier.inval)."""
    emit("mbarrier.inval.shared.b64", barrier)


def stores_end() -> None:
    """Order this thread's stores to shared memory before later bulk copies (fence.proxy.async).

    And before products of warpgroups, which read that memory too. What this thread has copied
    (`copy`) and waited for is among its stores.
    """
    emit("fence.proxy.async.shared::cta")


def arrive(barrier: Expr, count: Expr) -> None:
    """Arrive, and have the phase wait for ``count`` bytes too (mbarrier.arrive.expect_tx)."""
    emit("mbarrier.arrive.expect_tx.shared.b64", barrier, T.cast(count, "uint32"))


def arrive_alone(barrier: Expr) -> None:
    """Arrive; what this thread has read or written is done with (mbarrier.arrive)."""
    emit("mbarrier.arrive.shared.b64", barrier)


def arrivals_wait(barrier: Expr, parity: Expr) -> None:
    """Wait until the phase of this parity, 0 first, is complete (mbarrier.try_wait)."""
    T.evaluate(T.cuda.mbarrier_wait(barrier, parity))


def copy_row(into: Expr, source: Expr, count: int, barrier: Expr) -> None:
    """Begin a copy of ``count`` bytes, a multiple of 16, by the copy engine (cp.async.bulk).

    Both addresses are multiples of 16. The barrier counts the bytes as they land.
    """
    emit(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes",
        into,
        source,
        T.uint32(count),
        barrier,
    )


# Global memory.


def load_once(into: Sequence[Expr], pointer: Expr) -> None:
    """Load 2 or 4 words that nobody reads again, past L1 (ld.global.nc, up to 16 bytes)."""
    emit(f"ld.global.nc.L1::no_allocate.v{len(into)}.u32", *into, pointer)


def load_shared_by_all(into: Sequence[Expr], pointer: Expr) -> None:
    """Load 4 fp32 that another block may have written (ld.global.cg.v4, 16 bytes)."""
    emit("ld.global.cg.v4.f32", *into, pointer)


def load_word_shared_by_all(into: Expr, pointer: Expr) -> None:
    """Load an fp32 that another block may have written (ld.global.cg)."""
    emit("ld.global.cg.f32", into, pointer)


def store_wide(pointer: Expr, values: Sequence[Expr]) -> None:
    """Store 2 or 4 words (st.global, up to 16 bytes)."""
    emit(f"st.global.v{len(values)}.u32", pointer, *values)


def store_wide_real(pointer: Expr, values: Sequence[Expr]) -> None:
    """Store 4 fp32 (st.global.v4, 16 bytes)."""
    emit("st.global.v4.f32", pointer, *values)


def fence() -> None:
    """Make what this thread has written seen by all before what it writes next (fence)."""
    T.evaluate(T.cuda.thread_fence())


def add_to(pointer: Expr, value: Expr) -> Expr:
    """Return what an int32 was before ``value`` is added to it (atom.add)."""
    return T.cuda.atomic_add(pointer, value)


def swap_if(pointer: Expr, expected: Expr, value: Expr) -> Expr:
    """Return what a number was before ``value`` takes its place, if it was as expected (cas)."""
    return T.cuda.atomic_cas(pointer, expected, value)


def lower(pointer: Expr, value: Expr, space: str) -> None:
    """Replace an int32 in ``global`` or ``shared`` memory by a lesser one (red.min)."""
    emit(f"red.{space}.min.s32", pointer, value)


# Matrices: 8 x 8 elements of 16 bits, a row in 4 neighbouring lanes, two elements a lane.


def load_matrices(into: Sequence[Expr], pointer: Expr) -> None:
    """Load 1, 2 or 4 matrices; lane i points to row i of them all (ldmatrix)."""
    emit(f"ldmatrix.sync.aligned.m8n8.x{len(into)}.shared.b16", *into, pointer)


def load_transposed(into: Sequence[Expr], pointer: Expr) -> None:
    """Load 1, 2 or 4 matrices, each transposed (ldmatrix.trans)."""
    emit(f"ldmatrix.sync.aligned.m8n8.x{len(into)}.trans.shared.b16", *into, pointer)


def transpose(into: Expr, matrix: Expr) -> None:
    """Transpose a matrix between lanes (movmatrix)."""
    emit("movmatrix.sync.aligned.m8n8.trans.b16", into, matrix)


def multiply_add(
    total: Sequence[Expr], left: Sequence[Expr], right: Sequence[Expr], dtype: str
) -> None:
    """total[16, 8] += left[16, 16] right[16, 8] of 16-bit floats, in fp32 (mma.m16n8k16).

    With l = lane / 4 and c = 2 (lane % 4): total holds rows l, l, l + 8, l + 8 of columns c, c + 1;
    left rows l, l + 8, l, l + 8 of columns c, c + 1 (+ 8 in the last two); right column l of rows
    c, c + 1 and c + 8, c + 9.
    """
    short = SHORT[dtype]
    name = f"mma.sync.aligned.m16n8k16.row.col.f32.{short}.{short}.f32"
    emit(name, *total, *left, *right, *total)


# Registers.


def pack(into: Expr, low: Expr, high: Expr, dtype: str) -> None:
    """Round two fp32 to 16 bits, side by side in a word (cvt.rn)."""
    emit(f"cvt.rn.{SHORT[dtype]}x2.f32", into, high, low)


def unpack(into: Sequence[Expr], word: Expr, dtype: str) -> None:
    """Convert a word of two 16-bit floats to fp32, the low one first (cvt, or a shift)."""
    if dtype == "bfloat16":
        put_in(into[0], T.reinterpret("float32", word << T.uint32(16)))
        put_in(into[1], T.reinterpret("float32", word & T.uint32(0xFFFF0000)))
        return
    for i, place in enumerate(into):
        half = T.cast(T.shift_right(word, T.uint32(16 * i)), "uint16")
        put_in(place, T.cast(T.reinterpret("float16", half), "float32"))


def put_in(place: Expr, value: Expr) -> None:
    """Assign to an element of a register array."""
    T.buffer_store(place.source, value, list(place.indices))


def multiply_pairs(into: Expr, a: Expr, b: Expr, dtype: str) -> None:
    """Multiply two 16-bit floats at once (mul.rn)."""
    emit(f"mul.rn.{SHORT[dtype]}x2", into, a, b)


def divide(into: Expr, a: Expr, b: Expr) -> None:
    """Divide fp32 as IEEE 754 does, to nearest (div.rn)."""
    emit("div.rn.f32", into, a, b)


def permute_bytes(into: Expr, low: Expr, high: Expr, selector: Expr) -> None:
    """Choose 4 of the 8 bytes of two words; a nibble of ``selector`` names each (prmt)."""
    emit("prmt.b32", into, low, high, selector)


def logic(into: Expr, a: Expr, b: Expr, c: Expr, table: int) -> None:
    """Combine three words bit by bit; ``table`` is f(0xF0, 0xCC, 0xAA) (lop3)."""
    emit("lop3.b32", into, a, b, c, table)


def subtract_pairs(into: Expr, a: Expr, b: Expr, dtype: str) -> None:
    """Subtract two 16-bit floats at once (sub.rn)."""
    emit(f"sub.rn.{SHORT[dtype]}x2", into, a, b)


def multiply_add_pairs(into: Expr, a: Expr, b: Expr, c: Expr, dtype: str) -> None:
    """Compute a b + c of two 16-bit floats at once (fma.rn)."""
    emit(f"fma.rn.{SHORT[dtype]}x2", into, a, b, c)


def lesser(into: Expr, a: Expr, b: Expr, dtype: str) -> None:
    """Take the lesser of two fp32, or of each of two 16-bit floats; NaN gives way (min).

    Nothing is flushed to zero.
    """
    emit(f"min.{_floats(dtype)}", into, a, b)


def greater(into: Expr, a: Expr, b: Expr, dtype: str) -> None:
    """Take the greater ones, as `lesser` does (max)."""
    emit(f"max.{_floats(dtype)}", into, a, b)


def _floats(dtype: str) -> str:
    return f"{SHORT[dtype]}x2" if dtype in SHORT else "f32"


def exp2(x: Expr) -> Expr:
    """Return 2^x to 2 units in the last place; 0 for -inf (ex2.approx)."""
    return T.exp2(x)


def exp2_by_products(x: Expr) -> Expr:
    """Return 2^x for x <= 126 by a polynomial, beside the unit that ex2 is computed by.

    The relative error is below 4e-6 down to 2^-126, and 0 comes out below 2^-127 and for NaN. x is
    split into an integer, which 1.5 * 2^23 leaves in the low bits of a sum, and a rest in
    [-1/2, 1/2], for which the polynomial's relative error is 2.9e-6 (Remez); 0 gives 1 exactly.
    The integer is added to the exponent (Cody and Waite; as in FlashAttention-4).
    """
    source = """
__forceinline__ __device__ float wt_exp2_by_products(float x) {
  x = fmaxf(x, -127.0f);
  float moved = x + 12582912.0f;
  float rest = x - (moved - 12582912.0f);
  float power = fmaf(0.009582855f, rest, 0.055906430f);
  power = fmaf(power, rest, 0.240240986f);
  power = fmaf(power, rest, 0.693124193f);
  power = fmaf(power, rest, 1.0f);
  return __int_as_float((int)((unsigned)__float_as_int(moved) << 23) + __float_as_int(power));
}
"""
    return T.cuda.func_call("wt_exp2_by_products", x, source_code=source, return_type="float32")


def log2(x: Expr) -> Expr:
    """Return log2(x), absolute error below 2^-22 near 1 (lg2.approx)."""
    return T.log2(x)


# Lanes of a warp, and threads of a block.


def from_lane(value: Expr, lane: Expr) -> Expr:
    """Return what another lane holds (shfl.idx)."""
    return T.tvm_warp_shuffle(T.uint32(_ALL), value, lane, WARP, WARP)


def across(value: Expr, distance: int) -> Expr:
    """Return what the lane whose number differs in the bits of ``distance`` holds (shfl.bfly)."""
    return T.tvm_warp_shuffle_xor(T.uint32(_ALL), value, distance, WARP, WARP)


def from_below(value: Expr, distance: int) -> Expr:
    """Return what the lane so far below holds; lanes without one get their own (shfl.up)."""
    return T.tvm_warp_shuffle_up(T.uint32(_ALL), value, distance, WARP, WARP)


def ballot(condition: Expr) -> Expr:
    """Return a word with a bit for each lane whose condition holds (vote.ballot)."""
    return T.cuda.ballot_sync(T.uint32(_ALL), T.cast(condition, "int32"))


def lanes_below(lane: Expr) -> Expr:
    """Return a word with the bits of all lanes below this one."""
    return T.shift_left(T.uint32(1), T.cast(lane, "uint32")) - T.uint32(1)


def ones(word: Expr) -> Expr:
    """Return how many bits are set, an int32 (popc)."""
    return T.cast(T.popcount(word), "int32")


def first_lane(word: Expr) -> Expr:
    """Return the number of the lowest bit that is set, -1 for 0 (ffs)."""
    return T.cuda.ffs_u32(word) - 1


def warp_barrier() -> None:
    """Wait for all lanes of the warp; what they wrote is seen (bar.warp.sync)."""
    T.evaluate(T.cuda.warp_sync())


def team_barrier(number: Expr, threads: int) -> None:
    """Wait for the ``threads`` of some warps of a block; number 1 to 15 (bar.sync)."""
    emit("bar.sync", T.cast(number, "uint32"), T.uint32(threads))


def block_barrier() -> None:
    """Wait for all threads of the block; what they wrote is seen (bar.sync 0)."""
    T.evaluate(T.cuda.cta_sync())


def wait_for_previous() -> None:
    """Wait for the kernel launched before, and what it wrote (griddepcontrol.wait; sm_90).

    Nothing on older GPUs, where no kernel starts before the one before it has ended.
    """
    _of_hopper("wt_wait_for_previous", "griddepcontrol.wait")


def let_next_start() -> None:
    """Allow the next kernel to begin when all blocks say so (griddepcontrol; sm_90).

    Nothing on older GPUs.
    """
    _of_hopper("wt_let_next_start", "griddepcontrol.launch_dependents")


def _of_hopper(name: str, instruction: str) -> None:
    """Emit an instruction without operands that older GPUs leave out: one source serves all."""
    source = f"""
__forceinline__ __device__ void {name}() {{
#if __CUDA_ARCH__ >= 900
  asm volatile("{instruction};" ::: "memory");
#endif
}}
"""
    T.evaluate(T.cuda.func_call(name, source_code=source, return_type="void"))
