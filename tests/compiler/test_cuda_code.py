"""Machine code for GPUs: which compiler makes it, what is known of it, what is not measured."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks.gpu.sass import rows_of
from tests.compiler.toy_gpu import HOPPER, RAGGED, TEMPLATES, Ragged, registered

from wattune import ops
from wattune.compiler import build, cli
from wattune.compiler.cuda import device_code, nvcc, nvrtc, sass, toolkit
from wattune.compiler.cuda.device_code import compile_image, device_compiler, usage_of
from wattune.compiler.cuda.nvcc import Nvcc
from wattune.compiler.cuda.nvrtc import Nvrtc
from wattune.compiler.cuda.program import build_gpu
from wattune.compiler.cuda.rules import refusal
from wattune.compiler.tvm_setup import prepare_tvm
from wattune.errors import BuildError, MissingDependencyError
from wattune.ops import KVCacheAppend, TernaryGemm
from wattune.schedules.cuda.occupancy import blocks_per_sm
from wattune.schedules.cuda.program import GpuProgram
from wattune.schedules.template import default_candidate

SOURCE = """
#include <cuda_fp16.h>
extern "C" __global__ void scale_kernel(const uint4 *x, uint4 *y, half2 factor) {
  uint4 v = x[threadIdx.x];
  half2 *h = (half2 *)&v;
  for (int i = 0; i < 4; ++i) h[i] = __hmul2(h[i], factor);
  y[threadIdx.x] = v;
}
extern "C" __global__ void hungry_kernel(float *x) {
  __shared__ float tile[64];
  float a[96];
  #pragma unroll
  for (int i = 0; i < 96; ++i) a[i] = x[i * 32 + threadIdx.x];
  tile[threadIdx.x] = a[0];
  __syncthreads();
  #pragma unroll
  for (int i = 0; i < 96; ++i) x[i * 32 + threadIdx.x] = a[i] * a[95 - i] + tile[i / 2];
}
"""
BROKEN = 'extern "C" __global__ void f_kernel() { nothing_of_this_name(); }'


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is found that was compiled before."""
    monkeypatch.setattr(device_code, "cache_folder", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither toolkit nor packages."""
    for name in ("CUDA_PATH", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "nvcc" else which(name))
    for module in (toolkit, nvrtc):
        monkeypatch.setattr(module, "packaged", lambda package, name: iter(()))
    device_compiler.cache_clear()
    yield
    device_compiler.cache_clear()


@pytest.mark.nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90a"])
def test_an_image_and_what_the_assembler_says(cache: Path, arch: str) -> None:
    image = compile_image(SOURCE, [arch])
    assert image.data.startswith(b"\x7fELF")
    assert image.toolkit.startswith("13.0")
    hungry = image.usage["hungry", arch]
    assert hungry.registers > 96 and hungry.shared == 256
    assert hungry.stack == hungry.spill_stores == hungry.spill_loads == 0
    capped = compile_image(SOURCE, [arch], registers=32).usage["hungry", arch]
    assert capped.registers <= 32 and capped.spill_stores and capped.spill_loads
    assert image.usage["scale", arch].registers < 32


@pytest.mark.nvcc
def test_images_are_cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compile_image(SOURCE, ["sm_80"])
    monkeypatch.setattr(type(device_compiler()), "compile", None)
    assert compile_image(SOURCE, ["sm_80"]) == first
    for other in ({"archs": ["sm_89"]}, {"archs": ["sm_80"], "registers": 64}):
        with pytest.raises(TypeError):
            compile_image(SOURCE, **other)


def test_two_architectures_are_a_fat_binary(cache: Path) -> None:
    compiler = Nvcc.find()
    if compiler is None:
        pytest.skip("needs nvcc")
    data, report = compiler.compile(SOURCE, ["sm_80", "sm_90a"], ["-std=c++17"])
    assert not data.startswith(b"\x7fELF")
    assert {arch for _, arch in usage_of(report)} == {"sm_80", "sm_90a"}


def test_products_that_the_assembler_serializes() -> None:
    remarks = """
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized \
due to insufficient register resources for the wgmma pipeline in the function 'attend_kernel'
ptxas info    : (C7517) warpgroup.wait is injected in around line 1826 by compiler to allow use \
of registers defined by GMMA in function 'attend_kernel'
ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored to maintain minimum \
register requirements in function 'combine_kernel'
ptxas info    : Compiling entry function 'combine_kernel' for 'sm_90a'
ptxas info    : Used 26 registers, used 0 barriers
ptxas info    : Compiling entry function 'attend_kernel' for 'sm_90a'
ptxas info    : Used 170 registers, used 16 barriers
"""
    usage = usage_of(remarks)
    assert usage["attend", "sm_90a"].serialized == 2
    assert usage["combine", "sm_90a"].serialized == 0


# Sums are touched between two products that are on their way.
HASTY = """
extern "C" __global__ void hasty_kernel(float *x, unsigned long long slab) {
#if __CUDA_ARCH__ == 900
  float d[4] = {0, 0, 0, 0};
  for (int j = 0; j < 2; ++j) {
    asm volatile("wgmma.fence.sync.aligned;");
    asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%0,%1,%2,%3}, "
                 "%4, %4, 1, 1, 1, 0, 0;"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "l"(slab));
    d[0] += x[j];
  }
  asm volatile("wgmma.commit_group.sync.aligned;");
  asm volatile("wgmma.wait_group.sync.aligned 0;");
  for (int i = 0; i < 4; ++i) x[i] = d[i];
