"""Calls to verify and time: inputs, their packed forms, outputs full of poison."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from wattune.compiler.measure.ffi import Call, Library
from wattune.compiler.measure.memory import Guarded, state_bytes
from wattune.compiler.measure.place import Host, Place, Watched
from wattune.errors import MeasureError
from wattune.ops import Argument, Problem, operator
from wattune.ops.dtypes import itemsize, numpy_dtype
from wattune.ops.operator import Array
from wattune.schedules.program import CACHE_LINE, alignment

# Inputs of one problem may take gigabytes (caches of long contexts); two cases of it must fit.
CACHE_BYTES = max(512 << 20, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8)
_INTEGER_POISON = 0x5A

T = TypeVar("T")
P = TypeVar("P", bound=Problem)


class Recent(Generic[T]):
    """The most recently used values, up to a number of bytes; always at least the last one."""

    def __init__(self, capacity: int) -> None:
        """Start empty."""
        self._capacity = capacity
        self._values: OrderedDict[Any, tuple[T, int]] = OrderedDict()

    def get(self, key: Any, make: Callable[[], tuple[T, int]]) -> T:
        """Return a kept value, or make it: a value and its bytes."""
        if key not in self._values:
            self._values[key] = make()
        self._values.move_to_end(key)
        while sum(s for _, s in self._values.values()) > self._capacity and len(self._values) > 1:
            self._values.popitem(last=False)
        return self._values[key][0]


@dataclass
class Tensor:
    """Watched memory of one argument, and what a call must leave in it, if anything."""

    memory: Watched
    kept: Array | None = None

    def fill(self, values: Array) -> None:
        """Copy values in, as bytes."""
        self.memory.write(as_bytes(values))

    def unchanged(self) -> bool:
        """Say whether the memory still holds what was kept."""
        return self.kept is None or np.array_equal(self.memory.read(), as_bytes(self.kept))


@dataclass
class Case:
    """Inputs of one problem and what the reference makes of them."""

    problem: Problem
    values: dict[str, Array]
    expected: dict[str, Array]
    inputs: dict[tuple[str, bool], Tensor] = field(default_factory=dict)
    _digests: dict[str, str] = field(default_factory=dict)

    def digest(self, name: str) -> str:
        """Digest an input: equal sources are packed once."""
        if name not in self._digests:
            data = as_bytes(self.values[name])
            self._digests[name] = hashlib.blake2b(data.data, digest_size=16).hexdigest()
        return self._digests[name]


@dataclass
class Bound:
    """A call with all its tensors: ready to run again and again."""

    case: Case
    arguments: tuple[Argument, ...]
    tensors: dict[str, Tensor]
    call: Call

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every tensor."""
        return {name: tensor.memory.size for name, tensor in self.tensors.items()}


