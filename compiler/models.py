"""Model configs: a Hugging Face ``config.json`` becomes problems with multiplicity."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattune.errors import ModelError
from wattune.ops import Problem, TernaryGemm

FLOAT_TYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class LayerProblem:
    """A problem of a model: how many layers have it, which, and its bucket's share of the calls.

    ``layer_names`` are the checkpoint's module names. ``weight`` is the share of decoding steps
    that fall into the problem's token bucket; the weights of all buckets sum to 1.
    """

    problem: Problem
    multiplicity: int
    layer_names: tuple[str, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class Linear:
    """One weight matrix of a checkpoint: module name and its [out_features, in_features]."""

    name: str
    out_features: int
    in_features: int


class Config:
    """A ``config.json``, read field by field with errors that name the field."""

    def __init__(self, fields: Mapping[str, Any], source: str) -> None:
        """Keep the fields and the name to blame."""
        self.fields = fields
        self.source = source

    @classmethod
    def read(cls, config: str | Path | Mapping[str, Any]) -> Config:
        """Read a file, or take the data as it is; `ModelError` where it is no JSON object."""
        if isinstance(config, Mapping):
            return cls(config, "config")
        try:
            data = json.loads(Path(config).read_text())
        except OSError as error:
            raise ModelError(f"{config}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ModelError(f"{config}: not JSON: {error}") from error
        if not isinstance(data, dict):
            raise ModelError(f"{config}: holds a {type(data).__name__}; allowed: a JSON object")
        return cls(data, str(config))

    def section(self, name: str) -> Config:
        """Return a nested object."""
        return Config(self._get(name, dict, "an object"), f"{self.source}: {name}")

    def size(self, name: str, default: int | None = None) -> int:
        """Return a positive integer."""
        if name not in self.fields and default is not None:
            return default
        value: int = self._get(name, int, "an integer >= 1")
        if isinstance(value, bool) or value < 1:
            raise self.error(name, value, "an integer >= 1")
        return value

    def choice(self, name: str, allowed: tuple[str, ...], default: str | None = None) -> str:
        """Return one of some names."""
        if name not in self.fields and default is not None:
            return default
        value: str = self._get(name, str, ", ".join(allowed))
        if value not in allowed:
            raise self.error(name, value, ", ".join(allowed))
        return value

    def names(self, name: str, allowed: str) -> list[str]:
        """Return a list of names."""
        value: list[str] = self._get(name, list, allowed)
        return value

    def error(self, name: str, value: object, allowed: str) -> ModelError:
        """Say which field is wrong and what it may be."""
        return ModelError(f"{self.source}: field {name!r} is {value!r}; allowed: {allowed}")

    def _get(self, name: str, kind: type, allowed: str) -> Any:
        if name not in self.fields:
            raise ModelError(f"{self.source}: field {name!r} is missing; allowed: {allowed}")
        value = self.fields[name]
        if not isinstance(value, kind):
            raise self.error(name, value, allowed)
        return value


def bitnet_linears(config: Config) -> list[Linear]:
    """Return the ternary layers of a BitNet b1.58 transformer, block by block.

    The embedding and the output head are not ternary and are left out.
    """
    config.section("quantization_config").choice("quant_method", ("bitnet",))
    hidden, inter = config.size("hidden_size"), config.size("intermediate_size")
    heads, kv_heads = config.size("num_attention_heads"), config.size("num_key_value_heads")
    if "head_dim" not in config.fields and hidden % heads:
        raise config.error("num_attention_heads", heads, f"a divisor of hidden_size ({hidden})")
    head_dim = config.size("head_dim", hidden // heads)
    shapes = {
        "self_attn.q_proj": (heads * head_dim, hidden),
        "self_attn.k_proj": (kv_heads * head_dim, hidden),
        "self_attn.v_proj": (kv_heads * head_dim, hidden),
        "self_attn.o_proj": (hidden, heads * head_dim),
        "mlp.gate_proj": (inter, hidden),
        "mlp.up_proj": (inter, hidden),
        "mlp.down_proj": (hidden, inter),
    }
    return [
        Linear(f"model.layers.{block}.{name}", *shape)
        for block in range(config.size("num_hidden_layers"))
        for name, shape in shapes.items()
    ]


def bitnet_problems(config: Config, tokens: Mapping[int, float]) -> list[LayerProblem]:
    """Merge layers of equal shape into problems, one per token bucket."""
    dtype = _activation_dtype(config)
    shapes: dict[tuple[int, int], list[str]] = {}
    for linear in bitnet_linears(config):
        shapes.setdefault((linear.out_features, linear.in_features), []).append(linear.name)
    return [
        LayerProblem(
            TernaryGemm(count, out_features, in_features, dtype=dtype),
            multiplicity=len(names),
            layer_names=tuple(names),
            weight=weight,
        )
        for count, weight in sorted(tokens.items())
        for (out_features, in_features), names in shapes.items()
    ]


def _activation_dtype(config: Config) -> str:
    """Read ``dtype``, called ``torch_dtype`` before transformers 4.56."""
    name = "dtype" if "dtype" in config.fields else "torch_dtype"
    return config.choice(name, FLOAT_TYPES)


# Architecture -> the problems of its layers. A Llama counts only with BitNet's quantisation,
# which `bitnet_linears` asks for.
_MODELS: dict[str, Callable[[Config, Mapping[int, float]], list[LayerProblem]]] = {
    "BitNetForCausalLM": bitnet_problems,
    "LlamaForCausalLM": bitnet_problems,
}


def problems_from_config(
    config: str | Path | Mapping[str, Any], tokens: Mapping[int, float] | None = None
) -> list[LayerProblem]:
    """Return a model's problems for these token buckets (bucket -> weight; default one token).

    Raises `ModelError` for an unsupported model and for a missing or wrong field.
    """
    read = Config.read(config)
    return _MODELS[architecture(read)](read, normalised({1: 1.0} if tokens is None else tokens))


def architecture(config: Config) -> str:
    """Return the supported architecture that a config names."""
    allowed = f"a list with one of {', '.join(_MODELS)}"
    named = config.names("architectures", allowed)
    for name in named:
        if name in _MODELS:
            return name
    raise config.error("architectures", named, allowed)


def normalised(tokens: Mapping[int, float]) -> dict[int, float]:
    """Check token buckets and scale their weights to a sum of 1."""
    for count, weight in tokens.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ModelError(f"token bucket is {count!r}; allowed: an integer >= 1")
        if not 0 <= weight < float("inf"):
            raise ModelError(f"weight of token bucket {count} is {weight}; allowed: a number >= 0")
    total = sum(tokens.values())
    if total <= 0:
        raise ModelError("the weights of the token buckets sum to 0; allowed: a sum > 0")
    return {count: weight / total for count, weight in sorted(tokens.items())}


def parse_tokens(text: str) -> dict[int, float]:
    """Read ``1:0.9,32:0.1``, or ``1,32``: then all weight is on the smallest bucket."""
    wrong = ModelError(f"tokens {text!r}; allowed: buckets such as 1,32 or 1:0.9,32:0.1")
    buckets: dict[int, float] = {}
    parts = [part.partition(":") for part in text.split(",")]
    weighted = {bool(colon) for _, colon, _ in parts}
    if len(weighted) != 1:
        raise wrong
    try:
        for count, colon, weight in parts:
            if int(count) in buckets:
                raise wrong
            buckets[int(count)] = float(weight) if colon else 0.0
    except ValueError:
        raise wrong from None
    if weighted == {False}:
        buckets[min(buckets)] = 1.0
    return normalised(buckets)
