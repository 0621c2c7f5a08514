"""Every row of the emulator's table has an example that compiles, as TVM or people write it."""

from __future__ import annotations

import re

from tests.emulator.cuda.image import host_image
from tests.emulator.cuda.instructions import INSTRUCTIONS, find, render

# Registers: a to d of 32 bits, w to z of 64, e to g floats, h and i of 16, p and q predicates,
# s and t shared addresses, m a pointer.
REGISTERS = """
.reg .b32 a, b, c, d, s, t; .reg .b64 w, x, y, z, m; .reg .f32 e, f, g; .reg .b16 h, i;
.reg .pred p, q;
"""
EXAMPLES = """
ldmatrix.sync.aligned.m8n8.x4.shared.b16 {a, b, c, d}, [s];
ldmatrix.sync.aligned.m8n8.x1.trans.shared::cta.b16 {a}, [s+32];
stmatrix.sync.aligned.m8n8.x2.shared.b16 [s], {a, b};
stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [s], {a, b, c, d};
movmatrix.sync.aligned.m8n8.trans.b16 a, b;
mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {e, e, f, f}, {a, b}, {a}, {e, e, f, f};
mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {a, b, c, d}, {a, b, c, d}, {a, b}, {a, b, c, d};
cp.async.cg.shared.global.L2::128B [s], [m], 16;
cp.async.ca.shared.global [s], [m+4], 4, a;
cp.async.commit_group;
cp.async.wait_group 1;
cp.async.wait_all;
cp.async.mbarrier.arrive.noinc.shared::cta.b64 [s];
cp.async.mbarrier.arrive.shared.b64 [s];
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [s], [m], a, [t];
cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes [s], [m, {a}], [t];
wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {e, f, g, e}, w, x, p, 1, 1, 0, 0;
wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {e, f, g, e}, {a, b, c, d}, w, p, 1, 1, 1;
wgmma.fence.sync.aligned;
wgmma.commit_group.sync.aligned;
wgmma.wait_group.sync.aligned 0;
mbarrier.init.shared.b64 [s], 1;
mbarrier.inval.shared.b64 [s];
mbarrier.arrive.expect_tx.shared.b64 _, [s], a;
mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [s], a;
mbarrier.arrive.release.cta.shared::cta.b64 w, [s];
mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [s], a, b;
mbarrier.test_wait.shared.b64 p, [s], w;
bar.sync 1, 64;
barrier.cta.arrive.aligned 1, 64;
bar.warp.sync 0xffffffff;
griddepcontrol.wait;
griddepcontrol.launch_dependents;
fence.proxy.async.shared::cta;
fence.acq_rel.gpu;
nanosleep.u32 20;
trap;
elect.sync _|p, 0xffffffff;
shfl.sync.down.b32 a, b, 4, 31, 0xffffffff;
vote.sync.ballot.b32 a, p, 0xffffffff;
vote.sync.any.pred p, q, 0xffffffff;
vote.sync.all.pred p, q, 0xffffffff;
match.any.sync.b32 a, b, 0xffffffff;
activemask.b32 a;
redux.sync.add.s32 a, b, 0xffffffff;
redux.sync.min.u32 a, b, 0xffffffff;
redux.sync.max.u32 a, b, 0xffffffff;
redux.sync.min.s32 a, b, 0xffffffff;
redux.sync.max.s32 a, b, 0xffffffff;
redux.sync.and.b32 a, b, 0xffffffff;
redux.sync.or.b32 a, b, 0xffffffff;
redux.sync.xor.b32 a, b, 0xffffffff;
ld.acquire.gpu.global.u32 a, [m];
ld.global.nc.L1::no_allocate.L2::128B.f32 e, [m+16];
ld.shared.v2.b32 {a, b}, [s];
ld.global.nc.L1::no_allocate.v4.u32 {a, b, c, d}, [m];
st.release.gpu.global.u32 [m], a;
st.global.L1::no_allocate.v4.f32 [m], {e, f, g, e};
st.shared::cta.b64 [s], w;
atom.acq_rel.gpu.global.add.u32 a, [m], b;
red.release.gpu.global.add.f32 [m], e;
atom.global.cas.b32 a, [m], b, c;
cvta.to.shared.u64 w, x;
lop3.b32 a, b, c, d, 0xEA;
prmt.b32 a, b, c, 0x5410;
shf.l.wrap.b32 a, b, c, 8;
shf.r.wrap.b32 a, b, c, d;
setp.ge.s32 p, a, b;
selp.f32 e, f, g, p;
add.s32 a, b, 1;
sub.u64 w, x, y;
mul.lo.u32 a, b, c;
mad.lo.s32 a, b, c, d;
and.b32 a, b, c;
or.b64 w, x, y;
xor.b32 a, b, c;
shl.b64 w, x, 40;
shr.s32 a, b, c;
add.ftz.f32 e, f, g;
sub.rn.f32 e, f, g;
mul.f32 e, f, 0f3F800000;
fma.rn.ftz.f32 e, f, g, e;
div.rn.f32 e, f, g;
max.f32 e, f, g;
min.ftz.f32 e, f, g;
max.s32 a, b, c;
ex2.approx.ftz.f32 e, f;
lg2.approx.f32 e, f;
rcp.approx.ftz.f32 e, f;
rsqrt.approx.f32 e, f;
sqrt.approx.f32 e, f;
tanh.approx.f32 e, f;
abs.f32 e, f;
neg.f32 e, f;
fma.rn.bf16x2 a, b, c, d;
ex2.approx.f16x2 a, b;
cvt.rn.bf16x2.f32 a, e, f;
cvt.rn.satfinite.e4m3x2.f32 h, e, f;
cvt.rn.satfinite.e5m2x2.f32 h, e, f;
cvt.rn.f16x2.e4m3x2 a, h;
cvt.rn.f16x2.e5m2x2 a, h;
cvt.rn.f16.f32 h, e;
cvt.f32.bf16 e, h;
cvt.rni.sat.s8.f32 a, e;
cvt.rni.s32.f32 a, e;
cvt.rzi.u32.f32 a, e;
cvt.rn.f32.s32 e, a;
cvt.u64.u32 w, a;
mov.b32 a, {h, i};
mov.b64 {a, b}, w;
mov.u32 a, %laneid;
mov.u32 a, %ctaid.x;
"""


def test_each_row_has_an_example() -> None:
    used = set()
    for line in EXAMPLES.split(";"):
        opcode, _, rest = line.strip().partition(" ")
        if opcode.startswith("mov.") and "{" in rest:
            opcode += ".to_parts" if rest.startswith("{") else ".from_parts"
        if opcode:
            row = find(opcode)
            assert row is not None, opcode
            used.add(row[1])
    assert [code for _, code in INSTRUCTIONS if code not in used] == []


def test_the_examples_compile() -> None:
    body = re.sub(r"\s+", " ", REGISTERS + EXAMPLES)
    host_image(f'extern "C" __global__ void kernel() {{ asm volatile("{{ {body} }}" ::); }}')


def test_an_unknown_instruction_says_its_text() -> None:
    code = render("frobnicate.b32", [("a",), ("b",)], "frobnicate.b32 a, b")
    assert code == 'emu::fail("PTX not emulated: %s", "frobnicate.b32 a, b")'
