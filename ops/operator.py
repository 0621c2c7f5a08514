"""What an operator tells the rest of Wattune about itself: sizes, tensors, reference, work."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from wattune.errors import ProblemError

Array = NDArray[Any]
Role = Literal["input", "packed", "state", "workspace", "output"]


@dataclass(frozen=True)
class Problem:
    """An operator with its static sizes, dtypes and caller-fixed layouts.

    Fields named in ``runtime`` are run-time sizes: in a problem they name the upper end of the
    bucket that one kernel serves. Kernels serve sizes named in ``open_ended`` beyond the bucket
    too, only slower. ``free`` names sizes of shapes that choose no kernel: a cache's capacity.
    """

    operator: ClassVar[str]
    runtime: ClassVar[tuple[str, ...]] = ()
    open_ended: ClassVar[tuple[str, ...]] = ()
    free: ClassVar[tuple[str, ...]] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain data, with the operator's name."""
        return {"operator": self.operator, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Build a problem from `to_json`'s data; unknown fields are refused."""
        fields = {key: value for key, value in data.items() if key != "operator"}
        allowed = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - allowed):
            raise ProblemError(
                f"{cls.operator} has no field {unknown[0]!r}; allowed: {sorted(allowed)}"
            )
        try:
            return cls(**fields)
        except TypeError as error:
            raise ProblemError(f"{cls.operator}: {error}") from error

    def __str__(self) -> str:
        """Return a short line for people: the sizes, then what differs from the defaults."""
        fields = dataclasses.fields(self)
        sizes = {f.name: getattr(self, f.name) for f in fields if f.default is dataclasses.MISSING}
        plain = {f.name: f.default for f in fields}
        # Sizes may fit no default of another field: a head of 96 in groups of 64.
        with contextlib.suppress(ProblemError):
            plain = dataclasses.asdict(type(self)(**sizes))
        words = [self.operator, "x".join(str(size) for size in sizes.values())]
        for name in (n for n in plain if n not in sizes and getattr(self, n) != plain[n]):
            value = getattr(self, name)
            word = value if isinstance(value, str) else f"{name}={value}"
            if word not in words:
                words.append(word)
        return " ".join(words)

    @property
    def key(self) -> str:
        """Return one canonical line of JSON: equal problems have equal keys."""
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))

    @property
    def sizes(self) -> dict[str, int]:
        """Return the run-time sizes at the upper end of the bucket."""
        return {name: int(getattr(self, name)) for name in self.runtime}

    @property
    def derived(self) -> dict[str, tuple[Extent, ...]]:
        """Return the free sizes that others decide: each is the least of its extents."""
        return {}

    @property
    def extents(self) -> dict[str, int]:
        """Return `sizes` and the free sizes that inputs are made with."""
        return {**self.sizes, **derived_sizes(self.derived, self.sizes)}

    @property
    def static_key(self) -> str:
        """Return the key without the run-time sizes: problems that differ only in the bucket."""
        data = {key: value for key, value in self.to_json().items() if key not in self.runtime}
        return json.dumps(data, sort_keys=True, separators=(",", ":"))

    def shared_data(self) -> str | None:
        """Name the data that several problems read in one layout; None where nothing is shared."""
        return None


