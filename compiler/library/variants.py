"""Variants of an operator: what tells them apart, the names of their entries, given fields."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from wattune.ops.operator import Argument

Fields = Mapping[str, Any]
Arguments = Sequence[Argument]


def differing(problems: Sequence[Fields]) -> tuple[str, ...]:
    """Name the fields in which problems of one operator differ."""
    return tuple(k for k in problems[0] if any(p[k] != problems[0][k] for p in problems))


def entry_names(operator: str, problems: Sequence[Fields], defaults: Fields) -> list[str]:
    """Name each variant's entry after the fields in which it differs from others.

    Fields that have their default are left out: ``decode_attention_window128_sinks``. Where there
    is one variant only its entry is the operator's.
    """
    if len(problems) == 1:
        return [operator]
    telling = differing(problems)
    names = []
    for problem in problems:
        words = [_word(n, problem[n]) for n in telling if problem[n] != defaults.get(n)]
        names.append("_".join([operator, *(words or ["default"])]))
    repeated = {name for name in names if names.count(name) > 1}
    return [f"{n}_{i}" if n in repeated else n for i, n in enumerate(names)]


def _word(name: str, value: Any) -> str:
    """Return a field as a part of a C name: scale0p25, sinks, pagesfalse."""
    if value is True:
        return name
    text = _short(value).lower() if isinstance(value, bool) else _short(value)
    return re.sub(r"\W", "_", f"{name}{text}".replace(".", "p").replace("-", "m"))


def as_text(problem: Fields, names: Sequence[str]) -> str:
    """Return some fields of a problem as one line."""
    return ", ".join(f"{name}={_short(problem[name])}" for name in names)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def alike(one: Arguments, other: Arguments) -> bool:
    """Say whether the same tensors may fit both; a workspace fits all."""
    first, second = _tensors(one), _tensors(other)
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype
        and len(first[name].shape) == len(second[name].shape)
        and all(
            a == b or isinstance(a, str) or isinstance(b, str)
            for a, b in zip(first[name].shape, second[name].shape, strict=True)
        )
        for name in first
    )


def _tensors(arguments: Arguments) -> dict[str, Argument]:
    return {a.name: a for a in arguments if a.role != "workspace"}


def is_field_value(value: Any) -> bool:
    """Say whether a value given by name is a field of the problem: no tensor, something plain."""
    return isinstance(value, int | float | str) or is_dtype(value)


def is_dtype(value: Any) -> bool:
    """Say whether this is a dtype of torch, which stands for its name."""
    return type(value).__name__ == "dtype" and type(value).__module__ == "torch"


def same_value(value: Any, given: Any) -> bool:
    """Compare a field with what a caller gave: torch.float32 is float32, 0.0883883 is 128**-0.5."""
    if isinstance(value, int | float) and isinstance(given, int | float):
        return math.isclose(value, given, rel_tol=1e-5)
    return bool(value == str(given).removeprefix("torch."))