class Binder:
    """Lays out calls; keeps inputs, references and packed data, which many candidates share."""

    def __init__(self, seed: int, kind: str = "cpu", place: Place | None = None) -> None:
        """Draw all inputs from one seed; ``kind`` is that of the target, ``place`` its memory."""
        self._seed = seed
        self._kind = kind
        self.place: Place = place or Host()
        self._cases: Recent[Case] = Recent(CACHE_BYTES)
        self._packed: Recent[Tensor] = Recent(CACHE_BYTES)

    def bind(
        self, problem: Problem, pack: str | None, sizes: Mapping[str, int], tight: bool = False
    ) -> Bound:
        """Lay out every argument of a problem in watched memory, outputs poisoned.

        ``sizes`` are those that the schedule decides. ``tight`` takes the inputs that kernels get
        wrong, and puts inputs and outputs where only what callers guarantee holds: aligned to an
        element, the end of the memory right behind.
        """
        case = self._case(problem, tight)
        arguments = operator(problem.operator).arguments(problem)
        known = {**problem.extents, **sizes}
        tensors = {a.name: self._tensor(case, a, a.concrete(known), pack, tight) for a in arguments}
        call = Call(
            [(tensors[a.name].memory.address, a.dtype, a.concrete(known)) for a in arguments]
        )
        return Bound(case, arguments, tensors, call)

    def _case(self, problem: Problem, hard: bool) -> Case:
        def make() -> tuple[Case, int]:
            op = operator(problem.operator)
            draw = op.verification_inputs if hard else op.make_inputs
            values = draw(problem, np.random.default_rng(self._seed))
            case = Case(problem, values, op.reference(problem, values))
            # Twice: inputs are copied into watched memory.
            return case, 2 * sum(a.nbytes for a in (*values.values(), *case.expected.values()))

        return self._cases.get((problem.key, hard), make)

    def _tensor(
        self, case: Case, argument: Argument, shape: tuple[int, ...], pack: str | None, tight: bool
    ) -> Tensor:
        size = itemsize(argument.dtype) * int(np.prod(shape, dtype=np.int64))
        if argument.role == "packed" and argument.layout_dependent:
            return self._pack(case, argument, shape, size, pack)
        source = argument.source or argument
        aligned = alignment(argument, self._kind) if tight else CACHE_LINE
        if not argument.written:
            key = (source.name, tight)
            if key not in case.inputs:
                case.inputs[key] = watched(case.values[source.name], aligned, self.place)
            return case.inputs[key]
        tensor = Tensor(self.place.watched(size, True, aligned))
        if argument.role == "state":
            tensor.fill(case.values[source.name])
        else:
            tensor.fill(poison(argument.dtype, size))
        return tensor

    def _pack(
        self, case: Case, argument: Argument, shape: tuple[int, ...], size: int, pack: str | None
    ) -> Tensor:
        """Return the packed form of a source, made by the layout's pack program."""
        source = argument.source
        assert source is not None
        if pack is None:
            raise MeasureError("wrong_result", f"no pack program makes {argument.name}")

        def make() -> tuple[Tensor, int]:
            values = case.values[source.name]
            packed = run_pack(pack, argument, values, shape, size)
            # Kernels read it from memory that ends where the data ends.
            return watched(packed, place=self.place), 2 * size

        return self._packed.get((pack, argument.name, case.digest(source.name), size), make)


def run_pack(
    pack: str, argument: Argument, values: Array, shape: tuple[int, ...], size: int
) -> NDArray[np.uint8]:
    """Pack a source; the program is held to its own memory like a kernel."""
    assert argument.source is not None
    origin, target = watched(values), Guarded(size, writable=True)
    target.data[:] = _INTEGER_POISON
    library = Library(pack)
    call = Call(
        [
            (origin.memory.address, argument.source.dtype, values.shape),
            (target.address, argument.dtype, shape),
        ]
    )
    library.call(f"pack_{argument.name}", call)
    library.close()
    if not target.intact() or not origin.unchanged():
        raise MeasureError("wrong_result", f"pack_{argument.name} wrote outside its output")
    return target.data


def as_bytes(values: Array) -> NDArray[np.uint8]:
    """View an array's values as bytes."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def watched(values: Array, aligned: int = CACHE_LINE, place: Place | None = None) -> Tensor:
    """Copy values into watched memory that a kernel may only read."""
    memory = (place or Host()).watched(values.nbytes, False, aligned)
    tensor = Tensor(memory, kept=values)
    tensor.fill(values)
    return tensor


def poison(dtype: str, size: int) -> Array:
    """Return ``size`` bytes of a value that no kernel computes by chance."""
    kind = numpy_dtype(dtype)
    if kind.kind in "iu":
        return np.full(size, _INTEGER_POISON, dtype=np.uint8)
    return np.full(size // kind.itemsize, np.nan).astype(kind)


def smaller(problem: P) -> P:
    """Return the problem at an odd run-time size inside the bucket, about two thirds of it."""
    sizes = {}
    for name, upper in problem.sizes.items():
        size = 2 * upper // 3
        # A size of 0 is one that the problem does without.
        sizes[name] = min(upper, max(1, size - 1 + size % 2))
    return dataclasses.replace(problem, **sizes)


def within(problem: P, most_bytes: int) -> P:
    """Return the problem with run-time sizes halved, in their order, until its states fit."""
    for name in problem.sizes:
        while state_bytes(problem) > most_bytes and problem.sizes[name] > 1:
            problem = dataclasses.replace(problem, **{name: -(-problem.sizes[name] // 2)})
    return problem
