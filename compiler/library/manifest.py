"""The manifest: what a library holds, inside it and beside it as JSON.

Everything that calls a library in Python is derived from it: no caller knows an operator.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wattune.errors import LibraryError
from wattune.ops.operator import Argument, Extent, Limit, Used, Values

FORMAT = "wattune.library"
# Counts changes of the entries' arguments or of the manifest that an older loader cannot read.
ABI_VERSION = 4

# Checks of values that can be switched off, in the order of their bits in runtime.h.
CHECKS = ("ranges", "duplicates")


@dataclass(frozen=True)
class Kernel:
    """A kernel: serves run-time sizes in (``lower``, ``upper``].

    ``sizes`` are what its schedule decides (bytes of the workspace). ``seconds`` is the median
    latency measured at ``upper``, None where it was not measured.
    """

    symbol: str
    lower: dict[str, int]
    upper: dict[str, int]
    sizes: dict[str, int]
    template: str
    knobs: dict[str, Any]
    verified: bool
    seconds: float | None = None


@dataclass(frozen=True)
class Variant:
    """The kernels of problems that differ only in the bucket.

    ``entry`` is the function for this variant alone. ``problem`` holds the static fields; ``data``
    names the packed data that variants share. ``derived``: sizes that others decide.
    """

    entry: str
    problem: dict[str, Any]
    data: str
    layout: str
    arguments: tuple[Argument, ...]
    kernels: tuple[Kernel, ...]
    derived: dict[str, tuple[Extent, ...]] = field(default_factory=dict)

    def argument(self, name: str) -> Argument | None:
        """Return the argument of this name, None where the variant takes none."""
        return next((a for a in self.arguments if a.name == name), None)

    def names(self, role: str) -> tuple[str, ...]:
        """Name the arguments of a role, in calling order."""
        return tuple(a.name for a in self.arguments if a.role == role)


@dataclass(frozen=True)
class Pack:
    """A pack program: brings ``argument.source`` into a layout; all sizes are numbers."""

    symbol: str
    argument: Argument
    layout: str


@dataclass(frozen=True)
class OperatorTable:
    """What a library holds of one operator.

    ``runtime`` names the run-time sizes; kernels serve those in ``open_ended`` beyond their upper
    ends too. ``free`` names sizes that choose no kernel. ``fields`` are the static fields and
    their types.
    """

    name: str
    signature: tuple[str, ...]
    runtime: tuple[str, ...]
    open_ended: tuple[str, ...]
    free: tuple[str, ...]
    fields: dict[str, str]
    variants: tuple[Variant, ...]
    packs: tuple[Pack, ...]

    @property
    def symbols(self) -> tuple[str, ...]:
        """Name the sizes that calls bring: those that choose the kernel first."""
        return (*self.runtime, *self.free)

    @property
    def measured(self) -> tuple[str, ...]:
        """Name the sizes that no shape says: they are the greatest values of some argument."""
        arguments = [a for variant in self.variants for a in variant.arguments]
        found = {a.values.maximum for a in arguments if a.values is not None}
        return tuple(name for name in self.runtime if name in found)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Name the outputs of any variant, of this library or another: they end the signature."""
        known = {name for variant in self.variants for name in variant.names("output")}
        starts = [i for i, name in enumerate(self.signature) if name in known]
        return self.signature[starts[0] :] if starts else ()


@dataclass(frozen=True)
class Manifest:
    """What a library holds. ``created`` is in seconds since 1970.

    ``archs``: the GPUs that it has code for, the target's first; empty where kernels are CPU code.
    """

    wattune: str
    target: dict[str, Any]
    verified: bool
    created: float
    operators: tuple[OperatorTable, ...]
    archs: tuple[str, ...] = ()
    abi: int = ABI_VERSION
    format: str = FORMAT

    @property
    def kind(self) -> str:
        """Return the kind of the target: ``cpu`` or ``cuda``."""
        return str(self.target["kind"])

    def bounded(self, table: OperatorTable) -> tuple[str, ...]:
        """Name the sizes that the host cannot read: entries take the most that each may be."""
        return table.measured if self.kind != "cpu" else ()

    def to_json(self) -> str:
        """Return the text of ``kernels.json``."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> Manifest:
        """Read `to_json`'s text; ``source`` is the library that errors name."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise LibraryError(f"{source}: its manifest is not JSON: {error}") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise LibraryError(f"{source} is not a wattune library: its manifest says so nowhere")
        if data.get("abi") != ABI_VERSION:
            raise LibraryError(
                f"{source} has ABI version {data.get('abi')}, made by wattune "
                f"{data.get('wattune')}; this wattune reads version {ABI_VERSION}: export the "
                "library again with this wattune, or install the one that made it"
            )
        try:
            return cls(
                **{
                    **data,
                    "operators": tuple(_operator(entry) for entry in data["operators"]),
                    "archs": tuple(data["archs"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise LibraryError(f"{source}: its manifest is damaged: {error!r}") from error


def _operator(data: Mapping[str, Any]) -> OperatorTable:
    return OperatorTable(
        name=data["name"],
        signature=tuple(data["signature"]),
        runtime=tuple(data["runtime"]),
        open_ended=tuple(data["open_ended"]),
        free=tuple(data["free"]),
        fields=data["fields"],
        variants=tuple(_variant(entry) for entry in data["variants"]),
        packs=tuple(
            Pack(entry["symbol"], _argument(entry["argument"]), entry["layout"])
            for entry in data["packs"]
        ),
    )


def _variant(data: Mapping[str, Any]) -> Variant:
    return Variant(
        entry=data["entry"],
        problem=data["problem"],
        data=data["data"],
        layout=data["layout"],
        arguments=tuple(_argument(entry) for entry in data["arguments"]),
        kernels=tuple(Kernel(**entry) for entry in data["kernels"]),
        derived={
            name: tuple(Extent(**entry) for entry in extents)
            for name, extents in data["derived"].items()
        },
    )


def _argument(data: Mapping[str, Any]) -> Argument:
    source, values = data["source"], data["values"]
    return Argument(
        name=data["name"],
        shape=tuple(data["shape"]),
        dtype=data["dtype"],
        role=data["role"],
        source=None if source is None else _argument(source),
        values=None if values is None else _values(values),
        updated=data["updated"],
    )


def _values(data: Mapping[str, Any]) -> Values:
    high, also, used = data["high"], data.get("also"), data["used"]
    return Values(
        low=data["low"],
        high=Limit(**high) if isinstance(high, Mapping) else high,
        unique=data["unique"],
        used=None if used is None else Used(**used),
        maximum=data["maximum"],
        also=None if also is None else Limit(**also),
    )
