"""Entries: an operator of loaded libraries as a Python function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wattune.compiler.library.binding import Binding, Part, bind, caller_names
from wattune.compiler.library.coverage import bucket_ends, covers, largest_workspace
from wattune.compiler.library.frameworks import compiling_check, kernel_view, tidy
from wattune.compiler.library.packed import Packed
from wattune.compiler.library.packing import pack_sources
from wattune.errors import ArgumentError


class LayoutError(ArgumentError):
    """An input whose memory a kernel cannot read: a copy of it can be read."""


class Entry:
    """One operator: call it, `pack` what it reads, ask what it `covers`.

    Tensors are torch's or numpy's, on the CPU. An input that is not contiguous, misaligned or
    read-only (numpy) is copied; an output or workspace like that is an `ArgumentError`. Calls are
    re-entrant and release the GIL.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        """Serve the operator from these libraries; the first that covers a call is used."""
        self.name = parts[0].table.name
        self._parts = tuple(parts)
        self._names = caller_names(parts[0].table)
        self._bindings: dict[Any, Binding] = {}
        self._compiling = compiling_check()

    def __call__(self, *tensors: Any, out: Any = None, workspace: Any = None, **named: Any) -> Any:
        """Compute the operator: inputs in calling order, packed data among them, others by name.

        ``out`` receives the result (a sequence where the operator has several outputs), else
        tensors of the inputs' framework are made. ``workspace`` is uint8, 64-byte aligned, of at
        least `workspace_bytes`; without it each thread keeps its own. Inputs that require
        gradients are refused while torch records them: kernels have no backward.
        """
        if self._compiling():
            from wattune.compiler.library.torch_ops import call_in_graph

            return call_in_graph(self.name, self._names, tensors, named, out)
        given: list[Any] = []
        try:
            packed, key = _sort(tensors, named, given)
        except AttributeError:
            raise self._not_a_tensor(tensors, named) from None
        binding = self._bindings.get(key)
        if binding is None:
            binding = self._bindings[key] = self._bind(given, packed, named)
        if binding.torch is not None:
            _check_gradients(self.name, binding.torch, given)
        if out is None:
            results = binding.allocate(given)
        else:
            results = [out] if len(binding.outputs) == 1 else list(out)
        args = _arguments(binding, given, packed, results, workspace)
        try:
            binding.call(*args)
        except (LayoutError, BufferError):
            self._call_with_copies(binding, args)
        return results[0] if len(results) == 1 else tuple(results)

    def _bind(
        self, given: Sequence[Any], packed: Packed | None, named: Mapping[str, Any]
    ) -> Binding:
        by_name = [name for name, tensor in named.items() if tensor is not None]
        count = len(given) - len(by_name)
        if count > len(self._names):
            raise ArgumentError(
                f"{self.name}: {count} tensors are given by position; allowed: "
                f"{', '.join(self._names)}"
            )
        tensors = dict(zip(self._names[:count], given, strict=False))
        for name, tensor in zip(by_name, given[count:], strict=True):
            if name in tensors or name not in self._names:
                reason = "is given twice" if name in tensors else "is taken by no kernel"
                raise ArgumentError(
                    f"{self.name}: {name} {reason}; allowed: {', '.join(self._names)}, each once, "
                    "and out, workspace"
                )
            tensors[name] = tensor
        return bind(self._parts, tensors, packed)

    def _not_a_tensor(self, tensors: Sequence[Any], named: Mapping[str, Any]) -> ArgumentError:
        given = [t for t in (*tensors, *named.values()) if t is not None]
        kinds = {type(t).__name__ for t in given if not isinstance(t, Packed) and not is_tensor(t)}
        return ArgumentError(
            f"{self.name}: {' and '.join(sorted(kinds))} given; expected torch tensors or numpy "
            "arrays, and what .pack() returns"
        )

    def _call_with_copies(self, binding: Binding, args: list[Any]) -> None:
        """Call again with copies of the inputs."""
        for at in binding.inputs:
            args[at] = tidy(args[at])
        try:
            binding.call(*args)
        except BufferError as error:
            raise ArgumentError(
                f"{self.name}: out or workspace cannot be passed: {error}"
            ) from error

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
    def buckets(self) -> dict[str, tuple[int, ...]]:
        """Return, for each variant, the upper ends of its buckets."""
        found: dict[str, tuple[int, ...]] = {}
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
        return "\n".join([f"<wattune {self.name}", *lines]) + ">"


def _sort(
    tensors: Sequence[Any], named: Mapping[str, Any], given: list[Any]
) -> tuple[Packed | None, tuple[Any, ...]]:
    """Split packed data from the tensors, and return what decides the binding."""
    packed = None
    key: list[Any] = []
    for tensor in tensors:
        if tensor.__class__ is Packed:
            packed = tensor
            key.append(tensor.key)
        else:
            given.append(tensor)
            key.append(tensor.dtype)
    for name, tensor in named.items():
        if tensor is not None:
            given.append(tensor)
            key.append((name, tensor.dtype))
    return packed, tuple(key)


def _arguments(
    binding: Binding, given: Sequence[Any], packed: Packed | None, results: Any, workspace: Any
) -> list[Any]:
    """Return the entry's argument list."""
    args: list[Any] = [*binding.blank]
    for at, tensor in zip(binding.inputs, given, strict=True):
        args[at] = tensor
    if packed is not None:
        tensors = packed.tensors
        for name, at in binding.packed:
            args[at] = tensors[name]
    if workspace is not None and binding.workspace is not None:
        args[binding.workspace] = workspace
    for at, result in zip(binding.outputs, results, strict=True):
        args[at] = result
    if binding.views:
        args = [kernel_view(arg) for arg in args]
    return args


def _check_gradients(name: str, torch: Any, given: Sequence[Any]) -> None:
    for tensor in given:
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ArgumentError(
                f"{name}: an input requires gradients, which kernels do not compute; call under "
                "torch.no_grad() or pass .detach()"
            )
