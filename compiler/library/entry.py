"""Entries: an operator of loaded libraries as a Python function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wattune.compiler.library.binding import Binding, bind, caller_names
from wattune.compiler.library.coverage import bucket_ends, covers, largest_workspace
from wattune.compiler.library.frameworks import (
    as_bits,
    compiling_check,
    device_kind,
    is_read_only,
    is_tensor,
    tidy,
)
from wattune.compiler.library.matching import Given, Part
from wattune.compiler.library.packed import Packed
from wattune.compiler.library.packing import pack_sources
from wattune.compiler.library.variants import is_field_value
from wattune.errors import ArgumentError, DeviceError

# Shapes vary with the batch: a limit, so that a server cannot collect bindings for ever.
_MOST_BINDINGS = 4096
_NO_GRADIENTS = (
    "{}: an input requires gradients, which kernels do not compute; call under torch.no_grad() or "
    "pass .detach()"
)


class LayoutError(ArgumentError):
    """An input whose memory a kernel cannot read: a copy of it can be read."""


class Entry:
    """One operator: call it, `pack` what it reads, ask what it `covers`.

    Tensors are torch's or numpy's on the CPU, torch's on a GPU; other tensors of DLPack are taken
    where ``out`` is given. An input that is not contiguous, misaligned or read-only (numpy) is
    copied; a state, output or workspace like that is an `ArgumentError`. Calls are re-entrant and
    release the GIL. On a GPU they launch on torch's current stream and do not wait.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        """Serve the operator from these libraries; the first that covers a call is used."""
        self.name = parts[0].table.name
        self._parts = tuple(parts)
        self._names = caller_names([part.table for part in parts])
        self._bounded = tuple(dict.fromkeys(n for part in parts for n in part.table.measured))
        self._mixed = len({part.kind for part in parts}) > 1
        self._bindings: dict[Any, Binding] = {}
        # For kinds of calls that several variants may serve: the tensors whose shapes decide.
        self._telling: dict[Any, tuple[int, ...]] = {}
        self._compiling = compiling_check()

    def __call__(self, *tensors: Any, out: Any = None, workspace: Any = None, **named: Any) -> Any:
        """Compute the operator: inputs in calling order, packed data among them, others by name.

        Plain values by name (``window=128``) are fields of the problem, which choose between
        variants that take the same tensors. Lengths on a GPU are not read: a number for what the
        greatest of them is at the most (``context=4096``) helps to choose the kernel, else room in
        the cache counts; on CPUs it is not needed. ``out`` receives the result (a tuple where the
        operator has several outputs), else tensors of the inputs' framework are made.
        ``workspace`` is uint8, 64-byte aligned, of at least `workspace_bytes`; without it each
        thread keeps its own, and on a GPU torch makes one for the call. Inputs that require
        gradients are refused while torch records them: kernels have no backward.
        """
        if self._compiling():
            from wattune.compiler.library.torch_ops import call_in_graph

            return call_in_graph(self.name, self._names, tensors, named, out)
        # From here on for speed: this runs at every call of every layer of a model.
        most: Sequence[int | None] = ()
        if named and self._bounded:
            most = [named.pop(name, None) for name in self._bounded]
        try:
            key: Any = tuple([tensor.dtype for tensor in tensors])
            if self._mixed:
                key = (*key, *map(device_kind, tensors or named.values()))
            if named:
                fields = [(name, getattr(t, "dtype", t)) for name, t in named.items()]
                key = (*key, *fields)
            binding = self._bindings.get(key)
        except (AttributeError, TypeError):
            packed, found = self._given(tensors, named)
            found.update(zip(self._bounded, most, strict=False))
            return self(*packed, out=out, workspace=workspace, **found)
        given = (*tensors, *named.values()) if named else tensors
        if binding is None:
            binding = self._resolve(key, given, named)
        args = binding.blank.copy()
        if binding.torch is None:
            for i, at in binding.inputs:
                args[at] = given[i]
        else:
            for i, at in binding.inputs:
                args[at] = tensor = given[i]
                if tensor.requires_grad and binding.torch.is_grad_enabled():
                    raise ArgumentError(_NO_GRADIENTS.format(self.name))
        if binding.packed:
            held = given[binding.packed_index].tensors
            for name, at in binding.packed:
                args[at] = held[name]
        if out is None:
            try:
                out = binding.allocate(given)
            except IndexError:
                raise ArgumentError(f"{self.name}: an input has too few dimensions") from None
        if binding.output is not None:
            args[binding.output] = out
        elif out is not None:
            self._set_outputs(args, binding.outputs, out)
        if binding.workspace is not None:
            if workspace is None and binding.scratch is not None:
                workspace = binding.scratch(given)
            args[binding.workspace] = workspace
        if most:
            for i, at in binding.bounds:
                args[at] = most[i]
        for at in binding.as_bits:
            args[at] = as_bits(args[at])
        try:
            binding.call(*args)
        except (LayoutError, BufferError):
            self._call_with_copies(binding, args)
        except DeviceError as error:
            raise DeviceError(f"{self.name}: {error}") from None
        except RuntimeError as error:
            raise self._not_passed(error, args) from error
        return out

    def _set_outputs(self, args: list[Any], places: Sequence[int], out: Any) -> None:
        if not isinstance(out, tuple | list) or len(out) != len(places):
            names = ", ".join(self._parts[0].table.signature[at] for at in places) or "none"
            raise ArgumentError(f"{self.name}: out is {type(out).__name__}; expected ({names})")
        for at, result in zip(places, out, strict=True):
            args[at] = result

    def _given(
        self, tensors: Sequence[Any], named: Mapping[str, Any]
    ) -> tuple[list[Packed], dict[str, Any]]:
        """Return packed data, and all else by name; refuse a call with something else."""
        packed = [tensor for tensor in tensors if isinstance(tensor, Packed)]
        given = [tensor for tensor in tensors if not isinstance(tensor, Packed)]
        free = [name for name in self._names if name not in named]
        if len(given) > len(free):
            raise self._unknown(f"{len(given)} tensors by position")
        found = {**dict(zip(free, given, strict=False)), **named}
        found = {name: tensor for name, tensor in found.items() if tensor is not None}
        for name, value in found.items():
            if not hasattr(value, "dtype") and (name not in named or not is_field_value(value)):
                raise ArgumentError(
                    f"{self.name}: {type(value).__name__} given; expected torch tensors or numpy "
                    "arrays, and what .pack() returns"
                )
        return packed, found

    def _resolve(self, key: Any, tensors: Sequence[Any], named: Mapping[str, Any]) -> Binding:
        """Return the binding of a kind of call that is new, or that shapes decide."""
        telling = self._telling.get(key)
        if telling is not None:
            binding = self._bindings.get((key, *[tensors[i].shape for i in telling]))
            if binding is not None:
                return binding
        binding, telling = bind(self._parts, self._by_name(tensors, named), self._bounded)
        if telling:
            self._telling[key] = telling
            key = (key, *[tensors[i].shape for i in telling])
            if len(self._bindings) >= _MOST_BINDINGS:
                self._bindings.clear()
        self._bindings[key] = binding
        return binding

    def _by_name(self, tensors: Sequence[Any], named: Mapping[str, Any]) -> Given:
        """Name the tensors of a call; ``named`` are the last of them."""
        at: dict[str, int] = {}
        packed = -1
        free = [name for name in self._names if name not in named]
        for i, tensor in enumerate(tensors[: len(tensors) - len(named)]):
            if isinstance(tensor, Packed):
                packed = i
            elif free:
                at[free.pop(0)] = i
            else:
                raise self._unknown(f"{len(at) + 1} tensors by position")
        fields: dict[str, Any] = {}
        for i, (name, value) in enumerate(named.items(), start=len(tensors) - len(named)):
            if value is None:
                continue
            if is_tensor(value):
                if name not in self._names:
                    raise self._unknown(name)
                at[name] = i
            else:
                fields[name] = self._field(name, value)
        found = {name: tensors[i] for name, i in at.items()}
        return Given(found, at, tensors[packed] if packed >= 0 else None, packed, fields)

    def _field(self, name: str, value: Any) -> Any:
        known = {field for part in self._parts for field in part.table.fields}
        if name not in known:
            raise self._unknown(name) if name in self._names else self._no_field(name, known)
        if hasattr(value, "dtype") or not is_field_value(value):
            raise ArgumentError(
                f"{self.name}: {name} is a {type(value).__name__}; allowed: a number, a string, "
                "True or False for a field, a tensor for an input"
            )
        return value

    def _no_field(self, name: str, known: Iterable[str]) -> ArgumentError:
        return ArgumentError(
            f"{self.name} has no field {name}; allowed: {', '.join(sorted(known))}"
        )

    def _unknown(self, what: str) -> ArgumentError:
        names = ", ".join(self._names)
        return ArgumentError(f"{self.name} takes no {what}; allowed: {names}, out, workspace")

    def _call_with_copies(self, binding: Binding, args: list[Any]) -> None:
        """Call again with copies of the inputs."""
        for at in binding.copied:
            args[at] = tidy(args[at])
        try:
            binding.call(*args)
        except DeviceError:
            raise
        except (BufferError, RuntimeError) as error:
            raise self._not_passed(error, args) from error

    def _not_passed(self, error: Exception, args: Sequence[Any]) -> ArgumentError:
        """Wrap what a framework says of a tensor without memory (meta, sparse), or read-only."""
        names = self._parts[0].table.signature
        frozen = [n for n, arg in zip(names, args, strict=True) if is_read_only(arg)]
        if frozen:
            return ArgumentError(
                f"{self.name}: {frozen[0]} cannot be passed to a kernel: it is read-only, and "
                "only inputs are copied"
            )
        reason = next(iter(str(error).splitlines()), repr(error))
        return ArgumentError(f"{self.name}: a tensor cannot be passed to a kernel: {reason}")

    def pack(self, *sources: Any, **named: Any) -> Packed:
        """Bring sources (``weights``, ``scale``) into the layout that the kernels read.

        Sources are arrays, torch tensors, lists or numbers; a number stands for all elements.
        """
        return pack_sources(self._parts, sources, named)

    def covers(self, **fields: Any) -> bool:
        """Say whether a problem with these fields (``tokens``, ``out_features``, ...) is served.

        Fields that are not given may have any value; an unknown field is an `UnknownNameError`.
        """
        return any(covers(part.table, fields) for part in self._parts)

    @property
    def buckets(self) -> dict[str, tuple[Any, ...]]:
        """Return, for each variant, the upper ends of its buckets: tuples of several sizes."""
        found: dict[str, tuple[Any, ...]] = {}
        for part in self._parts:
            found = {**bucket_ends(part.table), **found}
        return found

    @property
    def workspace_bytes(self) -> int:
        """Return the bytes that suffice for the workspace of any call."""
        return max(largest_workspace(part.table) for part in self._parts)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Return the libraries that serve this, in the order they are tried."""
        return self._parts

    def __repr__(self) -> str:
        """Show what is served."""
        lines = (f"  {name}: up to {', '.join(map(str, e))}" for name, e in self.buckets.items())
        return "\n".join([f"<wattune {self.name}>", *lines])
