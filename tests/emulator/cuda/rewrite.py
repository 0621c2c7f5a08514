"""CUDA C++ as TVM prints it, made into C++ for the CPU that the emulated driver can launch."""

from __future__ import annotations

import re
from itertools import count

from tests.emulator.cuda.ptx import replace_asm

_INCLUDE = re.compile(
    r"^\s*#\s*include\s*<(?:cuda|cooperative_groups|mma|math_constants)[\w/]*(?:\.h)?>.*$", re.M
)
_ALIGN = r"(?:(?:alignas|__align__)\((\d+)\)\s*)?"
_DYNAMIC = re.compile(rf"extern\s+__shared__\s+{_ALIGN}([\w ]+?)\s+(\w+)\s*\[\s*\];")
_STATIC = re.compile(rf"__shared__\s+{_ALIGN}([\w ]+?)\s+(\w+)\s*((?:\[[^\]]*\]\s*)*);")
# Statements that all lanes of a warp must execute together.
_ALIGNED = re.compile(
    r"^\s+(?=tvm_builtin_(?:cuda_cta_sync|ptx_(?:mma|ldmatrix|stmatrix|movmatrix|bar|barrier)_\w*)\()",
    re.M,
)
_KERNEL = re.compile(
    r'extern "C" __global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(([^)]*)\)\s*\{'
)


def to_host(source: str) -> str:
    """Return the whole translation unit for the CPU."""
    entries = [_entry(name, parameters) for name, parameters in _KERNEL.findall(source)]
    text = _ALIGNED.sub(r"\g<0>emu::self->site = __LINE__; ", _INCLUDE.sub("", source))
    text = replace_asm(text)
    arrays = count()
    text = _DYNAMIC.sub(
        lambda m: f"{m[2]}* {m[3]} = ({m[2]}*)emu::shared_dynamic({m[1] or 16});", text
    )
    text = _STATIC.sub(
        lambda m: (
            f"{m[2]} (&{m[3]}){m[4]} = *({m[2]} (*){m[4]})emu::shared_array("
            f"{next(arrays)}, sizeof({m[3]}), {m[1] or 16});"
        ),
        text,
    )
    return "\n".join(['#include "cuda.h"', text, *entries])


def _entry(name: str, parameters: str) -> str:
    """Return what the driver calls: a kernel's parameters come as pointers to their values."""
    types = [_type(p) for p in parameters.split(",") if p.strip()]
    arguments = ", ".join(f"*({type_}*)arguments[{i}]" for i, type_ in enumerate(types))
    sizes = ", ".join([*(f"sizeof({type_})" for type_ in types), "-1"])
    return (
        f'extern "C" void emu_entry_{name}(void** arguments) {{ {name}({arguments}); }}\n'
        f'extern "C" const int emu_sizes_{name}[] = {{{sizes}}};'
    )


def _type(parameter: str) -> str:
    words = re.sub(r"\b(?:__restrict__|__grid_constant__|const)\b", " ", parameter)
    return words.strip().rsplit(" ", 1)[0]
