"""Machine code of GPUs in words: which instructions a kernel is made of."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from wattune.compiler.cc import last_lines
from wattune.compiler.cuda.toolkit import packaged, tools
from wattune.errors import BuildError

# What is counted: opcode and the modifiers that it must have.
INSTRUCTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "LDGSTS.128": ("LDGSTS", ("128",)),
    "LDGSTS": ("LDGSTS", ()),
    "LDG.128": ("LDG", ("128",)),
    "LDG": ("LDG", ()),
    "UBLKCP": ("UBLKCP", ()),
    "UTMALDG": ("UTMALDG", ()),
    "HMMA": ("HMMA", ()),
    "HGMMA": ("HGMMA", ()),
    "IMMA": ("IMMA", ()),
    "LDSM": ("LDSM", ()),
    "STSM": ("STSM", ()),
    "LDS": ("LDS", ()),
    "STS": ("STS", ()),
    "LDL": ("LDL", ()),
    "STL": ("STL", ()),
    "SHFL": ("SHFL", ()),
    "BAR": ("BAR", ()),
    "MUFU.EX2": ("MUFU", ("EX2",)),
    "FFMA": ("FFMA", ()),
    "LOP3": ("LOP3", ()),
    "HFMA2": ("HFMA2", ()),
}
TOTAL = "instructions"

_SECTION = re.compile(r"^\.text\.(\w+?)(?:_kernel)?:", re.MULTILINE)
# An address, perhaps a predicate, the opcode.
_LINE = re.compile(
    r"^\s*/\*[0-9a-f]{4,}\*/\s+\{?\s*(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.x]+)", re.MULTILINE
)
# The end of a kernel is filled with these.
_FILLING = ("NOP",)
_LABEL = re.compile(r"^(\.L_x_\d+):", re.MULTILINE)
_BRANCH = re.compile(r"\bBRA\b.*`\((\.L_x_\d+)\)")
_LOCAL = ("LDL", "STL")
# What a loop's instructions count, for each loop around them: nobody knows how often it turns.
_TURNS = 16


@cache
def disassembler() -> Path | None:
    """Return nvdisasm: a toolkit's, its package's or triton's; None where there is none."""
    found = next(tools("nvdisasm", "nvidia-cuda-nvdisasm"), None)
    return found or next(packaged("triton", "nvdisasm"), None)


def tool_version(tool: Path) -> str:
    """Return the release of a disassembler."""
    done = subprocess.run([str(tool), "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"V(\d+\.\d+\.\d+)", done.stdout)
    return found[1] if found else "unknown"


def opcodes(cubin: bytes) -> dict[str, Counter[str]]:
    """Count the opcodes, with modifiers, of each kernel in a cubin (not in a fat binary).

    Raises `BuildError` where nvdisasm does not understand it.
    """
    return opcodes_of(_disassemble(cubin))


def opcodes_of(text: str) -> dict[str, Counter[str]]:
    """Count the opcodes of each kernel in what nvdisasm prints."""
    parts = _SECTION.split(text)
    return {
        kernel: Counter(code for code in _LINE.findall(body) if code not in _FILLING)
        for kernel, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def local_shares(text: str) -> dict[str, float]:
    """Return, for each kernel in what nvdisasm prints, the share of accesses to local memory.

    Of what is executed, a loop taken to turn 16 times: a loop is what lies between a label and the
    last branch back to it.
    """
    parts = _SECTION.split(text)
    return {k: _local_share(body) for k, body in zip(parts[1::2], parts[2::2], strict=True)}


def _local_share(body: str) -> float:
    """Return the share of one kernel."""
    loops = _loops(body)
    executed = {"local": 0.0, "all": 0.0}
    for match in _LINE.finditer(body):
        turns = _TURNS ** sum(begin < match.start() <= end for begin, end in loops)
        executed["all"] += turns
        executed["local"] += turns * (match[1].split(".")[0] in _LOCAL)
    return executed["local"] / max(1.0, executed["all"])


def _loops(body: str) -> list[tuple[int, int]]:
    """Return where the loops of a kernel's text begin and end."""
    lines = [match.start() for match in _LINE.finditer(body)]
    labels = {match[1]: match.start() for match in _LABEL.finditer(body)}
    loops: dict[str, tuple[int, int]] = {}
    for match in _BRANCH.finditer(body):
        begin, end = labels.get(match[1], match.start()), match.start()
        # A kernel is followed by a branch to itself, which is never executed.
        if sum(begin < at <= end for at in lines) > 1:
            loops[match[1]] = begin, end
    return list(loops.values())


def main_loops(cubin: bytes, base: str) -> dict[str, Counter[str]]:
    """Count the opcodes of each kernel's main loop; kernels without one are left out.

    That is the smallest of the loops with the most instructions of a kind (``HMMA``).
    """
    return main_loops_of(_disassemble(cubin), base)


def main_loops_of(text: str, base: str) -> dict[str, Counter[str]]:
    """Count the opcodes of main loops in what nvdisasm prints."""
    parts, found = _SECTION.split(text), dict[str, Counter[str]]()
    for kernel, body in zip(parts[1::2], parts[2::2], strict=True):
        codes = [(match.start(), match[1]) for match in _LINE.finditer(body)]
        loops = [Counter(c for at, c in codes if b < at <= e) for b, e in _loops(body)]
        counted = [(sum(n for c, n in o.items() if c.split(".")[0] == base), o) for o in loops]
        if any(count for count, _ in counted):
            found[kernel] = max(counted, key=lambda pair: (pair[0], -pair[1].total()))[1]
    return found


def mix(counts: Mapping[str, int]) -> dict[str, int]:
    """Return how many of `INSTRUCTIONS` there are, those there are none of left out; and all."""
    found = {TOTAL: sum(counts.values())}
    for opcode, count in counts.items():
        base, *modifiers = opcode.split(".")
        for name, (wanted, needed) in INSTRUCTIONS.items():
            if base == wanted and set(needed) <= set(modifiers):
                found[name] = found.get(name, 0) + count
    return found


def mix_facts(cubin: bytes) -> dict[str, float]:
    """Return ``<kernel>.sass.<instruction>`` for each kernel; nothing without a disassembler.

    And ``<kernel>.local_share``, of `local_shares`, where a kernel uses local memory.
    """
    if disassembler() is None:
        return {}
    text = _disassemble(cubin)
    facts = {
        f"{kernel}.sass.{name}": float(count)
        for kernel, counts in opcodes_of(text).items()
        for name, count in mix(counts).items()
    }
    shares = {f"{kernel}.local_share": share for kernel, share in local_shares(text).items()}
    return facts | {name: share for name, share in shares.items() if share}


def _disassemble(cubin: bytes) -> str:
    tool = disassembler()
    assert tool is not None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        # Without the analysis of data flow, which takes most of the time.
        command = [str(tool), "-c", "-ndf", file.name]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False
        )
    if done.returncode:
        raise BuildError(f"nvdisasm: {last_lines(done.stderr or done.stdout)}")
    return done.stdout