#endif
}
"""


@pytest.mark.parametrize("archs", [["sm_80", "sm_90a"], ["sm_90a", "sm_80"]])
def test_remarks_are_of_one_architecture(archs: list[str]) -> None:
    compiler = Nvcc.find()
    if compiler is None:
        pytest.skip("needs nvcc")
    usage = usage_of(compiler.compile(HASTY, archs, ["-std=c++17"])[1])
    assert usage["hasty", "sm_90a"].serialized > 0
    assert usage["hasty", "sm_80"].serialized == 0


def test_nvrtc_makes_the_same_code() -> None:
    compiler, other = Nvrtc.find(), Nvcc.find()
    if compiler is None or other is None:
        pytest.skip("needs nvcc and the packages of NVRTC")
    flags = ["-std=c++17", "--use_fast_math"]
    assert other.version.startswith(compiler.version)
    data, report = compiler.compile(SOURCE, ["sm_90a"], flags)
    wanted, said = other.compile(SOURCE, ["sm_90a"], flags)
    assert usage_of(report) == usage_of(said)
    if sass.disassembler() is not None:
        assert sass.opcodes(data) == sass.opcodes(wanted)
    with pytest.raises(BuildError, match=r"one GPU architecture, not for sm_80, sm_90a; install"):
        compiler.compile(SOURCE, ["sm_80", "sm_90a"], flags)
    with pytest.raises(BuildError, match=r"NVRTC: .*nothing_of_this_name"):
        compiler.compile(BROKEN, ["sm_90a"], flags)


@pytest.mark.nvcc
def test_the_compilers_reason_is_short(cache: Path) -> None:
    with pytest.raises(BuildError, match="nothing_of_this_name") as caught:
        compile_image(BROKEN, ["sm_90a"])
    assert len(str(caught.value)) < 600


def test_tools_of_a_toolkit_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_PATH", str(tmp_path))
    on_path = list(toolkit.tools("nvcc"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch()
    assert list(toolkit.tools("nvcc")) == [tmp_path / "bin" / "nvcc", *on_path]
    (source,) = (p for p in toolkit.packaged("numpy", "numpy/__init__.py"))
    assert source.is_file()


@pytest.mark.usefixtures("nothing_installed")
def test_without_a_compiler_the_message_names_the_extra(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(MissingDependencyError) as caught:
        compile_image(SOURCE, ["sm_90a"])
    assert str(caught.value) == (
        "compiling for CUDA needs nvidia-cuda-nvcc (or a CUDA toolkit in CUDA_PATH), which is not "
        "installed: pip install 'wattune[cuda]'"
    )
    assert cli.main(["ops", "--target", "cuda:sm_90a"]) == 0
    problem = '{"operator": "merge_states", "tokens": 2, "states": 2, "heads": 2, "head_dim": 64}'
    out = str(tmp_path / "k.so")
    assert cli.main(["compile", "--problem", problem, "--threads", "1", "-o", out]) == 0


def test_nvrtc_stands_in_for_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    device_compiler.cache_clear()
    monkeypatch.setattr(nvcc.Nvcc, "find", lambda: None)
    monkeypatch.setattr(nvrtc.Nvrtc, "find", lambda: "the other one")
    assert device_compiler() == "the other one"  # type: ignore[comparison-overlap]
    device_compiler.cache_clear()


LISTING = """
\t.section\t.text.scale_kernel,"ax",@progbits
.text.scale_kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0020*/               @P1 LDGSTS.E.BYPASS.LTC128B.128 [R5], desc[UR4][R2.64] ;
        /*0030*/               @P1 LDGSTS.E.LTC128B [R5], desc[UR4][R2.64] ;
        /*0040*/             @!UP0 MUFU.EX2 R0, R0 ;
        /*0050*/                   MUFU.RCP R0, R0 ;
        /*0060*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0070*/                   NOP;
