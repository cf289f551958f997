"""How one replica is cut over devices, and in which precision it computes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One replica takes tensor_parallel x attention_dp x pipeline_parallel devices.

    Attention weights are cut `tensor_parallel` ways inside each of `attention_dp` groups, which share the requests
    between them. Experts are cut moe_tensor_parallel x expert_parallel ways over all devices of a stage.
    """

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    attention_dp: int = 1
    moe_tensor_parallel: int = 1
    expert_parallel: int = 1
    sequence_parallel: bool = False
    """Norms and residuals of prefill are cut along the tokens: reduce-scatter and all-gather instead of all-reduce
    (Megatron, arXiv 2205.05198)."""
    devices_per_node: int = 8

    @property
    def devices(self) -> int:
        return self.tensor_parallel * self.attention_dp * self.pipeline_parallel

    @property
    def nodes(self) -> int:
        """Nodes that one pipeline stage is spread over."""
        return max(1, -(-self.tensor_parallel * self.attention_dp // self.devices_per_node))


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Types by what they are used for: names of catalog.shape.Dtype."""

    weights: str = "bfloat16"
    """Of the dense matrices."""
    experts: str = "bfloat16"
    activations: str = "bfloat16"
    kv: str = "bfloat16"
    head: str = "bfloat16"
    """Of the LM head, which quantised checkpoints usually leave alone."""
