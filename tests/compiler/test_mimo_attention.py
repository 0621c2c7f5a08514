"""MiMo-V2-Flash: our attention in place of that of transformers' own module.

Needs ``pip install wattune[test-models]``; skipped where transformers has no MiMo-V2-Flash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from tests.schedules.kernels import run_kernel

from wattune.compiler.models import LayerProblem, Step, problems_from_config
from wattune.errors import ScheduleError
from wattune.ops import DecodeAttention, operator
from wattune.ops.operator import Array
from wattune.schedules.target import Target
from wattune.schedules.template import templates_for

torch = pytest.importorskip("torch")
mimo = pytest.importorskip(
    "transformers.models.mimo_v2_flash.modeling_mimo_v2_flash",
    reason="transformers with MiMo-V2-Flash is not installed (wattune[test-models])",
    exc_type=ImportError,
)

TARGET = Target.native(threads=1)
REQUESTS, LENGTH, WINDOW = 2, 37, 9
# The first layer is global, as in the model; heads are as wide as the model's.
LAYERS = {"layer_types": ["full_attention", "sliding_attention"], "mlp_layer_types": ["dense"] * 2}
SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 32,
    "vocab_size": 32,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "head_dim": 192,
    "v_head_dim": 128,
    "sliding_window": WINDOW,
    "max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Seen:
    """What a layer's attention got and made, and what its module returned."""

    module: Any
    q: Any
    k: Any
    v: Any
    attended: Any
    result: Any


@pytest.fixture(scope="module")
def model() -> Any:
    """Return a small model of random weights, sinks large enough to matter."""
    torch.manual_seed(0)
    config = mimo.MiMoV2FlashConfig(**SIZES, **LAYERS, attn_implementation="eager", dtype="float32")
    found = mimo.MiMoV2FlashModel(config).eval()
    with torch.no_grad():
        for name, weights in found.named_parameters():
            if name.endswith("sinks"):
                weights.normal_(0, 2)
            elif "proj" in name or "embed" in name:
                weights.normal_(0, weights.shape[-1] ** -0.5)
    return found


@pytest.fixture(scope="module")
def seen(model: Any) -> list[Seen]:
    """Run the model over whole sequences and keep what its attention layers see."""
    inside: list[tuple[Any, ...]] = []
    results: list[Any] = []
    eager = mimo.eager_attention_forward

    def kept(module: Any, q: Any, k: Any, v: Any, *rest: Any, **more: Any) -> Any:
        answer = eager(module, q, k, v, *rest, **more)
        inside.append((module, q, k, v, answer[0]))
        return answer

    hooks = [
        layer.self_attn.register_forward_hook(lambda module, given, made: results.append(made[0]))
        for layer in model.layers
    ]
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(mimo, "eager_attention_forward", kept)
        model(torch.randint(0, 32, (REQUESTS, LENGTH)), use_cache=False)
    for hook in hooks:
        hook.remove()
    return [Seen(*parts) for parts in zip(*zip(*inside, strict=True), results, strict=True)]


def layer_problems(model: Any, query_tokens: int) -> list[LayerProblem]:
    """Return the attention problems of the config that transformers writes."""
    config = {**model.config.to_dict(), "architectures": ["MiMoV2FlashForCausalLM"]}
    step = Step({REQUESTS: 1.0}, query_tokens=query_tokens)
    found = problems_from_config({**config, "dtype": "float32"}, step=step)
    return [layer for layer in found if isinstance(layer.problem, DecodeAttention)]


def inputs_of(problem: Any, seen: Seen) -> dict[str, Array]:
    """Return the last tokens' queries, and a cache with room for more than all keys."""
    inputs: dict[str, Array] = {
        "q": seen.q.transpose(1, 2)[:, -problem.query_tokens :].contiguous().numpy(),
        "seq_lens": np.full(REQUESTS, LENGTH, np.int32),
    }
    for name, rows in (("k_cache", seen.k), ("v_cache", seen.v)):
        cache = np.full((*rows.shape[:2], problem.context, rows.shape[3]), np.nan, np.float32)
        cache[:, :, :LENGTH] = rows.numpy()
        inputs[name] = cache
    if problem.sinks:
        inputs["sinks"] = seen.module.sinks.detach().numpy()
    return inputs


def by_reference(problem: Any, inputs: Mapping[str, Array]) -> Array:
    return operator(problem.operator).reference(problem, inputs)["out"]


def by_kernel(problem: Any, inputs: Mapping[str, Array]) -> Array:
    try:
        template = templates_for(problem, TARGET)[0]
    except ScheduleError as error:
        pytest.skip(str(error))
    values = template.space(problem, TARGET).default()
    return run_kernel(problem, TARGET, template, values, inputs)["out"]


@pytest.mark.parametrize("query_tokens", [1, 4])
@pytest.mark.parametrize("attend", [by_reference, by_kernel])
def test_our_attention_in_the_block(
    model: Any, seen: list[Seen], attend: Any, query_tokens: int
) -> None:
    layers = layer_problems(model, query_tokens)
    shapes = [(p.kv_heads, p.window, p.sinks) for layer in layers if (p := layer.problem)]  # type: ignore[attr-defined]
    assert shapes == [(1, 0, False), (2, WINDOW, True)]
    for layer, found in zip(layers, seen, strict=True):
        out = torch.from_numpy(attend(layer.problem, inputs_of(layer.problem, found)).copy())
        torch.testing.assert_close(out, found.attended[:, -query_tokens:], rtol=2e-5, atol=2e-5)
        result = found.module.o_proj(out.reshape(REQUESTS, query_tokens, -1))
        torch.testing.assert_close(result, found.result[:, -query_tokens:], rtol=1e-4, atol=1e-4)


def test_sink_and_window_matter(model: Any, seen: list[Seen]) -> None:
    """The comparison above would notice if either were left out, or the window were one off."""
    [_, layer] = layer_problems(model, 4)
    inputs = inputs_of(layer.problem, seen[1])
    expected = seen[1].attended[:, -4:].numpy()
    for change in ({"sinks": False}, {"window": WINDOW - 1}, {"window": WINDOW + 1}):
        changed: Any = replace(layer.problem, **change)
        assert np.abs(by_reference(changed, inputs) - expected).max() > 1e-2
