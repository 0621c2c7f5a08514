"""Problems that share data must have templates that agree on its layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from wattune.compiler.models import KINDS, Step, problems_from_config
from wattune.compiler.search.groups import common_layouts, groups_of
from wattune.ops import KVCacheQuantize, RectifyAttention
from wattune.schedules.target import Target

EXAMPLES = Path(__file__).parents[2] / "examples"
TARGETS = [Target.parse(f"cpu:{name}", 1) for name in ("avx2", "vnni", "amx")]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
@pytest.mark.parametrize("model", ["llama-3.1-8b", "mimo-v2-flash"])
def test_groups_of_models_have_a_common_layout(model: str, kind: str) -> None:
    try:
        layers = problems_from_config(EXAMPLES / f"{model}.json", step=Step(attention=kind))
    except ValueError:
        pytest.skip("the model's value heads are no whole groups")
    for target in TARGETS:
        for group in groups_of([layer.problem for layer in layers]):
            assert common_layouts(group, target), [str(p) for p in group.members]


def test_operators_beside_decoding_join_the_groups() -> None:
    layers = problems_from_config(EXAMPLES / "llama-3.1-8b.json", step=Step(attention="int4"))
    quantized = [layer.problem for layer in layers]
    problems = [*quantized, KVCacheQuantize(1, 4096, 8, 128)]
    (group,) = [g for g in groups_of(problems) if KVCacheQuantize(1, 4096, 8, 128) in g.members]
    assert len(group.members) > 1
    dense = [p.problem for p in problems_from_config(EXAMPLES / "llama-3.1-8b.json")]
    cache = [*dense, RectifyAttention(1, 4096, 32, 8, 128)]
    (group,) = groups_of(cache)
    for target in TARGETS:
        assert common_layouts(group, target)