\t.section\t.text.other_kernel,"ax",@progbits
.text.other_kernel:
        /*0000*/                   LDG.E R4, desc[UR4][R2.64] ;
        /*0010*/                   EXIT ;
"""


def test_opcodes_are_counted_by_kernel() -> None:
    counts = sass.opcodes_of(LISTING)
    assert sass.mix(counts["scale"]) == {
        "instructions": 7,
        "LDG.128": 1,
        "LDG": 1,
        "LDGSTS.128": 1,
        "LDGSTS": 2,
        "MUFU.EX2": 1,
        "HMMA": 1,
    }
    assert sass.mix(counts["other"]) == {"instructions": 2, "LDG": 1}


SPILLS = """
.text.once_kernel:
        /*0000*/                   STL [R1], R4 ;
.L_x_0:
        /*0010*/                   FFMA R4, R2, R3, R4 ;
.L_x_1:
        /*0020*/                   FADD R4, R2, R4 ;
        /*0030*/              @!P1 BRA `(.L_x_1) ;
        /*0040*/              @!P0 BRA `(.L_x_0) ;
        /*0050*/                   EXIT ;
.text.often_kernel:
.L_x_2:
        /*0000*/                   LDL R4, [R1] ;
        /*0010*/              @!P0 BRA `(.L_x_2) ;
        /*0020*/                   EXIT ;
.L_x_3:
        /*0030*/                   BRA `(.L_x_3);
"""


def test_spills_weigh_by_the_loops_around_them() -> None:
    shares = sass.local_shares(SPILLS)
    # Once; two instructions of the outer loop, two of the inner one; once.
    assert shares["once"] == 1 / (1 + 2 * 16 + 2 * 256 + 1)
    assert shares["often"] == 16 / (2 * 16 + 1 + 1)


def test_the_main_loop_is_the_smallest_with_the_most() -> None:
    assert sass.main_loops_of(SPILLS, "FADD") == {"once": {"FADD": 1, "BRA": 1}}
    assert sass.main_loops_of(SPILLS, "FFMA") == {"once": {"FFMA": 1, "FADD": 1, "BRA": 2}}
    assert not sass.main_loops_of(SPILLS, "HMMA")


@pytest.mark.nvcc
def test_the_mix_of_an_image(cache: Path) -> None:
    if sass.disassembler() is None:
        pytest.skip("needs nvdisasm")
    facts = sass.mix_facts(compile_image(SOURCE, ["sm_90a"]).data)
    assert facts["scale.sass.LDG.128"] == 1 and "scale.sass.LDL" not in facts
    capped = sass.mix_facts(compile_image(SOURCE, ["sm_90a"], registers=32).data)
    assert capped["hungry.sass.LDL"] and capped["hungry.sass.STL"]
    assert capped["hungry.local_share"] > 0.02 and "hungry.local_share" not in facts
    with pytest.raises(BuildError, match="nvdisasm"):
        sass.opcodes(b"not a cubin")


@pytest.mark.parametrize(
    ("arch", "threads", "registers", "shared", "blocks"),
    [
        ("sm_90a", 128, 32, 0, 16),  # by registers and threads
        ("sm_90a", 32, 16, 0, 32),  # by blocks
        ("sm_90a", 128, 168, 0, 3),  # 5376 a warp: 21504 a block
        ("sm_90a", 128, 0, 100 << 10, 2),  # by shared memory
        ("sm_90a", 128, 0, 227 << 10, 1),
        ("sm_90a", 128, 0, (227 << 10) + 1, 0),
        ("sm_89", 128, 0, 50 << 10, 1),
        ("sm_80", 1024, 64, 0, 1),
        ("sm_80", 1024, 65, 0, 0),
        ("sm_123", 32, 32, 0, None),
    ],
)
def test_blocks_of_an_sm(
    arch: str, threads: int, registers: int, shared: int, blocks: int | None
) -> None:
    """By NVIDIA's occupancy calculator."""
    assert blocks_per_sm(arch, threads, registers, shared) == blocks


