"""Operators: what is computed, apart from how and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattune.errors import ProblemError, UnknownNameError
from wattune.ops.operator import Argument, Operator, Problem, Tolerance, Work
from wattune.ops.ternary_gemm import TERNARY_GEMM, TernaryGemm

__all__ = [
    "Argument",
    "Operator",
    "Problem",
    "TernaryGemm",
    "Tolerance",
    "Work",
    "operator",
    "operator_names",
    "problem_from_json",
]

_OPERATORS: dict[str, Operator[Any]] = {op.name: op for op in (TERNARY_GEMM,)}


def operator_names() -> tuple[str, ...]:
    """Return the names of all operators."""
    return tuple(_OPERATORS)


def operator(name: str) -> Operator[Any]:
    """Return the operator of this name."""
    try:
        return _OPERATORS[name]
    except KeyError:
        raise UnknownNameError("operator", name, _OPERATORS) from None


def problem_from_json(data: Mapping[str, Any]) -> Problem:
    """Build the problem that `Problem.to_json` wrote."""
    if not isinstance(data, Mapping) or "operator" not in data:
        raise ProblemError(f"a problem is an object with an 'operator' field, not {data!r}")
    problem: Problem = operator(str(data["operator"])).problem.from_json(data)
    return problem
