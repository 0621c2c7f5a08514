"""Attention layers become problems: what each kind of attention consists of, as a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wattune.compiler.models.layers import AttentionShape, LayerProblem, Model
from wattune.compiler.models.step import Step
from wattune.errors import UnknownNameError
from wattune.ops import Problem, operator

Parts = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Fact:
    """The value of a field that has another name among the facts."""

    name: str


_DENSE: Parts = {"decode_attention": {}, "kv_cache_append": {}}


def _quantized(name: str) -> Parts:
    # Blocks of a sparse kind are not meant: all of the cache is read.
    dense = {"block_size": 0, "max_blocks": 0, "format": name}
    return {"quantized_decode_attention": dense, "quantized_kv_cache_append": dense}


# Kind -> operators of a layer in a step, each with the fields that the kind decides.
KINDS: Mapping[str, Parts] = {
    "dense": _DENSE,
    "block_sparse": {
        "block_sparse_decode_attention": {},
        "block_minmax": {},
        "block_score": {},
        # One list for all tokens of a step: their mean query is scored. The lists are as long for
        # short contexts as for the longest.
        "select_blocks": {
            "method": "fraction",
            "fraction": Fact("keep"),
            "query_tokens": 0,
            "max_blocks": Fact("most_blocks"),
        },
        "kv_cache_append": {},
    },
    # Few layers select; the others attend to what those have selected.
    "token_sparse": {"token_sparse_decode_attention": {}, "kv_cache_append": {}},
    "int8": _quantized("int8"),
    "int4": _quantized("int4"),
    "int2": _quantized("int2"),
    "none": {},
}


def attention_problems(model: Model, step: Step) -> list[LayerProblem]:
    """Merge attention layers of equal shape into problems, one a bucket and operator.

    Sliding layers are always dense: a window has nothing to leave out.
    """
    if step.attention not in KINDS:
        raise UnknownNameError("kind of attention", step.attention, tuple(KINDS))
    layers: dict[AttentionShape, list[str]] = {}
    for name, shape in model.attention.items():
        layers.setdefault(shape, []).append(name)
    found: dict[Problem, LayerProblem] = {}
    requests = step.requests(model.most_context)
    longest = max(context for _, context in requests)
    for (batch, context), weight in requests.items():
        sizes = {"batch": batch, "context": context, "most_blocks": step.blocks(longest)}
        for shape, names in layers.items():
            facts = _facts(model, step, shape, sizes)
            for problem in _problems(facts, _parts(step.attention, shape)):
                # Layers that attend differently may append alike.
                known = found[problem].layer_names if problem in found else ()
                every = (*known, *names)
                tokens = batch * step.query_tokens
                found[problem] = LayerProblem(problem, len(every), every, weight, tokens)
    return list(found.values())


def _parts(kind: str, shape: AttentionShape) -> Parts:
    return _DENSE if shape.window and KINDS[kind] else KINDS[kind]


def _facts(
    model: Model, step: Step, shape: AttentionShape, sizes: Mapping[str, int]
) -> dict[str, Any]:
    """Return all that is known of a layer, under the names that problems' fields have."""
    return {
        **dataclasses.asdict(shape),
        **sizes,
        "query_tokens": step.query_tokens,
        "dtype": model.dtype,
        "layout": step.layout,
        "page_size": step.page_size,
        "block_size": step.block_size,
        "keep": step.keep,
        "max_blocks": step.blocks(sizes["context"]),
        "max_tokens": math.ceil(step.keep * sizes["context"]),
    }


def _problems(facts: Mapping[str, Any], parts: Parts) -> list[Problem]:
    """Build each operator's problem from the facts that it has fields for."""
    found = []
    for name, decided in parts.items():
        op = operator(name)
        chosen = {k: facts[v.name] if isinstance(v, Fact) else v for k, v in decided.items()}
        known = {**facts, **chosen}
        names = [field.name for field in dataclasses.fields(op.problem) if field.name in known]
        found.append(op.problem(**{name: known[name] for name in names}))
    return found
