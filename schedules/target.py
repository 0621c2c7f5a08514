"""Targets: what a kernel is compiled for, as plain data."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from wattune.errors import TargetError, UnknownNameError

# Feature names are those of /proc/cpuinfo with the underscores of CPUID manuals removed where
# LLVM does so: the value is LLVM's attribute.
CPU_FEATURES = {
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "bmi2": "bmi2",
    "avx_vnni": "avxvnni",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512vl": "avx512vl",
    "avx512dq": "avx512dq",
    "avx512cd": "avx512cd",
    "avx512_vnni": "avx512vnni",
    "avx512vbmi": "avx512vbmi",
    "avx512_vbmi2": "avx512vbmi2",
    "avx512_bf16": "avx512bf16",
    "avx512_fp16": "avx512fp16",
    "gfni": "gfni",
    "amx_tile": "amx-tile",
    "amx_int8": "amx-int8",
    "amx_bf16": "amx-bf16",
}

# Named feature sets for `Target.parse("cpu:NAME")`: what a class of machines is sure to have.
_AVX2 = ("avx2", "bmi2", "f16c", "fma")
_AVX512 = (*_AVX2, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
_VNNI = (*_AVX512, "avx512_vnni", "avx512_vbmi2", "avx512vbmi", "gfni")
CPU_PROFILES: dict[str, tuple[str, ...]] = {
    "generic": (),
    "avx2": _AVX2,
    "avx512": _AVX512,
    "vnni": _VNNI,
    "amx": (*_VNNI, "amx_bf16", "amx_int8", "amx_tile", "avx512_bf16", "avx512_fp16"),
}


def _gpu(device: str, cores: int, shared: int, cache: int, memory: int) -> dict[str, Any]:
    sizes = {"l1": shared, "l2": cache, "l3": cache, "memory": memory}
    return {"device": device, "cores": cores, "threads": cores, **sizes}


# GPUs that `Target.parse("cuda:ARCH")` describes: one of each architecture, by public figures.
# l1 is the shared memory a block may use, l2 and l3 the cache of the whole device.
GPUS: dict[str, dict[str, Any]] = {
    "sm_80": _gpu("NVIDIA A100", 108, 163 << 10, 40 << 20, 80 << 30),
    "sm_86": _gpu("NVIDIA A10", 72, 99 << 10, 6 << 20, 24 << 30),
    "sm_89": _gpu("NVIDIA L40S", 142, 99 << 10, 96 << 20, 48 << 30),
    "sm_90a": _gpu("NVIDIA H200", 132, 227 << 10, 60 << 20, 141 << 30),
}


@dataclass(frozen=True)
class Target:
    """A device to compile for.

    ``features`` are instruction-set flags (CPU) or empty; ``arch`` is the machine (``x86_64``,
    ``sm_90a``). ``cores`` counts cores (CPU) or SMs (CUDA); ``threads`` is how many of them a
    kernel uses. Cache and memory sizes are in bytes; ``l1`` and ``l2`` are per core on CPUs; on
    GPUs ``l1`` is the shared memory a block may use, and ``l2`` and ``l3`` are both the cache of
    the device.
    """

    kind: str
    arch: str
    features: tuple[str, ...] = ()
    cores: int = 1
    threads: int = 1
    l1: int = 32 << 10
    l2: int = 1 << 20
    l3: int = 16 << 20
    memory: int = 8 << 30
    device: str = ""

    def __post_init__(self) -> None:
        """Check the fields and put the features in order."""
        if self.kind not in ("cpu", "cuda"):
            raise UnknownNameError("target kind", self.kind, ("cpu", "cuda"))
        object.__setattr__(self, "features", tuple(sorted(self.features)))
        for name in ("cores", "threads", "l1", "l2", "l3", "memory"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise TargetError(f"target: {name} is {value!r}; allowed: an integer >= 1")
        if self.kind == "cpu" and self.threads > self.cores:
            raise TargetError(
                f"target: threads is {self.threads}; allowed: 1 to {self.cores}, the cores"
            )

    def has(self, *features: str) -> bool:
        """Say whether the target has all these features."""
        return set(features) <= set(self.features)

    def with_threads(self, threads: int) -> Target:
        """Return the same target with another number of threads."""
        return dataclasses.replace(self, threads=threads)

    @property
    def host_threads(self) -> int:
        """Return how many of the host's cores a kernel keeps busy: one launches on a GPU."""
        return self.threads if self.kind == "cpu" else 1

    @classmethod
    def native(cls, threads: int | None = None) -> Self:
        """Describe the machine this runs on, from its CPUID flags; all cores unless told."""
        from wattune.schedules.host import host_fields

        fields = host_fields()
        fields["threads"] = fields["cores"] if threads is None else threads
        return cls(**fields)

    @classmethod
    def native_gpu(cls) -> Self:
        """Describe the first GPU of this machine; `DeviceError` where there is none."""
        from wattune.schedules.nvidia import gpu_fields

        fields = gpu_fields()
        # One of those that `parse` knows by name is that one: records of both go together.
        known = GPUS.get(fields["arch"], {})
        if all(known.get(name) == fields[name] for name in ("device", "cores")):
            fields.update(known)
        return cls(**fields)

    @classmethod
    def parse(cls, text: str, threads: int | None = None) -> Self:
        """Read ``native``, ``cuda``, ``cpu:PROFILE``, ``cuda:ARCH`` or a JSON file's path."""
        if text == "native":
            return cls.native(threads)
        if text == "cuda":
            return cls.native_gpu()
        kind, _, rest = text.partition(":")
        if text.endswith(".json"):
            target = cls.from_json(text)
            return target if threads is None else dataclasses.replace(target, threads=threads)
        if kind == "cpu" and rest in CPU_PROFILES:
            count = threads or 1
            return cls(
                kind="cpu",
                arch=platform.machine() if rest == "generic" else "x86_64",
                features=CPU_PROFILES[rest],
                cores=max(count, os.cpu_count() or 1),
                threads=count,
            )
        if kind == "cuda" and rest in GPUS:
            return cls(kind="cuda", arch=rest, **GPUS[rest])
        allowed = ["native", "cuda", *(f"cuda:{n}" for n in GPUS), "a path ending in .json"]
        raise UnknownNameError("target", text, [*allowed, *(f"cpu:{n}" for n in CPU_PROFILES)])

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        data = dataclasses.asdict(self)
        data["features"] = list(self.features)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | str | Path) -> Self:
        """Build a target from `to_json`'s data, or from a file that holds it."""
        if isinstance(data, str | Path):
            try:
                data = json.loads(Path(data).read_text())
            except (OSError, ValueError) as error:
                raise TargetError(f"target file {data}: {error}") from error
        if not isinstance(data, Mapping):
            raise TargetError(f"a target is a JSON object, not {data!r}")
        allowed = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - allowed):
            raise TargetError(f"target has no field {unknown[0]!r}; allowed: {sorted(allowed)}")
        try:
            return cls(**{**data, "features": tuple(data.get("features", ()))})
        except TypeError as error:
            raise TargetError(f"target: {error}") from error

    # Asked for with every prediction; a target never changes.
    @cached_property
    def key(self) -> str:
        """Return one canonical line of JSON."""
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))

    def runs_here(self) -> bool:
        """Say whether this machine has everything the target asks for."""
        return not self.lacking()

    def lacking(self) -> str:
        """Say what the target asks for and this machine has not; empty where it runs."""
        if self.kind == "cuda":
            from wattune.schedules.nvidia import gpu_lacking

            return gpu_lacking(self.arch)
        here = Target.native()
        if self.arch != here.arch:
            return f"it is {self.kind} {self.arch}, this machine is {here.kind} {here.arch}"
        if missing := sorted(set(self.features) - set(here.features)):
            return f"this CPU has no {', '.join(missing)}"
        if self.threads > here.cores:
            return f"it uses {self.threads} threads, this machine has {here.cores} cores"
        return ""

    def llvm(self) -> dict[str, Any]:
        """Return TVM's target for this CPU, or for the host of this GPU.

        The scheduling model stays generic: virtual machines report wrong CPU names, flags are
        right. ``x86-64-v4`` is avoided because its tuning prefers 256-bit vectors.
        """
        if self.kind != "cpu":
            # What every machine with such a device runs.
            return {"kind": "llvm"} | ({"mcpu": "x86-64-v2"} if _host_is_x86() else {})
        if self.arch != "x86_64":
            return {"kind": "llvm", "num-cores": self.cores}
        mcpu = "x86-64-v3" if self.has(*_AVX2) else "x86-64"
        attributes = [f"+{CPU_FEATURES[f]}" for f in self.features if f in CPU_FEATURES]
        return {"kind": "llvm", "mcpu": mcpu, "mattr": attributes, "num-cores": self.cores}

    def cuda(self) -> dict[str, Any]:
        """Return TVM's target for this GPU; nothing in it is asked of a device."""
        if self.kind != "cuda":
            raise TargetError(f"target kind is {self.kind!r}; device code is made for 'cuda' only")
        return {
            "kind": "cuda",
            "arch": self.arch,
            "max_threads_per_block": 1024,
            "thread_warp_size": 32,
            "max_shared_memory_per_block": self.l1,
            "registers_per_block": 65536,
            "l2_cache_size_bytes": self.l3,
        }


def _host_is_x86() -> bool:
    return platform.machine() == "x86_64"
