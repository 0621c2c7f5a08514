"""What the families say of a model: its layers, and what becomes of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from wattune.ops import Problem


@dataclass(frozen=True)
class LayerProblem:
    """A problem of a model: how many layers have it, which, and its bucket's share of the calls.

    ``layer_names`` are the checkpoint's module names. ``weight`` is the share of decoding steps
    that fall into the problem's bucket; the weights of all buckets sum to 1. ``tokens`` are those
    that such a step makes (0: as many as the problem says).
    """

    problem: Problem
    multiplicity: int
    layer_names: tuple[str, ...]
    weight: float = 1.0
    tokens: int = 0


@dataclass(frozen=True)
class Linear:
    """One weight matrix of a checkpoint: module name and its [out_features, in_features]."""

    name: str
    out_features: int
    in_features: int


@dataclass(frozen=True)
class AttentionShape:
    """What an attention layer computes; ``window`` 0 sees all keys."""

    query_heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    window: int = 0
    sinks: bool = False


@dataclass(frozen=True)
class MoeShape:
    """What a mixture-of-experts layer computes; the router's fields are those of `MoeTopk`.

    ``gate_dtype`` is that of the gate's weight.
    """

    hidden_size: int
    intermediate_size: int
    num_experts: int
    top_k: int
    scoring_func: str
    e_score_correction_bias: bool = False
    renormalize: bool = True
    num_expert_group: int = 1
    topk_group: int = 1
    routed_scaling_factor: float = 1.0
    gate_dtype: str = "float32"


@dataclass(frozen=True)
class Model:
    """The layers that Wattune has kernels for, and the longest context (0: unknown)."""

    dtype: str
    attention: dict[str, AttentionShape]
    ternary: tuple[Linear, ...] = ()
    most_context: int = 0
    moe: dict[str, MoeShape] = field(default_factory=dict)