def test_what_is_not_measured() -> None:
    fine = {"a.threads": 128.0, "a.registers": 90.0, "a.blocks_per_sm": 5.0, "a.stack": 16.0}
    assert refusal(fine) == "" == refusal({"compile_seconds": 1.0})
    spills = {**fine, "a.spill_stores": 8.0, "a.spill_loads": 12.0}
    words = "kernel a spills: 20 bytes of loads and stores a thread, "
    assert refusal(spills) == words + "nobody knows where"
    assert refusal({**spills, "a.spill_loads": 8.0}) == ""
    # Where the machine code was read, it says how much that is.
    read = {**spills, "a.sass.instructions": 500.0, "a.local_share": 0.04}
    assert refusal(read) == words + "4.0% of what it executes"
    assert refusal({**read, "a.local_share": 0.01}) == ""
    full = {"a.blocks_per_sm": 0.0, "a.shared": 8.0, "a.dynamic_shared": 232448.0}
    assert refusal({**fine, "a.serialized": 2.0}) == (
        "kernel a waits between products of warpgroups, in 2 places"
    )
    assert refusal({**fine, **full}) == (
        "kernel a fits on no SM: blocks of 128 threads with 90 registers each and 232456 bytes of "
        "shared memory"
    )


@pytest.mark.nvcc
def test_facts_of_a_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered()
    monkeypatch.setitem(ops._OPERATORS, "ragged", RAGGED)
    candidate = default_candidate(Ragged(2, 64, factor=3.0), HOPPER)
    facts = build.build_candidate(candidate, tmp_path / "k.so")
    assert facts["scale.threads"] == 32 and facts["scale.dynamic_shared"] == 128 << 10
    assert facts["scale.blocks_per_sm"] == 1 and facts["factors.blocks_per_sm"] == 32
    assert facts["registers"] == max(facts["scale.registers"], facts["factors.registers"])
    if sass.disassembler() is not None:
        assert facts["scale.sass.instructions"] > 10

    def greedy(*arguments: Any) -> dict[str, float]:
        return {**build_gpu(*arguments), "scale.spill_loads": 40.0, "scale.local_share": 0.1}

    monkeypatch.setattr(build, "build_gpu", greedy)
    with pytest.raises(BuildError, match="not measured: kernel scale spills: 40 bytes"):
        build.build_candidate(candidate, tmp_path / "spilling.so")
    assert [p.name for p in tmp_path.iterdir()] == ["k.so"]


def test_programs_know_their_blocks() -> None:
    program = TEMPLATES[0].lower(Ragged(2, 64, factor=3.0), HOPPER, {"reserved": 128 << 10})
    assert isinstance(program, GpuProgram)
    assert {name: (b.threads, b.shared) for name, b in program.blocks.items()} == {
        "factors": (32, 0),
        "scale": (32, 128 << 10),
    }


@pytest.mark.nvcc
def test_the_table_of_defaults() -> None:
    prepare_tvm()
    (row,) = rows_of(KVCacheAppend(1, 64, 1, 64, dtype="float16"), "sm_80")
    assert row["kernel"] == "append" and row["refused"] == "" and 0 < row["occupancy"] <= 1
    assert row["registers"] > 0 and row["spill_stores"] == 0
    if sass.disassembler() is not None:
        assert row["mix"]["LDG.128"] and "LDL" not in row["mix"]
    assert not list(rows_of(TernaryGemm(1, 64, 64), "sm_80")), "no template serves it"