@dataclass(frozen=True)
class Limit:
    """A number that depends on a size: ceil(size * times / per) + offset."""

    size: str
    times: int = 1
    per: int = 1
    offset: int = 0

    def at(self, sizes: Mapping[str, int]) -> int:
        """Return the number for these sizes."""
        return -(-sizes[self.size] * self.times // self.per) + self.offset


@dataclass(frozen=True)
class Extent:
    """A size that depends on another: floor((size * times + plus) / per) * each."""

    size: str
    times: int = 1
    plus: int = 0
    per: int = 1
    each: int = 1

    def at(self, sizes: Mapping[str, Any]) -> Any:
        """Return the size for these sizes, which may be torch's symbols."""
        return (sizes[self.size] * self.times + self.plus) // self.per * self.each

    def times_each(self, each: int) -> Extent:
        """Return an extent that is so many times as large."""
        return dataclasses.replace(self, each=self.each * each)


def derived_sizes(
    derived: Mapping[str, tuple[Extent, ...]], sizes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the sizes that follow from ``sizes``."""
    return {name: min(e.at(sizes) for e in extents) for name, extents in derived.items()}


@dataclass(frozen=True)
class Used:
    """Which values of the last axis matter: the first ceil(lengths[i] / per) of row i.

    ``lengths`` names an int32 argument of one value for each index of the leading axis.
    """

    lengths: str
    per: int = 1


@dataclass(frozen=True)
class Values:
    """What integers an argument may hold: ``low`` to ``high``, both included, nor above ``also``.

    ``unique``: none but negative ones may be repeated along the last axis. ``used`` limits the
    check to values that matter. ``maximum`` names the run-time size that the greatest value is.
    """

    low: int
    high: int | Limit
    unique: bool = False
    used: Used | None = None
    maximum: str = ""
    also: Limit | None = None


@dataclass(frozen=True)
class Argument:
    """One tensor of a kernel.

    A name in ``shape`` is a size known later: a run-time or free size of the problem (``tokens``)
    or a size that the layout decides (``weight_bytes``). ``source`` is what a caller packs from; a
    packed argument whose source has its own shape is copied as it is. ``values`` says what
    integers are allowed. ``updated``: a state that the kernel changes; other states are only read.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    role: Role
    source: Argument | None = None
    values: Values | None = None
    updated: bool = False

    def concrete(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape with every name replaced by its size."""
        return tuple(sizes[d] if isinstance(d, str) else d for d in self.shape)

    @property
    def written(self) -> bool:
        """Say whether a call writes to it."""
        return self.updated or self.role in ("workspace", "output")

    @property
    def layout_dependent(self) -> bool:
        """Say whether a pack program, not a copy, makes this argument."""
        return self.source is not None and self.source.shape != self.shape


@dataclass(frozen=True)
class Work:
    """What a problem costs at least: ``operations`` and the ``bytes`` that must move.

    ``integer``: the operations are those of integers, so a machine's integer peak bounds them.
    """

    operations: int
    bytes: int
    integer: bool = False


@dataclass(frozen=True)
class Tolerance:
    """How far a kernel may be from the reference, and why."""

    rtol: float
    atol: float
    reason: str


P = TypeVar("P", bound=Problem)


class Operator(ABC, Generic[P]):
    """What is computed; everything else about a kernel is derived from this object."""

    name: ClassVar[str]
    summary: ClassVar[str]
    problem: type[P]

    @property
    @abstractmethod
    def signature(self) -> tuple[str, ...]:
        """Name every argument in calling order; a problem uses a subset in this order."""

    @abstractmethod
    def arguments(self, problem: P) -> tuple[Argument, ...]:
        """Describe every tensor of the kernel, in calling order."""

    @abstractmethod
    def make_inputs(self, problem: P, rng: np.random.Generator) -> dict[str, Array]:
        """Draw inputs and pack sources for the problem at its bucket's upper end."""

    def verification_inputs(self, problem: P, rng: np.random.Generator) -> dict[str, Array]:
        """Draw inputs that kernels get wrong: ragged, empty, poison in what must not be read."""
        return self.make_inputs(problem, rng)

    def timing_inputs(self, problem: P, rng: np.random.Generator) -> dict[str, Array]:
        """Draw inputs for timing, where packed data and states are views of a pool.

        A subclass whose states take longer to draw than a kernel to time leaves them out.
        """
        drawn = self.make_inputs(problem, rng)
        return {a.name: drawn[a.name] for a in self.arguments(problem) if a.role == "input"}

    @abstractmethod
    def reference(self, problem: P, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute outputs and updated states in numpy: integers exactly, floats in float64."""

    @abstractmethod
    def work(self, problem: P) -> Work:
        """Count operations and the bytes that must move."""

    @abstractmethod
    def tolerance(self, problem: P, output: str) -> Tolerance:
        """Return how far an output may be from the reference."""

    @abstractmethod
    def parse_shape(self, text: str, **fields: Any) -> P:
        """Read the shape notation of ``wattune bench``."""

    def random_bytes(self, problem: P, argument: str, count: int, seed: int) -> NDArray[np.uint8]:
        """Draw valid bytes for a packed or state argument, in whatever layout."""
        rng = np.random.default_rng(seed)
        return rng.integers(0, 256, count, dtype=np.uint8)

    def packed_share(self, problem: P) -> float:
        """Return the share of its packed data that a call reads: of experts, those chosen."""
        return 1.0

    def formats(self) -> dict[str, float]:
        """Return the formats of the operator's packed data and their bits per value."""
        return {}

    def examples(self) -> tuple[P, ...]:
        """Return typical problems, a small and a large one, for listings."""
        return ()

    def extra_layout_facts(self, problem: P) -> dict[str, Any]:
        """Return facts of the problem that belong in a library's manifest."""
        return {}
