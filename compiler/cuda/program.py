"""From a GPU program to objects: its machine code, and the launcher all programs share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

from wattune.compiler.cc import cached
from wattune.compiler.cuda import device_code
from wattune.compiler.cuda.image import LIBRARY, image_object
from wattune.compiler.cuda.sass import mix_facts
from wattune.compiler.cuda.source import device_source, parameter_orders
from wattune.errors import BuildError
from wattune.schedules.cuda.occupancy import blocks_per_sm
from wattune.schedules.cuda.program import GpuProgram
from wattune.schedules.target import Target

_LAUNCHER = ("gpu.c", "gpu_driver.c")
LIMITS_IMAGE = "limits.image"
LIMITS_SOURCE = LIBRARY.parent / "measure" / "gpu_limits.cu"


def build_gpu(
    name: str, program: GpuProgram, target: Target, path: Path, also: Sequence[str] = ()
) -> dict[str, float]:
    """Compile a program's kernels and its entry ``__tvm_ffi_<name>`` into an object.

    ``also`` names other architectures that get machine code of the same source. Returns
    `code_facts`.
    """
    source = device_source(program, target)
    orders = parameter_orders(program, source)
    try:
        image = device_code.compile_image(source.text, [target.arch, *also], program.registers)
    except BuildError as error:
        if not also:
            raise
        raise BuildError(
            f"{name}: its code for {target.arch} does not compile for {', '.join(also)} too; "
            f"compile a library for each, load() takes a list ({error})"
        ) from error
    passed = {kernel: len(names) for kernel, names in program.passed.items()}
    image_object(name, image, passed, orders, ffi_includes(), path)
    return code_facts(program, image)


def compile_facts(program: GpuProgram, target: Target) -> dict[str, float]:
    """Compile a program's kernels for nothing but `code_facts`."""
    text = device_source(program, target).text
    image = device_code.compile_image(text, [target.arch], program.registers)
    return code_facts(program, image)


def code_facts(program: GpuProgram, image: device_code.Image) -> dict[str, float]:
    """Return facts of machine code, for each kernel as ``<kernel>.<fact>``.

    `usage_facts`, `block_facts`, and of a single architecture what `sass.mix_facts` counts.
    """
    facts = {**usage_facts(image), **block_facts(program, image)}
    single = len(image.archs) == 1 and image.usage
    return {**facts, **mix_facts(image.data)} if single else facts


def usage_facts(image: device_code.Image) -> dict[str, float]:
    """Return the usage of every kernel by name, and the worst of each kind."""
    facts: dict[str, float] = {"image_bytes": float(len(image.data))}
    for (kernel, _), usage in image.usage.items():
        for fact, value in asdict(usage).items():
            facts[f"{kernel}.{fact}"] = float(value)
            facts[fact] = max(facts.get(fact, 0.0), float(value))
    return facts


def block_facts(program: GpuProgram, image: device_code.Image) -> dict[str, float]:
    """Return, for each kernel, what a block takes and how many of them an SM holds at once."""
    arch, facts = image.archs[0], dict[str, float]()
    for kernel, block in program.blocks.items():
        used = image.usage.get((kernel, arch), device_code.NOTHING_KNOWN)
        fits = blocks_per_sm(arch, block.threads, used.registers, used.shared + block.shared)
        facts[f"{kernel}.threads"] = float(block.threads)
        facts[f"{kernel}.dynamic_shared"] = float(block.shared)
        if fits is not None:
            facts[f"{kernel}.blocks_per_sm"] = float(fits)
    return facts


def limits_image(target: Target, folder: Path) -> Path:
    """Compile the kernel that measures a device's limits into a file of the folder."""
    path = folder / LIMITS_IMAGE
    path.write_bytes(device_code.compile_image(LIMITS_SOURCE.read_text(), [target.arch]).data)
    return path


def gpu_launcher() -> list[Path]:
    """Return the objects of the launcher, compiled at first use."""
    # `cached` digests the source file; the headers it includes go in as a flag.
    headers = b"".join((LIBRARY / name).read_bytes() for name in ("gpu.h", "gpu_driver.h"))
    digest = hashlib.sha256(headers).hexdigest()[:8]
    flags = ("-std=gnu11", "-fvisibility=hidden", "-Wall", "-Wextra", f"-DWT_HEADER_{digest}")
    return [cached(LIBRARY / n, (*flags, *ffi_includes()), ".o") for n in _LAUNCHER]


@cache
def ffi_includes() -> tuple[str, ...]:
    """Return the compiler's flags that find tvm-ffi's C headers."""
    from tvm_ffi import libinfo

    folders = (libinfo.find_include_path(), libinfo.find_dlpack_include_path())
    return tuple(f"-I{folder}" for folder in folders)
