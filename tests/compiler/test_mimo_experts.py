"""MiMo-V2-Flash: our fused experts in place of those of transformers' own module.

Needs ``pip install wattune[test-models]``; skipped where transformers has no MiMo-V2-Flash.
"""

from __future__ import annotations

import numpy as np
import pytest
from tests.schedules.kernels import run_kernel

from wattune.ops import FusedMoe
from wattune.ops.dtypes import numpy_dtype
from wattune.schedules.target import Target
from wattune.schedules.template import templates_for

torch = pytest.importorskip("torch")
mimo = pytest.importorskip(
    "transformers.models.mimo_v2_flash.modeling_mimo_v2_flash",
    reason="transformers with MiMo-V2-Flash is not installed (wattune[test-models])",
    exc_type=ImportError,
)

TARGET = Target.native(threads=1)
TOKENS, EXPERTS, TOP_K, HIDDEN, INNER = 11, 16, 4, 64, 32


def test_layer_equals_the_module() -> None:
    """Routed by the module's own gate; ours rounds h to bfloat16, the module does not."""
    config = mimo.MiMoV2FlashConfig(
        hidden_size=HIDDEN,
        moe_intermediate_size=INNER,
        n_routed_experts=EXPERTS,
        num_local_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        num_hidden_layers=1,
        layer_types=["full_attention"],
        mlp_layer_types=["sparse"],
    )
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    layer = mimo.MiMoV2FlashMoE(config)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_((torch.randn(parameter.shape) / HIDDEN**0.5).bfloat16())
        layer.gate.e_score_correction_bias.copy_(torch.randn(EXPERTS) / 10)
        x = torch.randn(1, TOKENS, HIDDEN).bfloat16().float()
        expected = layer(x)[0].numpy()
        _, shares, ids = layer.gate(x)
    kind = numpy_dtype("bfloat16")
    inputs = {
        "hidden_states": x[0].numpy(),
        "topk_weights": shares.float().numpy(),
        "topk_ids": ids.int().numpy(),
        "gate_up_proj": layer.experts.gate_up_proj.detach().numpy().astype(kind),
        "down_proj": layer.experts.down_proj.detach().numpy().astype(kind),
    }
    problem = FusedMoe(TOKENS, EXPERTS, TOP_K, HIDDEN, INNER, dtype="float32")
    template = templates_for(problem, TARGET)[0]
    values = template.space(problem, TARGET).default()
    got = run_kernel(problem, TARGET, template, values, inputs)["out"]
    distance = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    # 2^-9 is what rounding h to bfloat16 costs at most.
    assert distance < 2.0**-9
