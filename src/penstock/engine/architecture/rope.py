"""The rotary embedding as config.json spells it: before transformers 5 and since, and each type's parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from penstock.engine.architecture.shape import Config, Rope
from penstock.errors import UnsupportedModel

ROPE_TYPES: Final = ("default", "linear", "dynamic", "llama3", "yarn")


def read_rope(
    config: Config,
    theta: float,
    max_positions: int,
    types: Sequence[str] = ROPE_TYPES,
    head_dim: int | None = None,
) -> Rope:
    """Both spellings: rope_parameters (transformers 5) and rope_scaling beside rope_theta (before).

    `types`: the scalings that the family knows. `head_dim`: of a family whose heads may turn in part.
    """
    found = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    kind = found.pop("rope_type", None) or found.pop("type", None) or "default"
    found.pop("type", None)
    theta = float(found.pop("rope_theta", None) or config.get("rope_theta") or theta)
    if kind not in types:
        raise UnsupportedModel(
            field="rope_parameters.rope_type",
            value=kind,
            why="this RoPE scaling is not implemented",
            remedy="one of " + ", ".join(types),
        )
    needed = {
        "linear": ("factor",),
        "dynamic": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
        "longrope": ("short_factor", "long_factor"),
    }
    for key in needed.get(kind, ()):
        if key not in found:
            raise UnsupportedModel(
                field=f"rope_parameters.{key}",
                value=None,
                why=f"the {kind} scaling needs it",
                remedy="the checkpoint's original config.json",
            )
    if kind in ("llama3", "yarn", "longrope"):
        original = config.get("original_max_position_embeddings")
        if original is not None:
            found["original_max_position_embeddings"] = original
        else:
            found.setdefault("original_max_position_embeddings", max_positions)
    if kind in ("yarn", "longrope") and found.get("factor") is None:
        found["factor"] = max_positions / found["original_max_position_embeddings"]
    share = found.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor") or 1.0
    if share != 1.0 and head_dim is None:
        raise UnsupportedModel(
            field="partial_rotary_factor",
            value=share,
            why="no model of this family rotates a part of a head",
            remedy="1.0, or a supported checkpoint",
        )
    return Rope(kind, theta, found, width=int(head_dim * share) if head_dim is not None and share != 1.0 else None)
