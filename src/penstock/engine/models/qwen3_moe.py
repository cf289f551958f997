"""Qwen3-MoE: Qwen3's attention; some layers have a mixture of experts, the others a dense MLP.

Source: Qwen3 Technical Report, Yang et al., 2025.
"""

from __future__ import annotations

import torch

from penstock.engine.architecture import Architecture
from penstock.engine.checkpoint import Checkpoint
from penstock.engine.models.decoder import Decoder, Mlp, load_decoder, load_dense_mlp
from penstock.engine.ops.moe import ExpertWeights
from penstock.engine.weights import Pack


def load(architecture: Architecture, checkpoint: Checkpoint, pack: Pack | None) -> Decoder:
    return load_decoder(architecture, checkpoint, _load_mlp, pack)


def _load_mlp(a: Architecture, checkpoint: Checkpoint, i: int) -> Mlp:
    assert a.experts is not None
    if not a.experts.sparse_layers[i]:
        return load_dense_mlp(a, checkpoint, i)
    at, inner, numbers = f"model.layers.{i}.mlp", a.experts.intermediate, range(a.experts.count)
    return ExpertWeights(
        router=checkpoint.take(f"{at}.gate.weight", a.experts.count, a.hidden),
        gate_up=torch.stack(
            [
                checkpoint.take_stacked(
                    (f"{at}.experts.{e}.{p}_proj.weight", (inner, a.hidden)) for p in ("gate", "up")
                )
                for e in numbers
            ]
        ),
        down=torch.stack([checkpoint.take(f"{at}.experts.{e}.down_proj.weight", a.hidden, inner) for e in numbers]),
        per_token=a.experts.per_token,
        normalize=a.experts.normalize,
    )
