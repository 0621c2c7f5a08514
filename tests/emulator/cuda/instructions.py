"""What PTX instructions do: one row each, tried in order; the first that matches counts.

To add an instruction, add a row to `INSTRUCTIONS`: a pattern of the whole opcode, and C++ for it.
In the C++, ``$1`` is a group of the pattern and ``@1`` the C++ type that the group names (``u32``);
``%0`` is an operand, ``%*`` stands for all of them. Operands come in the order of the instruction,
vectors element by element, addresses as ``ptx::Shared`` (32 bits) or ``ptx::Global``. Results are
assigned with ``put(%0, ...)``, which keeps bits; ``as<@1>(%1)`` reads an operand as a type. What
needs more than an expression is a function in ``device/ptx.h`` or ``device/words.h``.

Each row has an example in `test_cuda_instructions.py`. An instruction without a row compiles, and
fails the launch that runs it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from wattune.errors import BuildError

Operand = tuple[str, ...]

CPP_TYPES = {
    "pred": "bool",
    **{f"{kind}{n}": f"uint{n}_t" for kind in "bu" for n in (8, 16, 32, 64)},
    **{f"s{n}": f"int{n}_t" for n in (8, 16, 32, 64)},
    "f16": "half",
    "bf16": "nv_bfloat16",
    "f32": "float",
    "f64": "double",
    "b128": "uint4",
}

SPECIAL_REGISTERS = {
    "%laneid": "emu::self->lane",
    "%warpid": "(emu::self->number / 32)",
    "%smid": "0",
    **dict.fromkeys(("%globaltimer", "%globaltimer_lo"), "(++ptx::clock)"),
    "%clock64": "(++ptx::clock)",
    "%clock": "(uint32_t)(++ptx::clock)",
    **{
        f"%{register}.{axis}": f"(int){variable}.{axis}"
        for register, variable in (
            ("tid", "threadIdx"),
            ("ntid", "blockDim"),
            ("ctaid", "blockIdx"),
            ("nctaid", "gridDim"),
        )
        for axis in "xyz"
    },
}

_ELEMENTS = {
    "f16": "emu::kF16",
    "bf16": "emu::kBf16",
    "tf32": "emu::kTf32",
    "s8": "emu::kS8",
    "u8": "emu::kU8",
    "e4m3": "emu::kE4m3",
    "e5m2": "emu::kE5m2",
    "f16x2": "emu::Half",
    "bf16x2": "emu::Bfloat",
}
_ATOMICS = ("add", "min", "max", "and", "or", "xor", "exch", "inc")
_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_ATOMIC = {n: f"ptx::kAtom{n.capitalize()}" for n in _ATOMICS}
_WORDS = {**_ELEMENTS, **_COMPARE, **_ATOMIC}

# State spaces and hints of ld and st that change nothing here.
_SPACE = r"(?:\.(?:global|shared(?:::cta|::cluster)?|const|local|param))?"
_HINTS = r"(?:\.(?:nc|cg|ca|cs|cv|lu|wb|wt|weak|L1::\w+|L2::\w+))*"
_SCOPE = r"(?:\.(?:cta|cluster|gpu|sys))?"
_TYPE = r"\.([bsuf]\d+|bf16)"
_MBAR = r"(?:\.(?:release|acquire|relaxed))?(?:\.(?:cta|cluster))?(?:\.shared(?:::cta)?)?\.b64"

INSTRUCTIONS: tuple[tuple[str, str], ...] = (
    # Matrices.
    (
        r"ldmatrix\.sync\.aligned\.m8n8\.x([124])\.shared(?:::cta)?\.b16",
        "ptx::ldmatrix$1<false>(%*)",
    ),
    (
        r"ldmatrix\.sync\.aligned\.m8n8\.x([124])\.trans\.shared(?:::cta)?\.b16",
        "ptx::ldmatrix$1<true>(%*)",
    ),
    (r"stmatrix\.sync\.aligned\.m8n8\.x[124]\.shared(?:::cta)?\.b16", "ptx::stmatrix<false>(%*)"),
    (
        r"stmatrix\.sync\.aligned\.m8n8\.x[124]\.trans\.shared(?:::cta)?\.b16",
        "ptx::stmatrix<true>(%*)",
    ),
    (r"movmatrix\.sync\.aligned\.m8n8\.trans\.b16", "ptx::movmatrix(%*)"),
    (
        r"mma\.sync\.aligned\.m16n8k(\d+)\.row\.col\.(?:f32|s32)"
        r"\.(f16|bf16|tf32|s8|u8|e4m3|e5m2)\.(f16|bf16|tf32|s8|u8|e4m3|e5m2)\.(?:f32|s32)",
        "ptx::mma<$1, #2, #3>(%*)",
    ),
    # Asynchronous copies and mbarriers.
    (r"cp\.async\.c[ag]\.shared(?:::cta)?\.global(?:\.L2::\w+)*", "ptx::cp_async(%*)"),
    (r"cp\.async\.commit_group", "emu::copy_commit()"),
    (r"cp\.async\.wait_group", "emu::copy_wait(%0)"),
    (r"cp\.async\.wait_all", "emu::copy_wait_all()"),
    (
        r"cp\.async\.mbarrier\.arrive\.noinc(?:\.shared(?:::cta)?)?\.b64",
        "emu::mbarrier_after_copies(%0, true)",
    ),
    (
        r"cp\.async\.mbarrier\.arrive(?:\.shared(?:::cta)?)?\.b64",
        "emu::mbarrier_after_copies(%0, false)",
    ),
    (
        r"cp\.async\.bulk\.shared::(?:cluster|cta)\.global\.mbarrier::complete_tx::bytes"
        r"(?:\.L2::cache_hint)?",
        "ptx::bulk_load(%0, %1, %2, %3)",
    ),
    (
        r"cp\.async\.bulk\.tensor\.([1-5])d\.shared::(?:cluster|cta)\.global(?:\.tile)?"
        r"\.mbarrier::complete_tx::bytes(?:\.L2::cache_hint)?",
        "ptx::tensor_load<$1>(%*)",
    ),
    (
        r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k16\.f32\.(f16|bf16)\.(?:f16|bf16)",
        "ptx::wgmma<#2, $1>(%*)",
    ),
    (r"wgmma\.fence\.sync\.aligned", "emu::wgmma_fence()"),
    (r"wgmma\.commit_group\.sync\.aligned", "emu::wgmma_commit()"),
    (r"wgmma\.wait_group\.sync\.aligned", "emu::wgmma_wait(%0)"),
    (r"fence\.proxy\.async(?:\.\S+)?", "emu::fence_async()"),
    (rf"mbarrier\.init{_MBAR}", "ptx::mbarrier_init(%*)"),
    (rf"mbarrier\.inval{_MBAR}", "ptx::mbarrier_inval(%*)"),
    (rf"mbarrier\.arrive\.expect_tx{_MBAR}", "ptx::mbarrier_arrive_expect(%*)"),
    (rf"mbarrier\.expect_tx{_MBAR}", "ptx::mbarrier_expect(%*)"),
    (rf"mbarrier\.arrive{_MBAR}", "ptx::mbarrier_arrive(%*)"),
    (rf"mbarrier\.(?:try|test)_wait(?:\.parity)?{_MBAR}", "ptx::mbarrier_try(%*)"),
    # Barriers, fences, hints; only barriers do something, and fences above.
    (
        r"bar\.sync|barrier\.sync(?:\.aligned)?|barrier\.cta\.sync(?:\.aligned)?",
        "ptx::bar_sync(%*)",
    ),
    (
        r"bar\.arrive|barrier\.arrive(?:\.aligned)?|barrier\.cta\.arrive(?:\.aligned)?",
        "emu::barrier_arrive(%*)",
    ),
    (r"bar\.warp\.sync", "__syncwarp(%0)"),
    (r"griddepcontrol\.wait", "emu::waited_for_grid = true"),
    (
        r"griddepcontrol\.launch_dependents|setmaxnreg\..*|fence\..*|membar\..*|prefetch.*"
        r"|cp\.async\.bulk\.prefetch.*",
        "(void)0",
    ),
    (r"nanosleep\.u32", 'emu::poll("nanosleep")'),
    (r"trap", 'emu::fail("trap")'),
    # Warps.
    (r"elect\.sync", "ptx::elect(%*)"),
    (r"shfl\.sync\.(idx|bfly|down|up)\.b32", "ptx::shfl_$1(%*)"),
    (r"vote\.sync\.ballot\.b32", "put(%0, __ballot_sync(%2, %1))"),
    (r"vote\.sync\.any\.pred", "%0 = __any_sync(%2, %1)"),
    (r"vote\.sync\.all\.pred", "%0 = __all_sync(%2, %1)"),
    (r"match\.any\.sync\.b(?:32|64)", "put(%0, __match_any_sync(%2, %1))"),
    (r"activemask\.b32", "put(%0, __activemask())"),
    (r"redux\.sync\.add\.[us]32", "put(%0, emu::reduce(%2, as<uint32_t>(%1), emu::kAdd))"),
    (r"redux\.sync\.min\.u32", "put(%0, emu::reduce(%2, as<uint32_t>(%1), emu::kMin))"),
    (r"redux\.sync\.max\.u32", "put(%0, emu::reduce(%2, as<uint32_t>(%1), emu::kMax))"),
    (r"redux\.sync\.min\.s32", "put(%0, emu::reduce(%2, as<uint32_t>(%1), emu::kMinSigned))"),
    (r"redux\.sync\.max\.s32", "put(%0, emu::reduce(%2, as<uint32_t>(%1), emu::kMaxSigned))"),
    (r"redux\.sync\.and\.b32", "put(%0, emu::reduce(%2, as<uint32_t>(%1), emu::kAnd))"),
    (r"redux\.sync\.or\.b32", "put(%0, emu::reduce(%2, as<uint32_t>(%1), emu::kOr))"),
    (r"redux\.sync\.xor\.b32", "put(%0, emu::reduce(%2, as<uint32_t>(%1), emu::kXor))"),
    # Memory. An access that orders others is one that may be polled.
    (rf"ld\.(?:acquire|relaxed|volatile){_SCOPE}{_SPACE}{_HINTS}{_TYPE}", "ptx::ld_poll<@1>(%*)"),
    (rf"ld{_HINTS}{_SPACE}{_HINTS}{_TYPE}", "ptx::ld1<@1>(%*)"),
    (rf"ld{_HINTS}{_SPACE}{_HINTS}\.v([24]){_TYPE}", "ptx::ld$1<@2>(%*)"),
    (
        rf"st(?:\.(?:release|relaxed|volatile))?{_SCOPE}{_HINTS}{_SPACE}{_HINTS}(?:\.v[24])?{_TYPE}",
        "ptx::st<@1>(%*)",
    ),
    (
        rf"atom(?:\.(?:relaxed|acquire|release|acq_rel))?{_SCOPE}{_SPACE}{_SCOPE}"
        rf"\.(add|min|max|and|or|xor|exch|inc)(?:\.noftz)?{_TYPE}",
        "ptx::atom<@2, #1>(%*)",
    ),
    (
        rf"red(?:\.(?:relaxed|release))?{_SCOPE}{_SPACE}{_SCOPE}"
        rf"\.(add|min|max|and|or|xor|inc)(?:\.noftz)?{_TYPE}",
        "ptx::red<@2, #1>(%*)",
    ),
    (
        rf"atom(?:\.(?:relaxed|acquire|release|acq_rel))?{_SCOPE}{_SPACE}{_SCOPE}\.cas{_TYPE}",
        "ptx::cas<@1>(%*)",
    ),
    (r"cvta\.to\.shared\.u64|cvta\.shared\.u64|cvta\.to\.global\.u64", "put(%0, %1)"),
    # Integers and bits.
    (r"lop3\.b32", "put(%0, lop3(as<uint32_t>(%1), as<uint32_t>(%2), as<uint32_t>(%3), %4))"),
    (r"prmt\.b32", "put(%0, prmt(as<uint32_t>(%1), as<uint32_t>(%2), %3))"),
    (r"shf\.l\.wrap\.b32", "put(%0, shf_left(as<uint32_t>(%1), as<uint32_t>(%2), %3))"),
    (r"shf\.r\.wrap\.b32", "put(%0, shf_right(as<uint32_t>(%1), as<uint32_t>(%2), %3))"),
    (rf"setp\.(eq|ne|lt|le|gt|ge){_TYPE}", "%0 = as<@2>(%1) #1 as<@2>(%2)"),
    (rf"selp{_TYPE}", "put(%0, %3 ? as<@1>(%1) : as<@1>(%2))"),
    # Integers wrap, whatever their sign.
    (r"add\.[us](\d+)", "put(%0, (uint$1_t)(as<uint$1_t>(%1) + as<uint$1_t>(%2)))"),
    (r"sub\.[us](\d+)", "put(%0, (uint$1_t)(as<uint$1_t>(%1) - as<uint$1_t>(%2)))"),
    (r"mul\.lo\.[us](\d+)", "put(%0, (uint$1_t)(as<uint$1_t>(%1) * as<uint$1_t>(%2)))"),
    (
        r"mad\.lo\.[us](\d+)",
        "put(%0, (uint$1_t)(as<uint$1_t>(%1) * as<uint$1_t>(%2) + as<uint$1_t>(%3)))",
    ),
    (r"and\.(b\d+)", "put(%0, (@1)(as<@1>(%1) & as<@1>(%2)))"),
    (r"or\.(b\d+)", "put(%0, (@1)(as<@1>(%1) | as<@1>(%2)))"),
    (r"xor\.(b\d+)", "put(%0, (@1)(as<@1>(%1) ^ as<@1>(%2)))"),
    (r"shl\.(b\d+)", "put(%0, shift_left(as<@1>(%1), as<uint32_t>(%2)))"),
    (r"shr\.([bus]\d+)", "put(%0, shift_right(as<@1>(%1), as<uint32_t>(%2)))"),
    # Floats.
    (r"add(?:\.rn)?(?:\.ftz)?\.(f16|bf16|f32|f64)", "put(%0, as<@1>(%1) + as<@1>(%2))"),
    (r"sub(?:\.rn)?(?:\.ftz)?\.(f16|bf16|f32|f64)", "put(%0, as<@1>(%1) - as<@1>(%2))"),
    (r"mul(?:\.rn)?(?:\.ftz)?\.(f16|bf16|f32|f64)", "put(%0, as<@1>(%1) * as<@1>(%2))"),
    (r"fma\.rn(?:\.ftz)?\.f32", "put(%0, fmaf(as<float>(%1), as<float>(%2), as<float>(%3)))"),
    (r"div\.(?:rn|approx|full)(?:\.ftz)?\.f32", "put(%0, as<float>(%1) / as<float>(%2))"),
    (r"max(?:\.ftz)?\.f32", "put(%0, fmaxf(as<float>(%1), as<float>(%2)))"),
    (r"min(?:\.ftz)?\.f32", "put(%0, fminf(as<float>(%1), as<float>(%2)))"),
    (r"(max|min)\.([us]32)", "put(%0, (@2)::$1(as<@2>(%1), as<@2>(%2)))"),
    (r"ex2\.approx(?:\.ftz)?\.f32", "put(%0, exp2f(as<float>(%1)))"),
    (r"lg2\.approx(?:\.ftz)?\.f32", "put(%0, log2f(as<float>(%1)))"),
    (r"rcp\.(?:approx|rn)(?:\.ftz)?\.f32", "put(%0, 1.0f / as<float>(%1))"),
    (r"rsqrt\.approx(?:\.ftz)?\.f32", "put(%0, 1.0f / sqrtf(as<float>(%1)))"),
    (r"sqrt\.(?:approx|rn)(?:\.ftz)?\.f32", "put(%0, sqrtf(as<float>(%1)))"),
    (r"tanh\.approx\.f32", "put(%0, tanhf(as<float>(%1)))"),
    (r"abs(?:\.ftz)?\.f32", "put(%0, fabsf(as<float>(%1)))"),
    (r"neg(?:\.ftz)?\.f32", "put(%0, -as<float>(%1))"),
    (
        r"(add|sub|mul|fma|max|min)(?:\.rn)?(?:\.ftz)?\.(f16x2|bf16x2)",
        "ptx::pairs<#2>(ptx::$1, %*)",
    ),
    (r"ex2\.approx(?:\.ftz)?\.(f16x2|bf16x2)", "ptx::pairs<#1>(ptx::ex2, %*)"),
    # Conversions.
    (r"cvt\.rn(?:\.satfinite)?(?:\.relu)?\.(f16x2|bf16x2)\.f32", "put(%0, pack<#1>(%1, %2))"),
    (r"cvt\.rn\.satfinite\.e4m3x2\.f32", "put(%0, pack_bytes<4>(as<float>(%1), as<float>(%2)))"),
    (r"cvt\.rn\.satfinite\.e5m2x2\.f32", "put(%0, pack_bytes<5>(as<float>(%1), as<float>(%2)))"),
    (r"cvt\.rn\.f16x2\.e4m3x2", "put(%0, unpack_bytes<4>(as<uint16_t>(%1)))"),
    (r"cvt\.rn\.f16x2\.e5m2x2", "put(%0, unpack_bytes<5>(as<uint16_t>(%1)))"),
    (r"cvt\.rn\.(f16|bf16)\.f32", "put(%0, (@1)as<float>(%1))"),
    (r"cvt\.f32\.(f16|bf16)", "put(%0, (float)as<@1>(%1))"),
    (r"cvt\.rni\.sat\.(s8|u8)\.f32", "%0 = saturate<@1>(as<float>(%1))"),
    (r"cvt\.rni(?:\.ftz)?\.(s32|u32)\.f32", "put(%0, (@1)nearbyintf(as<float>(%1)))"),
    (r"cvt\.rzi(?:\.ftz)?\.(s32|u32)\.f32", "put(%0, (@1)as<float>(%1))"),
    (r"cvt\.rn\.f32\.([us]\d+)", "put(%0, (float)(@1)(%1))"),
    (r"cvt\.([us]\d+)\.([us]\d+)", "put(%0, (@1)(@2)(%1))"),
    (r"mov\.b(?:32|64|128)\.from_parts", "ptx::join(%*)"),
    (r"mov\.b(?:32|64|128)\.to_parts", "ptx::part(%*)"),
    (r"mov\.[busf]\d+|mov\.pred", "ptx::mov(%*)"),
)

_TABLE = [(re.compile(pattern), code) for pattern, code in INSTRUCTIONS]
_PLACE = re.compile(r"([$@#])(\d)|%(\d)|%\*")
# Functions of the namespace ptx that rows call by their bare names.
_OURS = re.compile(
    r"(?<![\w:])(put|as|lop3|prmt|shf_left|shf_right|shift_left|shift_right|pack|saturate"
    r"|pack_bytes|unpack_bytes)(?=[<(])"
)


def find(opcode: str) -> tuple[re.Match[str], str] | None:
    """Return the first row that matches an opcode: the match, and the row's C++."""
    rows = ((pattern.fullmatch(opcode), code) for pattern, code in _TABLE)
    return next(((match, code) for match, code in rows if match), None)


def render(opcode: str, operands: Sequence[Operand], text: str) -> str:
    """Return C++ for one instruction, without a semicolon."""
    flat = [expression for operand in operands for expression in operand]
    # The parts of a mov stand in its operands alone.
    if opcode.startswith("mov.") and len(flat) > 2:
        opcode += ".from_parts" if len(operands[0]) == 1 else ".to_parts"
    if row := find(opcode):
        match, code = row
        try:
            return _fill(_OURS.sub(r"ptx::\1", code), match, flat)
        except IndexError:
            raise BuildError(f"PTX instruction with too few operands: {text}") from None
    words = text.replace("\\", "").replace('"', "'")
    return f'emu::fail("PTX not emulated: %s", "{words}")'


def _fill(code: str, match: re.Match[str], operands: list[str]) -> str:
    def place(found: re.Match[str]) -> str:
        if found[3]:
            return operands[int(found[3])]
        if not found[2]:
            return ", ".join(operands)
        word = match[int(found[2])]
        return {"$": word, "@": CPP_TYPES.get(word, ""), "#": _WORDS.get(word, "")}[found[1]]

    return _PLACE.sub(place, code)
