"""What a checkpoint takes in memory in each `model.dtype` it can be served in. Reads headers only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from penstock.catalog import models_in_the_box, resolve_model


@dataclass(frozen=True, slots=True)
class Served:
    """One form. `compute`: the type of activations and KV; `device`: the one kind that has it, or "" for all."""

    dtype: str
    weight_bytes: int
    compute: str
    kv_bytes_per_token: int
    device: str


def served_forms(model: str) -> list[Served]:
    """All forms of a checkpoint directory or a model in the box; none for a name of the catalogue alone.

    Raises UnsupportedModel.
    """
    from penstock.engine.checkpoint import model_footprint
    from penstock.engine.weights.formats import FORMATS

    if model not in models_in_the_box() and not Path(model).is_dir():
        return []
    path, found = resolve_model(model), []
    for dtype, form in FORMATS.items():
        footprint = model_footprint(path, dtype)
        found.append(Served(dtype, footprint.weight_bytes, form.compute, footprint.kv_bytes_per_token, form.device))
    return found
