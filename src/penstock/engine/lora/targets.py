"""Where an adapter can attach: the modules of a checkpoint, as PEFT names them, and their place in a layer here.

Queries, keys and values are one product here (and gate and up are), so a module is a range of columns of its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.engine.architecture import Architecture

if TYPE_CHECKING:
    from penstock.engine.lora.step import Place


@dataclass(frozen=True, slots=True)
class Target:
    """A matrix [outputs, inputs] of layer `layer`, whose outputs are columns `first` on of `place`."""

    layer: int
    place: Place
    first: int
    outputs: int
    inputs: int


def targets(architecture: Architecture) -> dict[str, Target]:
    """Module path to target. Embeddings, head, routers and experts are not among them."""
    found: dict[str, Target] = {}
    a = architecture
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    for i in range(a.layers):
        if a.rope is None:
            at, hidden, inner = f"transformer.h.{i}", a.hidden, a.intermediate
            found[f"{at}.attn.c_attn"] = Target(i, "qkv", 0, 3 * hidden, hidden)
            found[f"{at}.attn.c_proj"] = Target(i, "out", 0, hidden, hidden)
            found[f"{at}.mlp.c_fc"] = Target(i, "gate_up", 0, inner, hidden)
            found[f"{at}.mlp.c_proj"] = Target(i, "down", 0, hidden, inner)
            continue
        at, hidden, inner = f"model.layers.{i}", a.hidden, a.intermediate
        if a.fused:
            found[f"{at}.self_attn.qkv_proj"] = Target(i, "qkv", 0, queries + 2 * keys, hidden)
        else:
            for name, first, outputs in (("q", 0, queries), ("k", queries, keys), ("v", queries + keys, keys)):
                found[f"{at}.self_attn.{name}_proj"] = Target(i, "qkv", first, outputs, hidden)
        found[f"{at}.self_attn.o_proj"] = Target(i, "out", 0, hidden, queries)
        if a.experts is not None and a.experts.sparse_layers[i]:
            continue
        if a.fused:
            found[f"{at}.mlp.gate_up_proj"] = Target(i, "gate_up", 0, 2 * inner, hidden)
        else:
            found[f"{at}.mlp.gate_proj"] = Target(i, "gate_up", 0, inner, hidden)
            found[f"{at}.mlp.up_proj"] = Target(i, "gate_up", inner, inner, hidden)
        found[f"{at}.mlp.down_proj"] = Target(i, "down", 0, hidden, inner)
    return found


def adapter_elements(architecture: Architecture, rank: int) -> int:
    """Elements of the largest adapter of that rank: every target has one."""
    return sum(rank * (target.inputs + target.outputs) for target in targets(architecture).values())
