"""DeepSeek-V3: its experts. Wattune has no kernel of its latent attention (MLA)."""

from __future__ import annotations

from wattune.compiler.models.config import Config
from wattune.compiler.models.layers import Model
from wattune.compiler.models.llama import most_context
from wattune.compiler.models.moe import deepseek_moe


def deepseek_v3(config: Config) -> Model:
    """Read the mixture-of-experts layers; the drafting (MTP) layer is not counted."""
    return Model(config.dtype(), {}, most_context=most_context(config), moe=deepseek_moe(config))
