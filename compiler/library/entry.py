"""Entries: an operator of loaded libraries as a Python function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wattune.compiler.library.binding import Binding, Part, bind, caller_names
from wattune.compiler.library.coverage import bucket_ends, covers, largest_workspace
from wattune.compiler.library.frameworks import as_bits, compiling_check, tidy
from wattune.compiler.library.packed import Packed
from wattune.compiler.library.packing import pack_sources
from wattune.errors import ArgumentError

_NO_GRADIENTS = (
    "{}: an input requires gradients, which kernels do not compute; call under torch.no_grad() or "
    "pass .detach()"
)


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
        # From here on for speed: this runs at every call of every layer of a model.
        try:
            key: Any = tuple([tensor.dtype for tensor in tensors])
            if named:
                key = (*key, *[(name, tensor.dtype) for name, tensor in named.items()])
                tensors = (*tensors, *named.values())
        except AttributeError:
            return self(*tensors, out=out, workspace=workspace, **self._given(tensors, named))
        binding = self._bindings.get(key)
        if binding is None:
            binding = self._bindings[key] = self._bind(tensors, named)
        args = binding.blank.copy()
        if binding.torch is None:
            for i, at in binding.inputs:
                args[at] = tensors[i]
        else:
            for i, at in binding.inputs:
                args[at] = tensor = tensors[i]
                if tensor.requires_grad and binding.torch.is_grad_enabled():
                    raise ArgumentError(_NO_GRADIENTS.format(self.name))
        if binding.packed:
            held = tensors[binding.packed_index].tensors
            for name, at in binding.packed:
                args[at] = held[name]
        if out is None:
            try:
                out = binding.allocate(tensors)
            except IndexError:
                raise ArgumentError(f"{self.name}: an input has too few dimensions") from None
        if binding.output is not None:
            args[binding.output] = out
        else:
            for at, result in zip(binding.outputs, out, strict=True):
                args[at] = result
        if workspace is not None and binding.workspace is not None:
            args[binding.workspace] = workspace
        if binding.as_bits:
            args = [as_bits(arg) for arg in args]
        try:
            binding.call(*args)
        except (LayoutError, BufferError):
            self._call_with_copies(binding, args)
        except RuntimeError as error:
            raise self._not_passed(error) from error
        return out

    def _given(self, tensors: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
        """Return the named tensors that are not None; refuse a call with something else."""
        given = {name: tensor for name, tensor in named.items() if tensor is not None}
        if others := [t for t in (*tensors, *given.values()) if not hasattr(t, "dtype")]:
            raise ArgumentError(
                f"{self.name}: {type(others[0]).__name__} given; expected torch tensors or numpy "
                "arrays, and what .pack() returns"
            )
        return given

    def _bind(self, tensors: Sequence[Any], named: Mapping[str, Any]) -> Binding:
        """Name the tensors of a call and find what serves it; ``named`` are the last of them."""
        found: dict[str, int] = {}
        packed = None
        free = [name for name in self._names if name not in named]
        for i, tensor in enumerate(tensors[: len(tensors) - len(named)]):
            if isinstance(tensor, Packed):
                packed = i
            elif free:
                found[free.pop(0)] = i
            else:
                raise self._unknown(f"{len(found) + 1} tensors by position")
        for i, name in enumerate(named, start=len(tensors) - len(named)):
            if name not in self._names:
                raise self._unknown(name)
            found[name] = i
        return bind(self._parts, tensors, found, packed)

    def _unknown(self, what: str) -> ArgumentError:
        names = ", ".join(self._names)
        return ArgumentError(f"{self.name} takes no {what}; allowed: {names}, out, workspace")

    def _call_with_copies(self, binding: Binding, args: list[Any]) -> None:
        """Call again with copies of the inputs."""
        for at in binding.copied:
            args[at] = tidy(args[at])
        try:
            binding.call(*args)
        except (BufferError, RuntimeError) as error:
            raise self._not_passed(error) from error

    def _not_passed(self, error: Exception) -> ArgumentError:
        """Wrap what a framework says of a tensor without memory (meta, sparse)."""
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
        return "\n".join([f"<wattune {self.name}>", *lines])
