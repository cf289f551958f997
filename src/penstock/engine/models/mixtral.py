"""Mixtral: Mistral's attention, and in each layer a mixture of experts in place of the MLP.

Source: Mixtral of Experts, Jiang et al., 2024.
"""

from __future__ import annotations

import torch

from penstock.engine.architecture import Architecture
from penstock.engine.checkpoint import Checkpoint
from penstock.engine.models.decoder import Decoder, load_decoder
from penstock.engine.ops.moe import ExpertWeights
from penstock.engine.weights import Pack


def load(architecture: Architecture, checkpoint: Checkpoint, pack: Pack | None) -> Decoder:
    return load_decoder(architecture, checkpoint, _load_experts, pack)


def _load_experts(a: Architecture, checkpoint: Checkpoint, i: int) -> ExpertWeights:
    """The original names: w1 is gate, w3 up, w2 down."""
    assert a.experts is not None
    at, inner, numbers = f"model.layers.{i}.block_sparse_moe", a.experts.intermediate, range(a.experts.count)
    return ExpertWeights(
        router=checkpoint.take(f"{at}.gate.weight", a.experts.count, a.hidden),
        gate_up=torch.stack(
            [
                checkpoint.take_stacked((f"{at}.experts.{e}.{w}.weight", (inner, a.hidden)) for w in ("w1", "w3"))
                for e in numbers
            ]
        ),
        down=torch.stack([checkpoint.take(f"{at}.experts.{e}.w2.weight", a.hidden, inner) for e in numbers]),
        per_token=a.experts.per_token,
        normalize=a.experts.normalize,
    )
